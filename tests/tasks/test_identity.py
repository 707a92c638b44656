"""What is the same work and what is not."""

import importlib
import sys
from pathlib import Path

import pytest

from moeprune.criteria import find
from tasks import identity, score
from tasks.artifacts import Artifact, Step
from tasks.identity import canonical, code_digest, imported, key_of, source_digest

SOURCE = '''
"""What it is for."""
from moeprune.errors import BadInput

def scale(x):
    """Twice."""
    return 2 * x  # twice
'''


@pytest.mark.parametrize(
    "edited",
    [
        SOURCE.replace("# twice", "# two times"),
        SOURCE.replace("What it is for.", "Another purpose."),
        SOURCE.replace('    """Twice."""\n', ""),
        SOURCE.replace("return 2 * x", "return (2 * x)"),
        SOURCE + "\n\n\n",
        SOURCE.replace("\ndef", '\n"""What the next one does."""\n\ndef'),
    ],
    ids=["comment", "module docstring", "docstring removed", "parentheses", "blank lines", "docstring of a name"],
)
def test_source_digest_same_meaning_is_the_same(edited: str):
    assert edited != SOURCE
    assert source_digest(edited) == source_digest(SOURCE)


@pytest.mark.parametrize(
    "edited",
    [
        SOURCE.replace("2 * x", "3 * x"),
        SOURCE.replace("2 * x", "2.0 * x"),
        SOURCE.replace("2 * x", "x * 2"),
        SOURCE.replace("def scale", "def grow"),
        SOURCE.replace("return 2 * x", "return '2 * x'"),
    ],
    ids=["number", "type", "order", "name", "text"],
)
def test_source_digest_changed_meaning_is_another(edited: str):
    assert source_digest(edited) != source_digest(SOURCE)


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Path]:
    """Edits to modules of moeprune, by module name, that identity sees in place of the real files."""
    edited: dict[str, Path] = {}
    real = identity._source
    monkeypatch.setattr(identity, "_source", lambda name: edited.get(name) or real(name))
    return edited


def edit(sources: dict[str, Path], tmp_path: Path, module: str, old: str, new: str) -> None:
    text = Path(importlib.import_module(module).__file__ or "").read_text()
    assert old in text
    sources[module] = tmp_path / f"{module}.py"
    sources[module].write_text(text.replace(old, new, 1))


def reap_key() -> str | None:
    params = score.ScoreParams(criterion="reap")
    return score.step(params, None, {"wiki": Artifact(stage="observe", key="k", digest="d")}).key


def test_score_key_comment_in_the_criterion_is_the_same(sources, tmp_path):
    before = reap_key()
    edit(sources, tmp_path, "moeprune.criteria.reap", "    return ", "    # the mean\n    return ")
    assert reap_key() == before


def test_score_key_changed_criterion_is_another(sources, tmp_path):
    before = reap_key()
    edit(sources, tmp_path, "moeprune.criteria.reap", "c=1", "c=2")
    assert reap_key() != before


def test_score_key_change_in_what_the_criterion_imports_is_another(sources, tmp_path):
    before = reap_key()
    edit(sources, tmp_path, "moeprune.criteria.unified", "    return ", "    return 2 * ")
    assert reap_key() != before


def test_score_key_change_in_another_criterion_is_the_same(sources, tmp_path):
    before = reap_key()
    edit(sources, tmp_path, "moeprune.criteria.frequency", "    return ", "    return 2 * ")
    assert reap_key() == before


def test_score_key_new_unrelated_criterion_is_the_same(tmp_path, monkeypatch):
    before = reap_key()
    criteria = sys.modules["moeprune.criteria"]
    (tmp_path / "first_expert.py").write_text("def score(statistics):\n    return -statistics.count.sum(0).double()\n")
    monkeypatch.setattr(criteria, "__path__", [*criteria.__path__, str(tmp_path)])
    assert importlib.import_module("moeprune.criteria.first_expert")
    assert reap_key() == before
    del sys.modules["moeprune.criteria.first_expert"]


def test_code_digest_library_version_counts_by_its_minor(monkeypatch):
    def digest(version: str) -> str:
        monkeypatch.setattr(identity, "version", lambda _: version)
        return code_digest(["moeprune.errors"], ["torch"])

    assert digest("2.13.0") == digest("2.13.1")
    assert digest("2.13.0") != digest("2.14.0")


def test_imported_finds_modules_and_what_is_taken_from_them():
    source = (
        "import moeprune.errors, torch\n"
        "from moeprune import corpus\n"
        "from moeprune.criteria import unified, find\n"
        "def f():\n    from moeprune.files import save_corpus\n"
    )
    expected = [
        "moeprune.errors",
        "moeprune.corpus",
        "moeprune.criteria.unified",
        "moeprune.criteria",
        "moeprune.files",
    ]
    assert imported(source) == expected


@pytest.mark.parametrize("value", [{"a": {1, 2}}, {"f": len}, [float("nan")], {"p": Path("x")}], ids=str)
def test_canonical_value_without_a_stable_form_is_refused(value):
    with pytest.raises((TypeError, ValueError)):
        canonical(value)


def test_canonical_order_of_keys_does_not_count():
    assert canonical({"b": 1, "a": [1, 2.5, None]}) == canonical({"a": [1, 2.5, None], "b": 1})
    assert canonical([1, 2]) != canonical([2, 1])


def test_key_every_part_counts():
    parts = {"stage": "score", "code": "c", "params": {"a": 1}, "inputs": {"observe": "d"}}
    keys = {key_of(**parts)}
    for name, value in {"stage": "mask", "code": "e", "params": {"a": 2}, "inputs": {"observe": "f"}}.items():
        keys.add(key_of(**{**parts, name: value}))
    assert len(keys) == 5


def test_step_unknown_input_has_no_key():
    known = Artifact(stage="download", key="k", digest="d")
    step = Step("observe", "wiki", "code", {}, {"download": known, "calibrate": None})
    assert step.key is None and step.unknown == ["calibrate"]


def test_step_label_and_place_of_inputs_do_not_count():
    one = Step("observe", "wiki", "code", {}, {"calibrate": Artifact(stage="calibrate", key="k", digest="d")})
    other = Step("observe", "web", "code", {}, {"calibrate": Artifact(stage="calibrate", key="other", digest="d")})
    assert one.key == other.key


def test_every_criterion_has_a_code_digest_of_its_own():
    from moeprune.criteria import words

    digests = {code_digest([find(word).module]) for word in words()}
    assert len(digests) == len(words())
