"""The commands of teams; `flows.command` registers them."""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

Json = Annotated[bool, Parameter(name="--json", negative="", help="Print one JSON object as the last line of stdout.")]
StoreFolder = Annotated[Path, Parameter(env_var="MOEPRUNE_STORE", help="The folder of results.")]
Run = Annotated[str, Parameter(help="A run's id or its beginning, or MODEL@ALIAS of the registry.")]
Base = Annotated[
    str | None, Parameter(help="Where the base model is now, if not where the recipe says: a folder or a Hub id.")
]
LOCAL, PORT = "127.0.0.1", 8050


def doctor(*, store: StoreFolder = Path(".moeprune"), as_json: Json = False) -> None:
    """Look at all that runs depend on, and say how to mend what is not well: set-up, versions, servers, space, device.

    The exit status is 1 if something must be mended before a run.
    """
    from flows.doctor import examine, show
    from tasks.artifacts import Store

    found = show.each(examine(Store(store)))
    _end(show.error(found), show.as_json(found), as_json)


def deploy() -> None:
    """Register the flows that prefect.yaml lists with the Prefect server: forms, schedules, limits. Twice is once."""
    from flows.deployment import show
    from flows.deployment.deploy import deploy as register

    show.deployed(register())


def serve(
    *,
    limit: Annotated[int, Parameter(validator=Number(gte=1), help="Run so many flows at once.")] = 1,
) -> None:
    """Deploy, then run what the schedules and forms ask for in this folder, until interrupted.

    It needs a Prefect server (PREFECT_API_URL) and a prefect.yaml. Interrupting it kills what it is running.
    """
    from flows.deployment import show
    from flows.deployment.deploy import deploy as register
    from flows.deployment.work import work

    registered = register()
    show.deployed(registered)
    work(registered, limit)


def dashboard(
    *,
    host: Annotated[str, Parameter(help="The address to listen on; others than this machine may then look.")] = LOCAL,
    port: Annotated[int, Parameter(validator=Number(gte=0, lte=65535), help="0: any that is free.")] = PORT,
    page: Annotated[
        Path | None, Parameter(name="--export", help="Write one HTML file instead, and keep it in the tracker.")
    ] = None,
    run: Annotated[
        tuple[str, ...],
        Parameter(negative="", help="With --export: a run to draw and compare; several times for more."),
    ] = (),
    store: StoreFolder = Path(".moeprune"),
) -> None:
    """Lineage, comparisons, audits and models as a web page, read from the tracker and the store."""
    from moeprune.errors import BadInput

    os.environ["HF_HUB_OFFLINE"] = "1"  # who looks asks no Hub; read when its library is imported, which is below
    if page is None and run:
        raise BadInput("--run is for --export FILE: in the page, runs are chosen in the list")
    if page is not None and (host, port) != (LOCAL, PORT):
        raise BadInput("--export FILE listens nowhere: leave out --host and --port")
    if page is None:
        from flows.dashboard.serving import serve as serve_page

        serve_page(store, host, port)
    else:
        from flows.dashboard.export import export as write

        print(f"{page}, kept by run {write(page, run, store)}")


def promote(
    run: Run,
    /,
    *,
    to: Annotated[Literal["candidate", "production"], Parameter(help="The alias that is to name the run's model.")],
    store: StoreFolder = Path(".moeprune"),
    as_json: Json = False,
) -> None:
    """Register the model that RUN made, and have an alias of the registry name it, if the rules in its recipe hold.

    The recipe's section promote says by how much the model may be worse than its base. A rule that does not hold
    refuses the promotion with the numbers, and the alias stays where it is.
    """
    from flows.handover import show
    from flows.handover.promote import promote as promote_run

    done = promote_run(run, to, store)
    show.promotion(done)
    if as_json:
        print(json.dumps(show.promotion_as_json(done)))


def export(
    run: Run,
    folder: Annotated[Path, Parameter(help="A folder that is to be made.")],
    /,
    *,
    store: StoreFolder = Path(".moeprune"),
    as_json: Json = False,
) -> None:
    """Copy the checkpoint that RUN made into FOLDER, with a model card, the recipe and the base model's licence."""
    from flows.handover import show
    from flows.handover.hand_over import export as export_run

    done = export_run(run, folder, store)
    show.exported(done, folder)
    if as_json:
        print(json.dumps(show.exported_as_json(done, folder)))


def push(
    run: Run,
    repository: Annotated[str, Parameter(help="A repository on the Hub, such as owner/name; made if it is not there.")],
    /,
    *,
    public: Annotated[
        bool, Parameter(negative="", help="Let all see a new repository; allow an old one that is.")
    ] = False,
    store: StoreFolder = Path(".moeprune"),
    as_json: Json = False,
) -> None:
    """Send what `moeprune export` writes to a repository on the Hub, in one commit. A new repository is private."""
    from flows.handover import show
    from flows.handover.hand_over import push as push_run

    package, done = push_run(run, repository, store, public)
    show.pushed(package, done)
    if as_json:
        print(json.dumps(show.pushed_as_json(package, done)))


def restore(
    run: Run,
    /,
    *,
    base: Base = None,
    everything: Annotated[
        bool,
        Parameter(negative="", help="Make statistics and a distilled model again, too: the model is run for them."),
    ] = False,
    store: StoreFolder = Path(".moeprune"),
    as_json: Json = False,
) -> None:
    """Bring back what RUN made, byte for byte: corpora and masks from DVC, the pruned checkpoint from base and mask.

    Works in a fresh clone that reaches the DVC remote, the tracker and the base model. Whatever is brought is compared
    with the digests on record; if something differs, or is not to be had, the exit status is 1.
    """
    from flows.upkeep import show
    from flows.upkeep.restore import restore as restore_run

    done = restore_run(run, store, Path.cwd(), base, everything)
    show.restoration(done)
    _end(show.restoration_error(done), show.restoration_as_json(done), as_json)


def verify(
    run: Run | None = None,
    /,
    *,
    every: Annotated[bool, Parameter(name="--all", negative="", help="Check all runs that came to their end.")] = False,
    base: Base = None,
    rehash: Annotated[
        bool, Parameter(negative="", help="Read all files again, even if size and time of change are those on record.")
    ] = False,
    store: StoreFolder = Path(".moeprune"),
    as_json: Json = False,
) -> None:
    """Check that everything RUN names is there and as it was: in the store, DVC, the tracker, and the base model.

    Shows what is ok, missing or changed, and how to mend it; the exit status is 1 unless all is ok.
    """
    from flows.upkeep import show
    from flows.upkeep.verify import verify as verify_runs
    from moeprune.errors import BadInput

    if every == (run is not None):
        raise BadInput("verify: give one run, or --all")
    found = verify_runs(run, store, Path.cwd(), base, rehash)
    show.verification(found)
    _end(show.verification_error(found), show.verification_as_json(found), as_json)


def gc(
    *,
    budget: Annotated[
        str | None, Parameter(help="Bytes that the store may hold, such as 50GB; without, only what is left over goes.")
    ] = None,
    unnamed: Annotated[
        bool, Parameter(negative="", help="Remove results that no run of the tracker names, too, as of deleted runs.")
    ] = False,
    delete: Annotated[bool, Parameter(negative="", help="Remove it; else this is only shown.")] = False,
    store: StoreFolder = Path(".moeprune"),
    as_json: Json = False,
) -> None:
    """Show what of the store would go to keep it within a budget, the least recently used first; --delete removes it.

    What a kept run (`moeprune runs keep RUN`), a registered model or a run under way needs stays. Progress of killed
    runs, from which they would go on, goes first for a budget, else after a week.
    """
    from flows.upkeep import show
    from flows.upkeep.collect import collect, read_budget

    found = collect(store, None if budget is None else read_budget(budget), unnamed, delete)
    show.collection(found)
    _end(show.collection_error(found), show.collection_as_json(found), as_json)


def _end(error: str | None, content: dict[str, Any], as_json: bool) -> None:
    """The last lines of a command whose result may be that something is not well, and then exit status 1."""
    if error:
        print(f"error: {error}", file=sys.stderr)
    if as_json:
        print(json.dumps(content))
    if error:
        sys.exit(1)


COMMANDS: list[Callable[..., Any]] = [doctor, deploy, serve, dashboard, promote, export, push, restore, verify, gc]
