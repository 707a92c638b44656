"""The chain of stages, written once: run it and it is a pruning run, look it up and it is a plan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.recipe import Recipe
from tasks import calibrate, download, evaluate, mask, observe, prune, score
from tasks.artifacts import Artifact, Step, Store

Do = Callable[..., Artifact | None]
"""`do(task, step, **arguments)`: the step's artifact, or None if it is only planned and not there yet."""


@dataclass(frozen=True)
class Sources:
    """Where a recipe's sources lie on this machine, found before any work."""

    model: download.Source
    calibration: dict[str, Path]
    evaluation: dict[str, Path]
    keep: int | None
    """Experts each layer keeps, where that can be told before the weights are here."""


@dataclass
class Products:
    """What the chain has made, stage by stage; None where a plan does not know it yet."""

    base: Artifact | None = None
    corpora: dict[str, Artifact | None] = field(default_factory=dict)
    statistics: dict[str, Artifact | None] = field(default_factory=dict)
    scores: Artifact | None = None
    mask: Artifact | None = None
    pruned: Artifact | None = None
    reports: dict[str, Artifact | None] = field(default_factory=dict)


def chain(recipe: Recipe, sources: Sources, store: Store, do: Do) -> Products:
    """Download, calibrate and observe each corpus, score, mask, prune, evaluate the base and the pruned model."""
    made = Products()
    trusted = recipe.download.trust_remote_code
    made.base = do(download.download, download.step(recipe.download, sources.model, store), source=sources.model)
    if recipe.score.found.reads == "statistics":
        assert recipe.calibrate is not None
        tokenizer = made.base and download.tokenizer_of(made.base, store)
        for corpus in recipe.calibrate.corpora:
            path = sources.calibration[corpus.name]
            made.corpora[corpus.name] = do(
                calibrate.calibrate,
                calibrate.step(recipe.calibrate, corpus, path, tokenizer, store),
                params=recipe.calibrate,
                corpus=corpus,
                path=path,
                trust_remote_code=trusted,
            )
        for name, blocks in made.corpora.items():
            made.statistics[name] = do(
                observe.observe,
                observe.step(recipe.observe, name, made.base, blocks),
                params=recipe.observe,
                trust_remote_code=trusted,
            )
    made.scores = do(
        score.score,
        score.step(recipe.score, made.base, made.statistics),
        params=recipe.score,
        trust_remote_code=trusted,
    )
    made.mask = do(mask.mask, _mask_step(recipe, sources, store, made), params=recipe.mask, trust_remote_code=trusted)
    made.pruned = do(
        prune.prune, prune.step(recipe.prune, made.base, made.mask), params=recipe.prune, trust_remote_code=trusted
    )
    if recipe.evaluate is not None:
        for of, checkpoint in (("base", made.base), ("pruned", made.pruned)):
            step = evaluate.step(recipe.evaluate, of, checkpoint, sources.evaluation, store, trusted)
            made.reports[of] = do(
                evaluate.evaluate,
                step,
                params=recipe.evaluate,
                corpora=sources.evaluation,
                trust_remote_code=trusted,
            )
    return made


def _mask_step(recipe: Recipe, sources: Sources, store: Store, made: Products) -> Step:
    keep = sources.keep
    if keep is None and made.base is not None:  # a byte budget needs the headers of a model from the Hub
        keep = mask.number_to_keep(recipe.mask, store.folder(made.base), recipe.download.trust_remote_code)
    return mask.step(recipe.mask, keep or 0, made.base, made.scores)
