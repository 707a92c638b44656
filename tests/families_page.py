"""docs/families.md: the table of families, from what their tests found."""

from collections.abc import Iterable
from importlib.metadata import version

import families
import pytest
from family_case import Case

from moeprune.errors import BadInput
from moeprune.interface import experts_of
from moeprune.schema import ONE_EXPERT

HEAD = """\
# Families

Every family of transformers {version} whose config counts routed experts and that has a causal language model, on
tiny random models: {pruned} can be observed and pruned, {refused} cannot. This page is written by
tests/moeprune/test_families.py, which finds the families by itself and fails if the page is not what it found.
To write it anew:

    MOEPRUNE_WRITE_FAMILIES=1 python -m pytest tests/moeprune/test_families.py

- *config key*: the name under which the config has the number of experts.
- *on disk*: whether a checkpoint that transformers writes has each expert's tensors by themselves or all in one.
- *observed*: through transformers' registry of experts functions, a wrapped forward of experts that are not in the
  registry, or an adapter of the family's own. All sums equal those of one token at one expert at a time. *No
  EASY-EP*: that criterion has no meaning, because the experts are not given a norm of the residual stream.
- *gates*: what the deployed gates are of the router's logits, with the defaults of the config. A softmax over the
  experts chosen is one over all that is renormalised. Correction biases change the choice alone.
- *groups*: into how many the router of the tiny model divides its experts; each must keep equally many.
- *pruned*: the largest difference between the logits of the pruned checkpoint and those of the whole model with the
  router logits of the experts removed at minus infinity.

| model type | config key | on disk | observed | gates | groups | pruned |
|---|---|---|---|---|---|---|
"""
KINDS = {"RegistryExperts": "registry", "WrappedExperts": "wrapped"}


def page(cases: Iterable[Case], refused: Iterable[str]) -> str:
    """The whole page; families in `refused` cannot be pruned."""
    rows = {case.family: refusal(case) if case.family in refused else row(case) for case in cases}
    few = len(set(refused))
    short = ".".join(version("transformers").split(".")[:2])
    lines = [f"| `{family}` | `{families.discovered()[family]}` | {rest} |\n" for family, rest in rows.items()]
    return HEAD.format(version=short, pruned=len(rows) - few, refused=few) + "".join(lines)


def row(case: Case) -> str:
    """What was found of a family."""
    alone = any(ONE_EXPERT.search(name) for name in case.checkpoint.tensors)
    (kind,) = {KINDS.get(type(experts).__name__, "adapter") for experts in experts_of(case.model).values()}
    (gates,) = {"".join(layer.rule) for layer in case.truth.values()}
    if "easy_ep" not in case.statistics.sums:
        kind += ", no EASY-EP"
    groups = str(case.routing.groups) if case.routing.groups > 1 else ""
    pruned = "< 1e-6" if case.difference < 1e-6 else f"{case.difference:.0e}"
    return " | ".join(["one by one" if alone else "stacked", kind, gates, groups, pruned])


def refusal(case: Case) -> str:
    """Why a family is refused."""
    with pytest.raises(BadInput) as refused:
        _ = case.plan
    return f"| | | | refused: {refused.value}"
