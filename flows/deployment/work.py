"""Running what is asked of a work pool, in this process and folder."""

import os
import sys

from prefect.client.orchestration import get_client
from prefect.workers.process import ProcessWorker

from flows.deployment.deploy import Deployed
from moeprune.errors import BadInput


def work(deployed: list[Deployed], limit: int) -> None:
    """Become a worker of the deployments' pool, which runs `limit` flows at once; does not return.

    Raises BadInput if they have several pools, or one for workers of another kind.
    """
    pools = sorted({one.wanted.pool for one in deployed})
    if len(pools) > 1:
        raise BadInput(
            f"prefect.yaml names the work pools {' and '.join(pools)}: start a worker for each: `prefect worker start`"
        )
    with get_client(sync_client=True) as client:
        kind = client.read_work_pool(pools[0]).type
    if kind != ProcessWorker.type:
        raise BadInput(
            f"work pool '{pools[0]}' is for workers of type {kind}: start one: `prefect worker start --pool {pools[0]}`"
        )
    command = ["worker", "start", "--pool", pools[0], "--type", ProcessWorker.type, "--limit", str(limit)]
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-m", "prefect", *command])
