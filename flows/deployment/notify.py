"""Tells a team's channel of flow runs that failed: a message to the webhook that the environment names."""

import json
import os
from http.client import HTTPException
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

URL = "MOEPRUNE_WEBHOOK_URL"
"""Where messages go, by POST; without it nobody is told."""
PATIENCE = 10
"""Seconds an answer may take."""


def notify(flow: Any, flow_run: Any, state: Any) -> None:
    """A state hook of Prefect: say that a flow run failed or crashed, and why.

    The message is JSON: `text`, which Slack, Mattermost and their like show as it is, and the same facts by name.
    Raises OSError if it cannot be delivered; Prefect logs what a hook raises, and the run's state stays. The address is
    a secret: whoever has it can write to the channel.
    """
    address = os.environ.get(URL)
    if not address:
        return
    facts = {
        "flow": flow.name,
        "recipe": flow_run.parameters.get("name"),
        "run": flow_run.name,
        "id": str(flow_run.id),
        "deployment": str(flow_run.deployment_id) if flow_run.deployment_id else None,
        "state": state.name,
        "message": state.message,
        "url": _page(flow_run.id),
    }
    what = f"{flow.name} of {facts['recipe']}" if facts["recipe"] else flow.name
    text = f"{what} '{flow_run.name}' {state.name.lower()}: {state.message}"
    if facts["url"]:
        text += f"\n{facts['url']}"
    body = json.dumps({"text": text, **facts}).encode()
    try:
        if urlsplit(address).scheme not in ("http", "https"):
            raise ValueError
        urlopen(Request(address, body, {"Content-Type": "application/json"}), timeout=PATIENCE).close()
    except HTTPError as error:
        raise OSError(f"{URL}: nobody is told: its server answers {error.code}") from None
    except URLError as error:
        why = getattr(error.reason, "strerror", None) or type(error.reason).__name__
        raise OSError(f"{URL}: nobody is told: its server cannot be reached ({why})") from None
    except (OSError, ValueError, HTTPException) as error:
        raise OSError(f"{URL}: nobody is told: {type(error).__name__}: check that it is an http address") from None


def _page(flow_run: Any) -> str | None:
    """The flow run's page in Prefect's interface, if a server that stays has one."""
    from prefect.settings import get_current_settings

    ui = get_current_settings().ui_url
    return f"{ui}/runs/flow-run/{flow_run}" if ui else None
