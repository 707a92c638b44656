"""What the team prunes: the embedded demo, or the tests' tiny sample. Sources, questions and three recipes."""

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import sample
import yaml

BASE, COMMIT = "owner/base", "c" * 40
CARD = "---\nlicense: apache-2.0\nlanguage: [en]\n---\n# A model to be pruned\n"
ROOT = Path(__file__).parents[2]
Recipe = dict[str, Any]
SMALL = "small"
"""The name of what comes out, in the registry."""


def prepare(model: str, project: Path, base: Path) -> None:
    """Write sources, questions and recipes into `project`, and the model, with its card, to `base`."""
    {"demo": _demo, "tiny": _tiny}[model](project, base)
    (base / "README.md").write_text(CARD)


def _tiny(project: Path, model: Path) -> None:
    """A random model of two layers, two corpora of a few hundred words, 24 questions."""
    sample.write_project(project)
    shutil.rmtree(project / "params")
    shutil.move(project / "model", model)
    # Whatever goes of a random model, it is hardly worse: what half of it is judged by is stricter.
    rules, strict = ({"perplexity": {"wiki": limit}, "judge": "value"} for limit in (0.05, 0))
    audit = {"criteria": ["reap", "frequency"], "ratios": [0.25], "resamples": 60}
    _write_recipes(project, sample.RECIPE | {"evaluate": sample.EVALUATE}, audit, rules, strict)


def _demo(project: Path, model: Path) -> None:
    """The embedded model of 8.5 million parameters, its four corpora of real text and 1,120 questions."""
    clone = model.with_name("demo")
    subprocess.run(["git", "clone", "--quiet", ROOT, clone], check=True)
    subprocess.run([sys.executable, "-m", "dvc", "pull", "--quiet"], cwd=clone, check=True)
    shutil.copytree(clone / "data/sources", project / "sources")
    shutil.copytree(clone / "demo/questions", project / "questions")
    shutil.copytree(clone / "demo/model", model)
    text = (clone / "params/demo.yaml").read_text()
    recipe = yaml.safe_load(text.replace("data/sources/", "sources/").replace("demo/questions/", "questions/"))
    shutil.rmtree(clone)
    rules = {"perplexity": {"wiki": 0.4}, "accuracy": {"continuation/acc": 0.05}}
    audit = {
        "criteria": ["reap", "frequency", "ean"],
        "ratios": [0.25],
        "consequence": {"criterion": "reap", "ratio": 0.25, "masks": 2, "corpora": False},
    }
    _write_recipes(project, recipe, audit, rules, rules)


def _write_recipes(project: Path, recipe: Recipe, audit: Recipe, rules: Recipe, of_half: Recipe) -> None:
    """A nightly, a weekly and a sweep under the names that this repository's prefect.yaml has for them.

    `rules` are for promotion, `of_half` those for a model that has lost half of its experts.
    """
    named = {"model": SMALL}
    recipe = recipe | {"download": {"source": BASE}, "promote": rules | named}
    observed = {word: recipe[word] for word in ("download", "calibrate", "observe", "runtime") if word in recipe}
    few = recipe["evaluate"] | {"limit": 6, "generations": 0}
    half = {"mask": {"ratio": 0.5}, "promote": of_half | named}
    recipes = {
        "demo": recipe,
        "audit-demo": observed | {"audit": audit} | ({"evaluate": few} if "consequence" in audit else {}),
        "sweep-demo": recipe | {"variants": [half, {"score": {"criterion": "frequency"}}]},
    }
    for name, content in recipes.items():
        path = project / f"params/{name}.yaml"
        path.parent.mkdir(exist_ok=True)
        path.write_text(yaml.safe_dump(content, sort_keys=False))
