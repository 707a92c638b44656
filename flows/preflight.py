"""What is checked before any long work: sources are there, the request can be met, servers answer, disk suffices."""

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flows.chain import Sources
from flows.fit import check_budget, check_fit
from flows.recipe import Recipe
from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.configs import read_config, read_routing
from moeprune.corpus import read_documents
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.inspection import written
from moeprune.meta import meta_model
from moeprune.schema import Plan, read_plan
from moeprune.sizes import pruned_bytes
from tasks import calibrate, download, harness, mask, observe
from tasks.artifacts import Store
from tasks.headers import headers_on_hub
from tasks.hub_refusals import HubUnavailable

if TYPE_CHECKING:
    from tasks.tracking import Tracker


def check_servers(store: Store, project: Path) -> "Tracker":
    """The tracker. Raises BadInput if a run could not be recorded there, or its corpora and masks not be pushed."""
    from tasks import versioning
    from tasks.tracking import open_tracker

    tracker = open_tracker(store)
    versioning.reach(project)
    return tracker


def preflight(recipe: Recipe, store: Store, project: Path) -> Sources:
    """Find every source and refuse what cannot work. Reads configs and headers, hashes sources, loads no model.

    Raises BadInput for what a user can mend; see each stage's functions.
    """
    if not (project / ".dvc" / "config").is_file():
        raise BadInput(f"{project} is not set up for DVC: run `moeprune init` there")
    _bring_data(recipe, project)
    if recipe.evaluate is not None:
        harness.check(recipe.evaluate, recipe.download.trust_remote_code)
    calibration = {}
    if recipe.uses_corpora and recipe.calibrate is not None:
        calibration = {corpus.name: calibrate.locate(corpus) for corpus in recipe.calibrate.corpora}
        _check_fields("calibrate", recipe.calibrate.corpora, calibration)
    corpora = recipe.evaluate.corpora if recipe.evaluate else ()
    evaluation = {corpus.name: calibrate.locate(calibrate.CorpusSource(**corpus.model_dump())) for corpus in corpora}
    _check_fields("evaluate", corpora, evaluation)
    model = download.resolve(recipe.download, store)
    files = _files(recipe, model, store)
    return Sources(model, calibration, evaluation, _check_model(recipe, model, files, store), files)


def _bring_data(recipe: Recipe, project: Path) -> None:
    """Have DVC bring versioned sources that a fresh clone does not hold yet."""
    sources = [
        corpus.source for section in (recipe.calibrate, recipe.evaluate) if section for corpus in section.corpora
    ]
    missing = [source for source in sources if not source.startswith("hf://") and not Path(source).is_file()]
    if any((project / "data") in (project / source).parents for source in missing) and (project / "data.dvc").is_file():
        from tasks import versioning

        versioning.pull(project)


def _check_fields(word: str, corpora: Iterable[Any], paths: dict[str, Path]) -> None:
    """The first document of each corpus shows whether its file and field can be read."""
    for corpus in corpora:
        if next(iter(read_documents(paths[corpus.name], corpus.field)), None) is None:
            raise BadInput(f"{word}.corpora '{corpus.name}': {corpus.source} holds no text: give another source")


def _files(recipe: Recipe, model: download.Source, store: Store) -> Checkpoint | None:
    """The model's files by their headers; None while the Hub does not give those."""
    folder = model.folder
    if folder is None and (stored := store.find(download.step(recipe.download, model, store))):
        folder = store.folder(stored)  # what is in the store needs no Hub
    if folder is not None:
        return open_checkpoint(folder)
    download.check_space(model)
    try:
        return headers_on_hub(model)
    except HubUnavailable:
        return None


def _check_model(recipe: Recipe, model: download.Source, files: Checkpoint | None, store: Store) -> int | None:
    """The number of experts to keep, or None where only the files can tell it.

    Without files, what the library would write is judged in their place.
    """
    trusted = recipe.download.trust_remote_code
    folder = files.folder if files else download.read_config_folder(model)
    config = read_config(folder, trusted)
    routing, library = read_routing(config), meta_model(config, trusted)
    plan = read_file_plan(files, trusted) if files else read_plan(config, trusted)
    judged = files or Checkpoint(folder, written(library))
    check_fit(recipe, library, judged, plan, routing)
    if files is None and recipe.mask.bytes is not None:
        return None
    keep = mask.number_to_keep(recipe.mask, judged, trusted)
    check_budget(recipe, keep, routing)
    if files is not None:
        store.check_space(disk_needed(recipe, files, plan, keep))
    return keep


def disk_needed(recipe: Recipe, checkpoint: Checkpoint, plan: Plan, keep: int) -> int:
    """Bytes a run may write: the pruned checkpoint, tokens, and statistics with the copy that keeps progress.

    A virtual mask writes no checkpoint.

    A rule that keeps more experts in one layer than in another is taken to keep the average in all: the same bytes
    where layers are of one size, as in all families but those whose experts differ between layers.
    """
    size = 0 if recipe.virtual else pruned_bytes(checkpoint, plan, keep)
    if recipe.distill is not None:  # the result, and the weights with two moments, in float32, twice while replaced
        size += 13 * size
    if recipe.uses_corpora and recipe.calibrate is not None:
        size += observation_bytes(recipe.calibrate, recipe.observe, checkpoint, plan)
    return size


def observation_bytes(
    drawn: calibrate.CalibrateParams, asked: observe.ObserveParams, checkpoint: Checkpoint, plan: Plan
) -> int:
    """Bytes of the tokens and statistics of every corpus, and of the copies that keep progress."""
    cells = len(plan.layers) * plan.experts  # a chunk has nine moments, a count and four more sums of each
    width = checkpoint.config.get("hidden_size", 0)
    per_corpus: int = drawn.chunks * cells * 8 * 14 + drawn.tokens * 8
    per_corpus += cells * 8 * width * ("vectors" in asked.sums)
    per_corpus += cells * 8 * plan.experts * 2 * ("pairs" in asked.sums)
    per_corpus += cells * 8 * width * 4 * ("inputs" in asked.sums)
    return 2 * per_corpus * len(drawn.corpora)
