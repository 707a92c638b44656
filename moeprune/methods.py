"""Which criteria and selection rules a model allows: from what each reads and what this model can give."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from moeprune import criteria, selection
from moeprune.catalogue import catalogue
from moeprune.checkpoint import Checkpoint
from moeprune.errors import BadInput
from moeprune.interface import experts_of
from moeprune.masks import number_kept
from moeprune.projections import projections
from moeprune.routing import Routing
from moeprune.schema import Plan, layer_of
from moeprune.sparsity import expert_weights


@dataclass(frozen=True)
class Method:
    """A criterion or selection rule and what it needs; `refusal` says why this model does not allow it, or is ""."""

    word: str
    kind: str
    needs: str
    refusal: str


def observing_refused(model: Any) -> str:
    """Why a model cannot be observed, or "". Its tensors may lie on the meta device."""
    return _refusal(lambda: experts_of(model))


def possible_methods(
    model: Any,
    files: Checkpoint,
    plan: Plan,
    routing: Routing,
    unobservable: str,
    unexplained: str,
    trust_remote_code: bool = False,
) -> list[Method]:
    """Every criterion, then every rule; no file is read.

    `unobservable` says why the model cannot be observed, `unexplained` why its files cannot be pruned, or "".
    """
    needs = {(entry.kind, entry.word): entry.needs for entry in catalogue()}
    refusals = {"statistics": unobservable, "model": unobservable, "energy": unobservable, "shape": ""}
    refusals["experts"] = unexplained or _refusal(lambda: check_experts(files, plan))
    refusals["router"] = unexplained or _refusal(lambda: check_routers(files, plan))
    refusals["weight"] = (
        unexplained or unobservable or _refusal(lambda: check_inputs(model, files, plan, trust_remote_code))
    )
    found = []
    for word in criteria.words():
        found.append(Method(word, "criterion", needs["criterion", word], refusals[criteria.find(word).reads]))
    for word in selection.words():
        rule = selection.find(word)
        refusal = next((refusals[name] for name in rule.reads if refusals.get(name)), "")
        found.append(Method(word, "selection", needs["selection", word], refusal or _check_rule(rule, routing)))
    return found


def check_experts(files: Checkpoint, plan: Plan) -> None:
    """Raise BadInput if a layer's files hold no weights of experts."""
    layers = {layer_of(name) for name in files.tensors if plan.weight_of(name)}
    if missing := set(plan.layers) - layers:
        raise BadInput(f"layer {min(missing)} has no weights of experts that can be read")


def check_routers(files: Checkpoint, plan: Plan) -> None:
    """Raise BadInput if a layer has no tensor that could be its router, or several."""
    routers = Counter(layer_of(name) for name, info in files.tensors.items() if plan.is_router(name, info.shape))
    for layer in plan.layers:
        if routers[layer] != 1:
            raise BadInput(f"layer {layer} has {routers[layer]} tensors that could be its router")


def check_inputs(model: Any, files: Checkpoint, plan: Plan, trust_remote_code: bool = False) -> None:
    """Raise BadInput if weights inside experts cannot be zeroed by their inputs."""
    if not all(experts.shows_inner for experts in experts_of(model).values()):
        raise BadInput("the inputs of its experts' down projections cannot be observed")
    expert_weights(files, plan, projections(model.config, trust_remote_code))


def _check_rule(rule: selection.Rule, routing: Routing) -> str:
    """What a rule with its own defaults says to a quarter of the experts removed, if the router allows that."""
    keep = number_kept(0.25, routing.experts)
    if _refusal(lambda: routing.check(keep)):
        return ""
    return _refusal(lambda: rule.check(keep, routing, ["text"], {}))


def _refusal(check: Callable[[], Any]) -> str:
    try:
        check()
    except BadInput as refusal:
        return str(refusal)
    return ""
