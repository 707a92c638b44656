"""A Hub that limits, fails, breaks off or sends other bytes: one line that says what to do, nothing kept."""

import errno
import shutil
from types import SimpleNamespace

import pytest
from downloaded import OLD, SHARD, fetch, refused, resolve, serve_alone, weights
from hub import Fault, closed_port, point_at

from moeprune.errors import BadInput
from moeprune.hashing import sha256
from tasks import download
from tasks.artifacts import Store
from tasks.hub_refusals import HubUnavailable

INFO, FILES, SENDING = "GET /api/models", "/resolve/", "GET /storage/"


@pytest.fixture(autouse=True)
def waits(monkeypatch) -> list[float]:
    """Seconds that would have been waited, by us and by the library."""
    waited: list[float] = []
    for module in ("tasks.hub", "huggingface_hub.utils._http", "huggingface_hub.file_download"):
        monkeypatch.setattr(f"{module}.time", SimpleNamespace(sleep=waited.append))
    return waited


# a wrong hash


def test_download_other_bytes_than_the_hub_names_are_never_accepted(hub, models, runtime, tmp_path):
    hub.poisoned.add(SHARD)
    line = refused(runtime, rf"owner/tiny at {OLD}: {SHARD} has the hash .* removed from the cache, run again")
    content = (models[OLD] / SHARD).read_bytes()
    (tmp_path / "sent").write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    assert sha256(tmp_path / "sent") in line and sha256(models[OLD] / SHARD) in line
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.name in (SHARD, sha256(models[OLD] / SHARD))]
    hub.poisoned.clear()
    hub.served.clear()
    _, artifact = fetch(runtime)
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[OLD])
    assert set(hub.served) == {SHARD}, "what was right is not fetched again"


def test_download_other_bytes_of_a_small_file_are_refused_too(hub, models, runtime):
    hub.poisoned |= {"tokenizer.json", SHARD}
    refused(runtime, r"(tokenizer\.json|model-00002\S*) has the hash .* \(and 1 more files\)")
    hub.poisoned.clear()
    assert fetch(runtime)


def test_download_damage_in_the_cache_is_found_though_the_hub_is_gone(hub, models, runtime, tmp_path, monkeypatch):
    fetch(runtime)
    shutil.rmtree(runtime.store / "download")
    (blob,) = (tmp_path / "cache").rglob(sha256(models[OLD] / SHARD))
    content = blob.read_bytes()
    blob.unlink()
    blob.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")
    refused(runtime, f"{SHARD} has the hash")


def test_download_fewer_bytes_than_the_hub_names_are_refused(hub, runtime, monkeypatch):
    resolved = resolve(runtime)
    monkeypatch.setattr("huggingface_hub.file_download._int_or_none", lambda text: text and int(text) + 1)
    with pytest.raises(HubUnavailable, match=r"owner/tiny is not whole: .*run again"):
        download.read_config_folder(resolved)


# a Hub that limits or fails


@pytest.mark.parametrize(
    "headers",
    [{"Retry-After": "7"}, {"RateLimit": '"api";r=0;t=7', "RateLimit-Policy": '"fixed window";"api";q=500;w=300'}],
    ids=["Retry-After", "RateLimit"],
)
@pytest.mark.parametrize(("where", "more"), [(INFO, 0), (FILES, 1), (SENDING, 1)], ids=["info", "head", "file"])
def test_limited_requests_are_made_again_after_the_wait_asked_for(
    where: str, more: int, headers: dict[str, str], hub, models, runtime, waits
):
    hub.faults.append(Fault(where, 429, headers=headers, times=2 if where == INFO else 1))
    _, artifact = fetch(runtime)
    # For a file's head the library asks a second time at once; it rounds a wait up by a second.
    assert waits == ([7, 7] if where == INFO else [7 + more] if where == SENDING else [])
    assert weights(Store(runtime.store).folder(artifact)) == weights(models[OLD])


@pytest.mark.parametrize(("where", "wait"), [(INFO, 7), (FILES, 8), (SENDING, 8)], ids=["info", "head", "file"])
def test_limit_that_stays_is_refused_with_the_remedy(where: str, wait: int, hub, runtime, waits):
    hub.faults.append(Fault(where, 429, headers={"Retry-After": "7"}))
    refused(runtime, r"requests \(429\) for owner/tiny: run again in some minutes, and log in", HubUnavailable)
    assert set(waits) == {wait}


def test_limit_for_longer_than_a_window_is_refused_at_once(hub, runtime, waits):
    hub.faults.append(Fault(INFO, 429, headers={"Retry-After": "3600"}))
    refused(runtime, r"\(429\)", HubUnavailable)
    assert waits == []


@pytest.mark.parametrize("where", [INFO, FILES, SENDING], ids=["info", "head", "file"])
def test_hub_that_fails_is_refused_and_the_next_try_fetches_the_rest_only(where: str, hub, models, runtime):
    hub.faults.append(Fault(f"{where}.*" + ("" if where == INFO else SHARD), 503))
    refused(
        runtime, r"the Hub at http://127\.0\.0\.1:\d+ fails \(503\) to give out owner/tiny: run again", HubUnavailable
    )
    hub.faults.clear()
    before = hub.served.copy()
    fetch(runtime)
    assert before.total() == 0 if where == INFO else before
    assert hub.served == {path: models[OLD].joinpath(path).stat().st_size for path in hub.served}


@pytest.mark.parametrize("status", [429, 503])
def test_hub_that_limits_or_fails_when_asked_about_a_known_model_leaves_it_at_its_commit(status: int, hub, runtime):
    _, before = fetch(runtime)
    hub.faults.append(Fault(INFO, status))
    assert fetch(runtime)[1] == before


def test_connection_closed_again_and_again_is_refused(hub, models, runtime):
    hub.faults.append(Fault(f"{SENDING}.*{SHARD}", 0))
    refused(runtime, r"cannot be reached \(RemoteProtocolError\)", HubUnavailable)
    hub.faults.clear()
    fetch(runtime)
    assert hub.served == {path: models[OLD].joinpath(path).stat().st_size for path in hub.served}


def test_xet_storage_out_of_reach_is_refused_with_the_way_round_it(hub, models, runtime, monkeypatch, tmp_path):
    monkeypatch.setenv("HF_XET_LOG_DEST", f"{tmp_path}/logs/")  # read when the library is loaded
    monkeypatch.setenv("HF_XET_CACHE", f"{tmp_path}/xet")
    pytest.importorskip("hf_xet")
    from huggingface_hub.utils import _xet

    monkeypatch.setattr(_xet, "_GLOBAL_XET_HOLDER", _xet.XetSessionHolder())  # reads the environment anew
    settings = {"RETRY_MAX_ATTEMPTS": "1", "RETRY_MAX_DURATION": "1s", "RETRY_BASE_DELAY": "10ms"}
    for name, value in settings.items():
        monkeypatch.setenv(f"HF_XET_CLIENT_{name}", value)
    monkeypatch.setenv("HF_TOKEN", "hf_right")
    storage = {
        "Cas-Url": f"http://127.0.0.1:{closed_port()}",
        "Access-Token": "short",
        "Token-Expiration": "4102444800",
    }
    hub.token, hub.xet = "hf_right", True
    hub.faults.append(Fault("xet-read-token", 200, headers={f"X-Xet-{name}": value for name, value in storage.items()}))
    refused(runtime, r"Xet storage .*owner/tiny .*set HF_HUB_DISABLE_XET=1 to fetch it over plain HTTP", HubUnavailable)
    assert not [path for path in tmp_path.rglob("*") if path.is_file() and b"hf_right" in path.read_bytes()]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
    assert fetch(runtime)


def test_error_that_xet_has_no_part_in_is_not_blamed_on_it(hub, runtime, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("cannot start a thread")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    with pytest.raises(RuntimeError, match="cannot start a thread") as caught:
        fetch(runtime)
    assert type(caught.value) is RuntimeError


def test_hub_never_reached_is_refused(runtime, hub, monkeypatch, tmp_path):
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")
    refused(runtime, r"no folder owner/tiny, and the Hub at http://127.* cannot be reached", HubUnavailable)


def test_offline_before_the_files_were_fetched_is_refused(hub, runtime, monkeypatch):
    source = resolve(runtime)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(BadInput, match=r"HF_HUB_OFFLINE is set and owner/tiny is not complete in \S+: unset it"):
        download.read_config_folder(source)


def test_may_pass_only_what_waiting_can_mend_is_tried_again():
    assert download._may_pass(HubUnavailable("the Hub fails")) and download._may_pass(OSError("broken pipe"))
    assert not download._may_pass(BadInput("gated"))


# a repository that is not a checkpoint


@pytest.mark.parametrize(
    ("lost", "match"),
    [
        (
            SHARD,
            r"index\.json of owner/tiny at a+ names model-00002-of-00005\.safetensors, which is not there \(1 of 5",
        ),
        ("model.safetensors.index.json", r"neither model\.safetensors nor .*index\.json in owner/tiny"),
        ("config.json", r"no config\.json in owner/tiny"),
    ],
    ids=["shard", "index", "config"],
)
def test_repository_that_lacks_a_file_is_refused_before_any_weight_is_sent(
    lost: str, match: str, models, tmp_path, runtime, monkeypatch
):
    shutil.copytree(models[OLD], tmp_path / "less")
    (tmp_path / "less" / lost).unlink()
    with serve_alone({OLD: tmp_path / "less"}, monkeypatch, tmp_path / "cache") as hub:
        refused(runtime, match)
        assert not [name for name in hub.served if name.endswith(".safetensors")]


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {}}'])
def test_repository_with_an_index_that_is_none_is_refused_before_any_weight_is_sent(
    content: str, models, tmp_path, runtime, monkeypatch
):
    shutil.copytree(models[OLD], tmp_path / "broken")
    (tmp_path / "broken/model.safetensors.index.json").write_text(content)
    with serve_alone({OLD: tmp_path / "broken"}, monkeypatch, tmp_path / "cache") as hub:
        refused(runtime, r"model\.safetensors\.index\.json (cannot be read|names no shard).*download it again")
        assert not [name for name in hub.served if name.endswith(".safetensors")]


def test_hub_that_tells_no_hashes_is_refused(hub, runtime, monkeypatch):
    from huggingface_hub import HfApi

    whole = HfApi.model_info
    monkeypatch.setattr(
        HfApi, "model_info", lambda *words, **options: whole(*words, **options | {"files_metadata": False})
    )
    refused(runtime, r"does not tell size and hash of \S+ of owner/tiny")


# the disk


def test_disk_of_the_cache_too_small_is_refused_before_any_weight_is_sent(hub, runtime, monkeypatch, tmp_path):
    source = resolve(runtime)
    download.check_space(source)
    needed = download.bytes_to_fetch(source)
    whole = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: whole._replace(free=needed))
    download.check_space(source)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: whole._replace(free=needed - 1))
    with pytest.raises(BadInput, match=rf"to be fetched into {tmp_path}/cache, whose disk has .* set HF_HOME"):
        download.check_space(source)
    assert not [name for name in hub.served if name.endswith(".safetensors")]


@pytest.mark.parametrize("fault", [errno.ENOSPC, errno.EACCES])
def test_disk_that_fails_while_fetching_is_refused_with_the_remedy(fault: int, hub, runtime, monkeypatch):
    def fail(*_, **__):
        raise OSError(fault, "as the system says it")

    monkeypatch.setattr("huggingface_hub.file_download.http_get", fail)
    refused(runtime, r"/cache cannot take the files \(.*\): free some space, or set HF_HOME")
