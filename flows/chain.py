"""The chain of stages, written once: run it and it is a pruning run, look it up and it is a plan."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from flows.recipe import Recipe
from moeprune.checkpoint import Checkpoint, open_checkpoint
from tasks import calibrate, distill, download, evaluate, mask, observe, prune, score
from tasks.artifacts import Artifact, Step, Store

Do = Callable[..., Artifact | None]
"""`do(task, step, **arguments)`: the step's artifact, or None if it is only planned and not there yet."""

Artifacts = dict[str, Artifact | None]


@dataclass(frozen=True)
class Sources:
    """Where a recipe's sources lie on this machine, found before any work."""

    model: download.Source
    calibration: dict[str, Path]
    evaluation: dict[str, Path]
    keep: int | None
    """Experts each layer keeps, where that can be told before the weights are here."""
    files: Checkpoint | None
    """The model's files by their headers, where those can be read before the weights are here."""


@dataclass
class Products:
    """What the chain has made, stage by stage; None where a plan does not know it yet, or a recipe does not want it."""

    base: Artifact | None = None
    corpora: Artifacts = field(default_factory=dict)
    statistics: Artifacts = field(default_factory=dict)
    scores: Artifact | None = None
    mask: Artifact | None = None
    pruned: Artifact | None = None
    distilled: Artifact | None = None
    reports: Artifacts = field(default_factory=dict)

    @property
    def final(self) -> Artifact | None:
        """The checkpoint to be used; None after a virtual mask, too."""
        return self.distilled or self.pruned


@dataclass
class Chain:
    """One recipe on its way from the base model to its reports."""

    recipe: Recipe
    sources: Sources
    store: Store
    do: Do
    made: Products = field(default_factory=Products)

    def run(self) -> Products:
        """Download, calibrate, observe, score, mask, prune, distil, evaluate: what the recipe needs of them.

        A virtual mask is applied by evaluate itself.
        """
        recipe, made = self.recipe, self.made
        made.base = self.do(
            download.download,
            download.step(recipe.download, self.sources.model, self.store),
            source=self.sources.model,
        )
        if recipe.uses_corpora:
            made.corpora = self._calibrate()
        if recipe.uses_statistics:
            made.statistics = self._observe(recipe.observe, made.base)
        if recipe.uses_scores:
            step = score.step(recipe.score, made.base, made.statistics)
            made.scores = self._trusting(score.score, step, params=recipe.score)
        made.mask = self._mask()
        if not recipe.virtual:
            made.pruned = self._trusting(prune.prune, self._prune_step(), params=recipe.prune)
        if recipe.distill is not None:
            step = distill.step(recipe.distill, made.base, made.mask, made.pruned, made.corpora)
            made.distilled = self._trusting(distill.distill, step, params=recipe.distill)
        if recipe.evaluate is not None:
            self._evaluate(recipe.evaluate)
        return made

    def _trusting(self, task: object, step: Step, **arguments: object) -> Artifact | None:
        return self.do(task, step, trust_remote_code=self.recipe.download.trust_remote_code, **arguments)

    def _calibrate(self) -> Artifacts:
        params, made = self.recipe.calibrate, self.made
        assert params is not None
        tokenizer = made.base and download.tokenizer_of(made.base, self.store)
        found: Artifacts = {}
        for corpus in params.corpora:
            path = self.sources.calibration[corpus.name]
            step = calibrate.step(params, corpus, path, tokenizer, self.store)
            found[corpus.name] = self._trusting(calibrate.calibrate, step, params=params, corpus=corpus, path=path)
        return found

    def _observe(self, params: observe.ObserveParams, checkpoint: Artifact | None, of: str = "") -> Artifacts:
        return {
            name: self._trusting(
                observe.observe, observe.step(params, f"{of} {name}".strip(), checkpoint, blocks), params=params
            )
            for name, blocks in self.made.corpora.items()
        }

    def _mask(self) -> Artifact | None:
        params, made = self.recipe.mask, self.made
        if self.recipe.sparse:
            read = made.corpora if params.order == "sequential" else made.statistics
            step = mask.weight_step(params, self.recipe.score.found.word, made.base, read)
            return self._trusting(mask.mask, step, params=params)
        candidate = None
        if params.candidate is not None:
            candidate = self._mask_by(params.candidate, None, params.candidate.selection)
        return self._mask_by(params, candidate, "")

    def _mask_by(self, params: mask.MaskParams, candidate: Artifact | None, of: str) -> Artifact | None:
        made, keep = self.made, self.sources.keep
        if keep is None and made.base is not None:  # a byte budget needs headers, which the Hub did not give
            trusted = self.recipe.download.trust_remote_code
            keep = mask.number_to_keep(params, open_checkpoint(self.store.folder(made.base)), trusted)
        step = mask.step(
            params, keep or 0, made.base, made.scores, made.statistics, made.corpora, candidate,
            self.recipe.observe.dtype, of,
        )  # fmt: skip
        return self._trusting(mask.mask, step, params=params)

    def _prune_step(self) -> Step:
        recipe, made = self.recipe, self.made
        if not recipe.sparse:
            return prune.step(recipe.prune, made.base, made.mask)
        corpora = made.corpora if recipe.mask.order == "sequential" else None
        return prune.sparse_step(
            recipe.prune, recipe.score.found.word, made.base, made.mask, made.statistics, corpora, recipe.observe.dtype
        )

    def _evaluate(self, params: evaluate.EvaluateParams) -> None:
        made, corpora, trusted = self.made, self.sources.evaluation, self.recipe.download.trust_remote_code
        wanted: dict[str, tuple[Artifact | None, Artifacts]] = {"base": (made.base, {})}
        if not self.recipe.virtual:
            wanted["pruned"] = (made.pruned, {})
        if self.recipe.distill is not None:
            wanted["distilled"] = (made.distilled, {})
        if self.recipe.skips:
            # Skipping goes by how the pruned model itself routes, so it is observed as the base was.
            sums = observe.ObserveParams(dtype=self.recipe.observe.dtype, sums=("core", "ratios"))
            wanted["skipped"] = (made.final, self._observe(sums, made.final, "pruned"))
        for of, (checkpoint, statistics) in wanted.items():
            step = evaluate.step(params, of, checkpoint, corpora, self.store, trusted, statistics)
            made.reports[of] = self._trusting(evaluate.evaluate, step, params=params, corpora=corpora)
        if self.recipe.virtual:
            step = evaluate.virtual_step(params, "pruned", made.base, made.mask, corpora, self.store, trusted)
            made.reports["pruned"] = self._trusting(evaluate.evaluate, step, params=params, corpora=corpora)


def chain(recipe: Recipe, sources: Sources, store: Store, do: Do) -> Products:
    """Every stage a recipe needs, in order."""
    return Chain(recipe, sources, store, do).run()
