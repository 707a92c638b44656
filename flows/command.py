"""The command line. Heavy libraries are imported by the command that needs them: --help answers at once."""

import json
import sys
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number

from flows.team_commands import COMMANDS, Json, StoreFolder
from moeprune.errors import BadInput

RunId = Annotated[str, Parameter(help="A run's id or its beginning: `moeprune runs list` lists them.")]
RunOrSweep = Annotated[str, Parameter(help="The id of a run or a sweep, or its beginning.")]

app = App(
    name="moeprune",
    help="""Prune the experts of Mixture-of-Experts language models, and leave a trail.

    A recipe (one YAML file) names a checkpoint, calibration corpora, a criterion and a budget; a run turns it into a
    smaller stock checkpoint with its measured accuracy and memory. Stages whose results are in the store are not run
    again. Begin with `moeprune init`, then `moeprune run params/first.yaml`.
    """,
    help_format="markdown",
    suppress_keyboard_interrupt=False,
    version=partial(version, "moeprune"),
)
runs_app = App(
    name="runs", help="List runs, compare two of them, say which gc must leave alone, close those that died."
)
app.command(runs_app)

Changes = Annotated[
    tuple[str, ...],
    Parameter(
        name="--set",
        negative="",
        help="Change one key of the recipe, such as mask.ratio=0.5; may be given several times.",
    ),
]
Recipe = Annotated[Path, Parameter(help="A recipe, such as params/demo.yaml.")]


def main() -> None:
    """Run the command; exit with 0 when done, 2 for input that can be mended (one line says how), 1 for a failure."""
    as_json = "--json" in sys.argv[1:]
    try:
        app(sys.argv[1:], exit_on_error=False, print_error=False)
    except (BadInput, CycloptsError) as error:
        _fail(" ".join(str(error).split()), "bad_input", as_json)
        sys.exit(2)
    except KeyboardInterrupt:
        _fail("interrupted: run the same command again to go on", "failed", as_json)
        sys.exit(1)
    except Exception as error:
        if not as_json:
            raise
        _fail(f"{type(error).__name__}: {error}", "failed", as_json)
        sys.exit(1)


def _fail(message: str, status: str, as_json: bool) -> None:
    print(f"error: {message}", file=sys.stderr)
    if as_json:
        print(
            json.dumps(
                {"run_id": None, "status": status, "error": message, "stages": {}, "metrics": {}, "checkpoint": None}
            )
        )


@app.command
def init(folder: Path = Path(), /) -> None:
    """Set up a project in FOLDER: git and DVC if missing, a first recipe with every key explained, a schedule."""
    from flows.project import init as set_up

    for line in set_up(folder):
        print(line)


def _content(recipe: Path, changes: tuple[str, ...]) -> dict[str, Any]:
    """What a recipe's file says; BadInput if it is an audit's, whose lists are no axes."""
    from flows.recipe import read_yaml

    content = read_yaml(recipe, changes)
    if "audit" in content:
        raise BadInput(
            f"{recipe}: this is an audit, as it has a section `audit`: run it with `moeprune audit {recipe}`"
        )
    return content


@app.command
def run(recipe: Recipe, /, *, changes: Changes = (), as_json: Json = False) -> None:
    """Prune one model by one recipe, measure it, and show what it costs."""
    from flows import show
    from flows.recipe import parse_recipe
    from flows.running import run_once

    read = parse_recipe(_content(recipe, changes), str(recipe))
    outcome = run_once(read, recipe.stem)
    show.outcome(read, outcome)
    if as_json:
        print(json.dumps(show.as_json(read, outcome)))


@app.command
def plan(recipe: Recipe, /, *, changes: Changes = ()) -> None:
    """Show what a run would do and why, with keys, disk and memory; of a sweep or an audit, how few stages it comes to.

    Runs nothing.
    """
    from flows import show
    from flows.audit import show as show_audit
    from flows.audit.flow import plan_audit
    from flows.audit.recipe import read_audit
    from flows.planning import make_plan
    from flows.recipe import parse_recipe, read_yaml
    from flows.running import plan_sweep
    from flows.sweep import grid
    from flows.sweep import show as show_sweep

    content = read_yaml(recipe, changes)
    if "audit" in content:
        show_audit.plan(plan_audit(read_audit(recipe, changes)))
    elif grid.is_sweep(content):
        show_sweep.plan(plan_sweep(content, recipe))
    else:
        show.plan(make_plan(parse_recipe(content, str(recipe))))


@app.command
def sweep(
    recipe: Recipe,
    /,
    *,
    changes: Changes = (),
    max_parallel: Annotated[
        int,
        Parameter(
            validator=Number(gte=1),
            help="Run so many recipes at once, each in a process with a model of its own; torch's threads are divided.",
        ),
    ] = 1,
    table: Annotated[Path | None, Parameter(help="Put the table of results between this file's sweep markers.")] = None,
    plot: Annotated[Path | None, Parameter(help="Draw the results into this PNG or SVG file.")] = None,
    report: Annotated[Path | None, Parameter(help="Write the report, one HTML file, here.")] = None,
    as_json: Json = False,
) -> None:
    """Run a recipe that has lists where it could have single values: every combination, sharing what can be shared.

    A recipe that fails does not stop the others; the exit status is then 1. Run again, a sweep goes on where it was
    left: what is done is not done again.
    """
    from flows.pages import check_path
    from flows.running import sweep_once
    from flows.sweep import report as sweep_report
    from flows.sweep import show as show_sweep
    from flows.sweep import table as sweep_table

    if table is not None:
        sweep_table.check_table(table)
    if report is not None:
        check_path(report)
    result = sweep_once(_content(recipe, changes), recipe, max_parallel)
    sweep_table.show(result)
    if table is not None:
        sweep_table.write_table(result, table, f"moeprune sweep {recipe}")
    if plot is not None:
        sweep_table.write_plot(result, plot)
    if report is not None:
        sweep_report.write_report(result, report, f"moeprune sweep {recipe}")
    show_sweep.failures(result)
    if as_json:
        print(json.dumps(show_sweep.as_json(result)))
    if result.failed:
        sys.exit(1)


@app.command
def audit(
    recipe: Recipe,
    /,
    *,
    changes: Changes = (),
    report: Annotated[Path | None, Parameter(help="Write the report, one HTML file, here.")] = None,
    as_json: Json = False,
) -> None:
    """How much masks depend on which calibration text was drawn: a recipe with a section `audit`, one HTML report.

    The model is run over each corpus once; resampling, other corpora, criteria and ratios need only what that left.
    """
    from flows.audit import show as show_audit
    from flows.audit.flow import audit_once
    from flows.audit.recipe import read_audit

    result = audit_once(read_audit(recipe, changes), recipe.stem, report)
    show_audit.audit(result)
    if as_json:
        print(json.dumps(show_audit.as_json(result)))


@app.command
def inspect(
    source: Annotated[str, Parameter(help="A checkpoint's folder, a config.json, or a Hub id such as owner/name.")],
    /,
    *,
    revision: Annotated[str | None, Parameter(help="Branch, tag or commit on the Hub.")] = None,
    trust_remote_code: Annotated[
        bool, Parameter(negative="", help="Let code that comes with the checkpoint run.")
    ] = False,
    as_json: Json = False,
) -> None:
    """What a model is, what pruning would leave of it, and which methods it allows. Reads no weights."""
    from flows import show_model
    from flows.inspecting import inspect_source

    found = inspect_source(source, revision, trust_remote_code)
    show_model.model(source, found)
    if as_json:
        print(json.dumps(show_model.as_json(source, found)))


@app.command
def criteria() -> None:
    """List every criterion and selection rule: its word, what it needs, where it comes from, what it is good for."""
    from flows import show
    from moeprune.catalogue import catalogue

    show.criteria(catalogue())


@app.command
def suites(*, fetch: Annotated[bool, Parameter(negative="", help="Get the local twins' data.")] = False) -> None:
    """List the named evaluation suites; with --fetch, get the data that `evaluate.data: local` reads."""
    from flows import show

    if fetch:
        from tasks.benchmarks import fetch as fetch_data

        for line in fetch_data():
            print(line)
    show.suites()


@runs_app.command(name="list")
def list_(sweep: str | None = None, /, *, limit: int = 20, store: StoreFolder = Path(".moeprune")) -> None:
    """The newest runs and sweeps: what was pruned, how, and what it came to; or the runs of one SWEEP, by its id."""
    from flows import show
    from flows.runs import newest, of_sweep

    show.runs(newest(limit, store) if sweep is None else of_sweep(sweep, store))


@runs_app.command
def compare(first: RunId, second: RunId, /, *, store: StoreFolder = Path(".moeprune")) -> None:
    """Paired differences of the models two runs made, SECOND minus FIRST, and how their recipes and masks differ."""
    from flows import show
    from flows.runs import compare as compare_runs

    show.comparison(compare_runs(first, second, store))


@runs_app.command
def keep(run: RunOrSweep, /, *, store: StoreFolder = Path(".moeprune"), as_json: Json = False) -> None:
    """Have `moeprune gc` leave alone all that RUN needs; of a sweep, all of its runs."""
    from flows.runs import keep as mark

    _told("kept", [one.id for one in mark(run, store, True)], as_json)


@runs_app.command
def unkeep(run: RunOrSweep, /, *, store: StoreFolder = Path(".moeprune"), as_json: Json = False) -> None:
    """Let `moeprune gc` remove what only RUN needs, if the disk budget demands it."""
    from flows.runs import keep as mark

    _told("no longer kept", [one.id for one in mark(run, store, False)], as_json)


@runs_app.command
def close(run: RunOrSweep, /, *, store: StoreFolder = Path(".moeprune"), as_json: Json = False) -> None:
    """Have RUN, or a sweep, be over as KILLED: for one whose machine is gone, as `moeprune gc` waits for it."""
    from flows.runs import close as end

    _told("closed", [end(run, store).id], as_json)


def _told(what: str, runs: list[str], as_json: bool) -> None:
    """What has become of runs."""
    print(f"{what}: {', '.join(run[:8] for run in runs)}")
    if as_json:
        print(json.dumps({"status": "done", "error": None, "runs": runs}))


for _command in COMMANDS:
    app.command(_command)

if __name__ == "__main__":
    main()
