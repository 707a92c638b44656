"""What is checked before any long work: sources are there, the request can be met, servers answer, disk suffices."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from flows.chain import Sources
from flows.recipe import Recipe
from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.corpus import read_documents
from moeprune.errors import BadInput
from moeprune.projections import Projection, projections
from moeprune.routing import Routing
from moeprune.schema import Plan, read_config, read_plan, read_routing
from moeprune.sparsity import expert_weights
from moeprune.surgery import pruned_bytes
from moeprune.weight_masks import parse_pattern
from tasks import calibrate, download, evaluate, mask
from tasks.artifacts import Store


def preflight(recipe: Recipe, store: Store, project: Path) -> Sources:
    """Find every source and refuse what cannot work. Reads configs and headers, hashes sources, loads no model.

    Raises BadInput for what a user can mend; see each stage's functions.
    """
    if not (project / ".dvc" / "config").is_file():
        raise BadInput(f"{project} is not set up for DVC: run `moeprune init` there")
    _bring_data(recipe, project)
    if recipe.evaluate is not None:
        evaluate.check(recipe.evaluate, recipe.download.trust_remote_code)
    calibration = {}
    if recipe.uses_corpora and recipe.calibrate is not None:
        calibration = {corpus.name: calibrate.locate(corpus) for corpus in recipe.calibrate.corpora}
        _check_fields("calibrate", recipe.calibrate.corpora, calibration)
    corpora = recipe.evaluate.corpora if recipe.evaluate else ()
    evaluation = {corpus.name: calibrate.locate(calibrate.CorpusSource(**corpus.model_dump())) for corpus in corpora}
    _check_fields("evaluate", corpora, evaluation)
    model = download.resolve(recipe.download, store)
    keep = _check_model(recipe, model, store)
    return Sources(model, calibration, evaluation, keep)


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


def _check_model(recipe: Recipe, model: download.Source, store: Store) -> int | None:
    trusted = recipe.download.trust_remote_code
    folder = model.folder
    if folder is None and (stored := store.find(download.step(recipe.download, model, store))):
        folder = store.folder(stored)  # what is in the store needs no Hub
    checkpoint = open_checkpoint(folder) if folder else None
    config = read_config(folder or download.read_config_folder(model), trusted)
    routing = read_routing(config)
    if recipe.skips and routing.top_k != 2:
        raise BadInput(
            f"evaluate.expert_skipping: it is defined for two experts a token, this model chooses {routing.top_k}"
        )
    plan = read_plan(config, trusted)
    if checkpoint is None:
        if recipe.mask.bytes is not None:
            return None
        keep = mask.number_to_keep(recipe.mask, download.read_config_folder(model), trusted)
        _check_rules(recipe, keep, routing)
        return keep
    keep = mask.number_to_keep(recipe.mask, checkpoint.folder, trusted)
    _check_rules(recipe, keep, routing)
    if recipe.sparse:
        _check_pattern(recipe, checkpoint, plan, projections(config, trusted))
    store.check_space(disk_needed(recipe, checkpoint, plan, keep))
    return keep


def _check_rules(recipe: Recipe, keep: int, routing: Routing) -> None:
    names = [corpus.name for corpus in recipe.calibrate.corpora] if recipe.calibrate else []
    for params in (recipe.mask, recipe.mask.candidate):
        if params is not None and not recipe.sparse:
            params.rule.check(keep, routing, names, params.options)


def _check_pattern(recipe: Recipe, checkpoint: Checkpoint, plan: Plan, found: dict[str, Projection]) -> None:
    """BadInput if weights inside experts cannot be zeroed, or rows are not made of whole blocks."""
    for name, (projection, _) in expert_weights(checkpoint, plan, found).items():
        parse_pattern(recipe.mask.pattern).blocks(checkpoint.tensors[name].shape[projection.input_axis])


def disk_needed(recipe: Recipe, checkpoint: Checkpoint, plan: Plan, keep: int) -> int:
    """Bytes a run may write: the pruned checkpoint, tokens, and statistics with the copy that keeps progress."""
    size = pruned_bytes(checkpoint, plan, keep)
    if recipe.distill is not None:  # the result, and the weights with two moments, in float32, twice while replaced
        size += 13 * size
    if recipe.uses_corpora and recipe.calibrate is not None:
        cells = len(plan.layers) * plan.experts  # a chunk has nine moments, a count and four more sums of each
        width = checkpoint.config.get("hidden_size", 0)
        per_corpus = recipe.calibrate.chunks * cells * 8 * 14 + recipe.calibrate.tokens * 8
        per_corpus += cells * 8 * width * ("vectors" in recipe.observe.sums)
        per_corpus += cells * 8 * plan.experts * 2 * ("pairs" in recipe.observe.sums)
        per_corpus += cells * 8 * width * 4 * ("inputs" in recipe.observe.sums)
        size += 2 * per_corpus * len(recipe.calibrate.corpora)
    return size
