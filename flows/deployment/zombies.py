"""Flow runs whose process is gone without a word: an automation of the Prefect server marks them as crashed."""

from collections.abc import Iterable
from datetime import timedelta
from typing import Any
from uuid import UUID

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture

NAME = "moeprune: runs without a heartbeat have crashed"
SILENCE = timedelta(minutes=10)
"""A flow run sends a heartbeat every three minutes, unless PREFECT_FLOWS_HEARTBEAT_FREQUENCY says otherwise."""


def crash_zombies(client: SyncPrefectClient, flows: Iterable[UUID], silence: timedelta = SILENCE) -> bool:
    """Have runs of these flows marked as crashed after a heartbeat that nothing followed. False: it was so already.

    Flows that are watched already, as other projects have asked, still are.
    """
    ids = {f"prefect.flow.{flow}" for flow in flows}
    found = next(iter(client.read_automations_by_name(NAME)), None)
    if found is None:
        client.create_automation(_automation(ids, silence))
        return True
    wanted = _automation(ids | _watched(found), silence)
    if _content(found) == _content(wanted):
        return False
    client.update_automation(found.id, wanted.model_copy(update={"enabled": found.enabled}))
    return True


def _automation(flows: Iterable[str], silence: timedelta) -> AutomationCore:
    return AutomationCore(
        name=NAME,
        description="Their process was killed, or its machine is gone: nothing will run on, and their place is freed.",
        trigger=EventTrigger(
            posture=Posture.Proactive,
            after={"prefect.flow-run.heartbeat"},
            expect={"prefect.flow-run.*"},
            match={"prefect.resource.id": "prefect.flow-run.*"},
            match_related={"prefect.resource.role": "flow", "prefect.resource.id": sorted(flows)},
            for_each={"prefect.resource.id"},
            threshold=1,
            within=silence,
        ),
        actions=[
            ChangeFlowRunState(
                state=StateType.CRASHED,
                message=f"no heartbeat for {silence}: its process is gone; run it again to go on",
            )
        ],
    )


def _watched(found: AutomationCore) -> set[str]:
    flows = _content(found)["trigger"]["match_related"]["prefect.resource.id"]
    return {flows} if isinstance(flows, str) else set(flows)


def _content(automation: AutomationCore) -> dict[str, Any]:
    """What an automation does; whether somebody has paused it is left to them."""
    content = automation.model_dump(mode="json", include=set(AutomationCore.model_fields) - {"enabled"})
    for name in ("after", "expect", "for_each"):  # sets
        content["trigger"][name].sort()
    return content
