"""What decides a result: canonical params, digests of inputs, and the code that computes it.

Sources are named by their content, never by their path; `runtime` never enters. Code counts as its syntax tree, so
comments and docstrings do not.
"""

import ast
import hashlib
import json
from collections.abc import Iterable
from functools import cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any


def canonical(value: Any) -> str:
    """JSON with sorted keys and no spaces; raises TypeError for what has no stable form (sets, callables)."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def key_of(stage: str, code: str, params: dict[str, Any], inputs: dict[str, str]) -> str:
    """The key of a result: sha256 over the canonical JSON of all that decides it."""
    identity = {"stage": stage, "code": code, "params": params, "inputs": inputs}
    return hashlib.sha256(canonical(identity).encode()).hexdigest()


def code_digest(modules: Iterable[str], libraries: Iterable[str] = ()) -> str:
    """Digest of the syntax trees of modules and of all of `moeprune` they import, and of libraries' minor versions."""
    trees = {name: source_digest(_source(name).read_text()) for name in sorted(_closure(tuple(modules)))}
    versions = {name: ".".join(version(name).split(".")[:2]) for name in libraries}
    return hashlib.sha256(canonical([trees, versions]).encode()).hexdigest()


def _closure(modules: tuple[str, ...]) -> set[str]:
    found: set[str] = set()
    waiting = list(modules)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting += imported(_source(name).read_text())
    return found


@cache  # a run asks for the same few texts many times
def imported(source: str) -> list[str]:
    """The modules of `moeprune` a source text imports; `from moeprune.a import b` is moeprune.a.b or moeprune.a."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            inner = [f"{node.module}.{alias.name}" for alias in node.names]
            names += [name if _is_module(name) else node.module for name in inner]
    return [name for name in names if name.startswith("moeprune.")]


def _is_module(name: str) -> bool:
    try:
        return name.startswith("moeprune.") and find_spec(name) is not None
    except ModuleNotFoundError:  # its parent is a module, so it is something in that module
        return False


def _source(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError(f"no source of {name}")
    return Path(spec.origin)


@cache
def source_digest(source: str) -> str:
    """Digest of a source text's syntax tree without docstrings and other strings that stand by themselves."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            node.body = [one for one in node.body if not _is_text(one)]
    return hashlib.sha256(ast.dump(tree).encode()).hexdigest()


def _is_text(statement: ast.stmt) -> bool:
    return (
        isinstance(statement, ast.Expr)
        and isinstance(statement.value, ast.Constant)
        and isinstance(statement.value.value, str)
    )
