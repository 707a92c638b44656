"""Repositories that not everybody may read: one line that says what to do, before any file is sent."""

import pytest
from downloaded import NAME, fetch, refused, resolve
from hub import Fault, closed_port, point_at

from moeprune.errors import BadInput
from tasks import download
from tasks.hub_refusals import HubUnavailable

INFO, FILES = "GET /api/models", "/resolve/"


@pytest.mark.parametrize("status", [401, 403], ids=["not logged in", "no access"])
def test_gated_repository_is_refused_with_the_remedy_before_any_file_is_sent(status: int, hub, runtime):
    hub.faults.append(Fault(FILES, status, "GatedRepo"))
    source = resolve(runtime)  # about gated repositories everybody is told
    with pytest.raises(
        BadInput, match=rf"is gated .*\({status}\): ask for access at http://\S+/owner/tiny, then log in"
    ):
        download.read_config_folder(source)
    assert hub.sent == 0


def test_gate_closed_after_the_config_was_fetched_is_refused(hub, runtime):
    download.read_config_folder(resolve(runtime))
    hub.faults.append(Fault(FILES, 403, "GatedRepo"))
    refused(runtime, r"is gated .*hf auth login.*HF_TOKEN")


@pytest.mark.parametrize(
    ("name", "revision"), [("owner/nothing", None), (NAME, "no-such-branch")], ids=["repository", "revision"]
)
def test_what_the_hub_does_not_have_is_refused(name: str, revision: str | None, hub, runtime):
    with pytest.raises(BadInput, match=r"the Hub does not give out .*check the name and revision, and log in"):
        fetch(runtime, source=name, revision=revision)


def test_name_that_cannot_be_one_is_refused(hub, runtime):
    with pytest.raises(BadInput, match=r"does not give out owner/ti ny .*check the name"):
        fetch(runtime, source="owner/ti ny")


def test_private_repository_without_its_token_is_refused(hub, runtime):
    hub.token = "hf_right"
    refused(runtime, r"does not give out owner/tiny .*log in \(hf auth login, or set HF_TOKEN\) if it is private")


def test_token_that_is_not_valid_is_refused_and_not_shown(hub, runtime, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    message = {"X-Error-Message": "Invalid credentials in Authorization header"}
    hub.faults.append(Fault(INFO, 401, headers=message))
    assert "hf_wrong" not in refused(runtime, r"refuses owner/tiny to the token it was sent \(401\).*log in")


def test_password_in_the_hubs_address_is_not_shown(hub, runtime, monkeypatch, tmp_path):
    point_at(monkeypatch, f"http://me:secret@127.0.0.1:{closed_port()}", tmp_path / "cache")
    assert "secret" not in refused(runtime, r"the Hub at http://127\.0\.0\.1:\d+ cannot be reached", HubUnavailable)
