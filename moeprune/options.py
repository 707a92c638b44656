"""The keyword-only parameters of a criterion or a rule, as the options a recipe may set."""

import inspect
from collections.abc import Callable
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from moeprune.errors import BadInput, known_word


def positional(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of the parameters a function is given: they say what it reads."""
    return tuple(name for name, parameter in _parameters(function) if parameter.kind is not parameter.KEYWORD_ONLY)


def defaults(function: Callable[..., Any]) -> dict[str, Any]:
    """Its options with their default values."""
    return {
        name: parameter.default for name, parameter in _parameters(function) if parameter.kind is parameter.KEYWORD_ONLY
    }


def complete(function: Callable[..., Any], given: dict[str, Any], where: str, owner: str) -> dict[str, Any]:
    """All options with their values.

    `where` is the key of the recipe and `owner` what has the options, for messages. Raises BadInput for an option
    there is none of, one of another type, or a word that is not among those of a `Literal`.
    """
    known = defaults(function)
    parameters = dict(_parameters(function))
    for name, value in given.items():
        if not known:
            raise BadInput(f"{where}.{name}: {owner} takes no options: remove it")
        known_word(name, known, f"{where} of {owner}:")
        kind = parameters[name].annotation
        if kind is inspect.Parameter.empty:
            kind = type(known[name])
        if get_origin(kind) is Literal and isinstance(value, str):
            known_word(value, get_args(kind), f"{where}.{name}")
        elif not _fits(value, kind):
            raise BadInput(f"{where}.{name}: {value!r} is not of type {_name(kind)}: give one like {known[name]!r}")
    return known | given


def _parameters(function: Callable[..., Any]) -> list[tuple[str, inspect.Parameter]]:
    return list(inspect.signature(function, eval_str=True).parameters.items())


def _fits(value: Any, kind: Any) -> bool:
    if get_origin(kind) in (Union, UnionType):
        return any(_fits(value, part) for part in get_args(kind))
    return type(value) is kind


def _name(kind: Any) -> str:
    if get_origin(kind) in (Union, UnionType):
        return " or ".join(_name(part) for part in get_args(kind))
    if get_origin(kind) is Literal:
        return "str"
    return "none" if kind is NoneType else str(kind.__name__)
