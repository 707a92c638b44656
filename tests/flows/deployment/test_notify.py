"""A webhook that cannot be told: its address is a secret, and what a hook raises is in logs that all read."""

import traceback
from types import SimpleNamespace
from uuid import UUID

import pytest
from hub import closed_port

from flows.deployment.notify import URL, notify

SECRET = "T0/aSecret"
CLOSED = "PORT"  # found by the test itself, as test names are to be the same in every process
FLOW, STATE = SimpleNamespace(name="prune"), SimpleNamespace(name="Failed", message="no such folder")
RUN = SimpleNamespace(name="quick", id=UUID(int=1), deployment_id=None, parameters={})


@pytest.mark.parametrize(
    "address",
    [
        f"hooks.example.org/services/{SECRET}",
        f"http://127.0.0.1:{CLOSED}/{SECRET}",
        f"http://127.0.0.1:{CLOSED}/\x01{SECRET}",
        f"http://127.0.0.1:{SECRET}",
        f"http://[{SECRET}",
        f"file:///{SECRET}",
        f"data:,{SECRET}",
    ],
)
def test_webhook_that_cannot_be_told_is_named_without_its_address(address: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(URL, address.replace(CLOSED, str(closed_port())))
    with pytest.raises(OSError, match=f"^{URL}: ") as caught:
        notify(FLOW, RUN, STATE)
    logged = "".join(traceback.format_exception(caught.value))
    assert "Secret" not in logged and "\n" not in str(caught.value)


def test_webhook_whose_server_is_away_is_told_as_that(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(URL, f"http://127.0.0.1:{closed_port()}/{SECRET}")
    with pytest.raises(OSError, match=r"cannot be reached \(Connection refused\)$"):
        notify(FLOW, RUN, STATE)
