"""Suites against lm-eval's own definitions, and local twins against what lm-eval asks with the Hub's data."""

import math
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from fetched import benchmarks_folder
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import load_yaml

from moeprune.errors import BadInput
from tasks import suites
from tasks.local_tasks import task_folder, twin_files

TWINS = [name for name, task in suites.TASKS.items() if task.splits]
LM_EVAL = Path(find_spec("lm_eval").submodule_search_locations[0]) / "tasks"


def definition(name: str) -> dict[str, Any]:
    """lm-eval's definition of a task, includes merged; of a group that of its first task."""
    contents = [load_yaml(path, resolve_func=False) for path in suites.files(name)]
    return next(content for content in contents if "group" not in content)


def test_suites_are_those_of_the_papers():
    # methods.md sections 3 and 6: REAP's zero-shot eight with its metrics; TB-Coverage's six.
    acc_norm = {"arc_challenge", "arc_easy", "hellaswag", "openbookqa"}
    assert set(suites.SUITES["zero-shot-eight"]) == acc_norm | {"boolq", "mmlu", "rte", "winogrande"}
    assert set(suites.SUITES["tb-coverage-six"]) == (acc_norm - {"openbookqa"}) | {"piqa", "winogrande", "boolq"}
    for name, task in suites.TASKS.items():
        if not task.writes:
            assert task.metric == ("acc_norm" if name in acc_norm else "acc")


@pytest.mark.parametrize("name", suites.TASKS)
def test_task_is_as_lm_eval_defines_it(name: str):
    files = [load_yaml(path, resolve_func=False) for path in suites.files(name)]
    assert name in {content.get("group", content["task"]) for content in files}
    task, own = suites.TASKS[name], definition(name)
    assert task.runs_code == own.get("unsafe_code", False)
    if own["output_type"] == "multiple_choice":
        assert task.writes == 0 and task.splits
        assert task.metric in {metric["metric"] for metric in own["metric_list"]}
    else:
        assert own["output_type"] == "generate_until" and not task.splits
        assert task.writes == own["generation_kwargs"].get("max_gen_toks", 256)


def test_sixteen_are_in_lm_eval_or_said_not_to_be():
    assert len(suites.SIXTEEN) == 16
    titles = {task.title: name for name, task in suites.TASKS.items()}
    known = {path.stem.lower() for path in LM_EVAL.rglob("*.yaml")}
    for title, word in suites.SIXTEEN.items():
        if word is None:
            assert not [stem for stem in known if title.lower() in stem.replace("_", "").replace("-", "")]
        else:
            assert titles[title] in suites.SUITES[word]
    assert [title for title, word in suites.SIXTEEN.items() if word is None] == ["LiveCodeBench", "WildBench"]


def test_page_of_the_docs_is_up_to_date():
    page = Path(__file__).parents[2] / "docs" / "suites.md"
    assert page.read_text() == suites.page(), "run: python -m tasks.suites > docs/suites.md"


def test_expand_writes_suites_out_and_takes_each_task_once():
    found = suites.expand(["mine.yaml", "tb-coverage-six", "arc_easy", "zero-shot-eight"])
    assert found[:2] == ["mine.yaml", "arc_challenge"]
    assert len(found) == len(set(found)) == 1 + 6 + 3
    assert suites.headlines(["arc_easy", "maths"]) == {
        "maths": ["gsm8k/exact_match_flexible_extract", "hendrycks_math500/exact_match"]
    }


def test_average_is_of_independent_estimates():
    one = {"value": 0.2, "stderr": 0.03, "n": 10}
    other = {"value": 0.6, "stderr": 0.04, "n": 30}
    found = suites.average([one, other])
    assert found == {"value": pytest.approx(0.4), "stderr": pytest.approx(0.025), "n": 40}  # 3-4-5, halved
    assert suites.average([one, other | {"stderr": None}])["stderr"] is None
    assert math.isclose(suites.average([one] * 4)["stderr"], 0.03 / 2)


def test_digest_counts_what_lm_eval_would_read(tmp_path, monkeypatch):
    texts = {
        "task.yaml": "include: base\ntask: t\nprocess_docs: !function helper.make\n",
        "base": '"include": deeper.yaml\noutput_type: multiple_choice\n',
        "deeper.yaml": "metric_list: []\n",
        "helper.py": "def make(docs):\n    return docs\n",
    }
    for name, text in {**texts, "other.yaml": "task: u\n"}.items():
        (tmp_path / name).write_text(text)
    monkeypatch.setattr(suites, "files", lambda name: [tmp_path / "task.yaml"])
    before = suites.digest(suites.files("any"))
    (tmp_path / "other.yaml").write_text("task: changed\n")
    assert suites.digest(suites.files("any")) == before
    for name, text in texts.items():
        (tmp_path / name).write_text(text + "\n# changed\n")
        assert suites.digest(suites.files("any")) != before, name
        (tmp_path / name).write_text(text)
    assert suites.digest(suites.files("any")) == before


def tasks_of(name: str) -> dict[str, Any]:
    """lm-eval's objects for the twin of a task, made as an evaluation makes them."""
    with task_folder([name], False, True) as folder:
        loaded = TaskManager(include_path=str(folder), include_defaults=False).load([name])
    return loaded["tasks"]


@pytest.mark.parametrize("name", TWINS)
def test_twin_differs_from_lm_evals_definition_in_its_data_only(name: str):
    benchmarks_folder()
    place = {"dataset_path", "dataset_name", "dataset_kwargs"}
    splits = {"training_split", "validation_split", "test_split", "fewshot_split"}
    originals = [load_yaml(path, resolve_func=False) for path in suites.files(name)]
    by_name = {content.get("group", content.get("task")): content for content in originals if "group" in content}
    by_name |= {content["task"]: content for content in originals if "group" not in content}
    with task_folder([name], False, True) as folder:
        twins = [load_yaml(path, resolve_func=False) for path in folder.iterdir()]
    assert len(twins) == len(by_name)
    for twin in twins:
        own = by_name[twin.get("group", twin.get("task"))]
        changed = {key for key in own.keys() | twin.keys() if own.get(key) != twin.get(key)}
        if "group" in twin:
            assert not changed
            continue
        assert place - {"dataset_name"} <= changed <= place | splits
        # What lm-eval scores, test or else validation, is scored.
        assert (twin["test_split"] or twin["validation_split"]) == (own.get("test_split") or own["validation_split"])
        assert set(twin["dataset_kwargs"]["data_files"]) == set(suites.TASKS[name].splits)


END_OF_BOOLQ = "\nQuestion: does ethanol take more energy make that produces?\nAnswer:"
FIRST: dict[str, tuple[str, list[str], Any]] = {
    "arc_challenge": (
        "Question: An astronomer observes that a planet rotates faster after a meteorite impact. Which is the most "
        "likely effect of this increase in rotation?\nAnswer:",
        [
            " Planetary density will decrease.",
            " Planetary years will become longer.",
            " Planetary days will become shorter.",
            " Planetary gravity will become stronger.",
        ],
        2,
    ),
    "arc_easy": (
        "Question: Which statement best explains why photosynthesis is the foundation of most food webs?\nAnswer:",
        [
            " Sunlight is the source of energy for nearly all ecosystems.",
            " Most ecosystems are found on land instead of in water.",
            " Carbon dioxide is more available than other gases.",
            " The producers in all ecosystems are plants.",
        ],
        0,
    ),
    "boolq": ("Ethanol fuel -- All biomass goes through at least some of these steps: ", [" no", " yes"], 0),
    "hellaswag": (
        "Roof shingle removal: A man is sitting on a roof. He",
        [
            " is using wrap to wrap a pair of skis.",
            " is ripping level tiles off.",
            " is holding a rubik's cube.",
            " starts pulling up roofing on a roof.",
        ],
        3,
    ),
    "mmlu_abstract_algebra": (
        "The following are multiple choice questions (with answers) about abstract algebra.\n\nFind the degree for "
        "the given field extension Q(sqrt(2), sqrt(3), sqrt(18)) over Q.\nA. 0\nB. 4\nC. 2\nD. 6\nAnswer:",
        [" A", " B", " C", " D"],
        1,
    ),
    "openbookqa": (
        "A person wants to start saving money so that they can afford a nice vacation at the end of the year. After "
        "looking over their budget and expenses, they decide the best way to save money is to",
        [
            " make more phone calls",
            " quit eating lunch out",
            " buy less with monopoly money",
            " have lunch with friends",
        ],
        1,
    ),
    "piqa": (
        "Question: How do I ready a guinea pig cage for it's new occupants?\nAnswer:",
        [
            f" Provide the guinea pig with a cage full of a few inches of bedding made of ripped {what}, you will also "
            "need to supply it with a water bottle and a food dish."
            for what in ("paper strips", "jeans material")
        ],
        0,
    ),
    "rte": (
        "Dana Reeve, the widow of the actor Christopher Reeve, has died of lung cancer at age 44, according to the "
        "Christopher Reeve Foundation.\nQuestion: Christopher Reeve had an accident. True or False?\nAnswer:",
        [" True", " False"],
        1,
    ),
}
"""The first question that lm-eval asks of each with the Hub's data: prompt, choices, answer."""


@pytest.mark.parametrize("name", TWINS)
def test_twin_asks_what_lm_eval_asks(name: str):
    benchmarks_folder()
    tasks = tasks_of(name)
    task = tasks[min(tasks)]
    task.set_config("num_fewshot", 0)
    task.build_all_requests(limit=1, rank=0, world_size=1)
    asked = [instance.args for instance in task.instances]
    target = task.doc_to_target(task.instances[0].doc)
    if name == "winogrande":  # the choices are in the prompt, and what follows is the same
        assert asked == [
            (f"Sarah was a much better surgeon than Maria so {one}", " always got the easier cases.")
            for one in ("Sarah", "Maria")
        ]
        assert task.doc_to_text(task.instances[0].doc) == 1
        return
    prompt, choices, answer = FIRST[min(tasks)]
    assert {context for context, _ in asked} == {asked[0][0]}
    assert asked[0][0].startswith(prompt) if name == "boolq" else asked[0][0] == prompt
    assert asked[0][0].endswith(END_OF_BOOLQ) or name != "boolq"
    assert [choice for _, choice in asked] == choices
    assert target == answer


@pytest.mark.parametrize(("name", "count"), [("arc_easy", 2376), ("hellaswag", 10042), ("mmlu", 14042), ("rte", 277)])
def test_twin_has_as_many_questions_as_the_benchmark(name: str, count: int):
    benchmarks_folder()
    assert sum(len(task.eval_docs) for task in tasks_of(name).values()) == count


def test_twin_of_mmlu_takes_its_examples_from_dev():
    benchmarks_folder()
    task = tasks_of("mmlu")["mmlu_anatomy"]
    task.set_config("num_fewshot", 5)
    task.build_all_requests(limit=1, rank=0, world_size=1)
    prompt = task.instances[0].args[0]
    assert prompt.count("\nAnswer:") == 6
    assert prompt.index("What is the embryological origin of the hyoid bone?") < prompt.index("A lesion causing")


def test_twin_files_without_the_data_name_the_command(monkeypatch, tmp_path):
    monkeypatch.setenv("MOEPRUNE_BENCHMARKS", str(tmp_path / "nowhere"))
    with pytest.raises(BadInput, match=r"python -m tasks\.benchmarks"):
        twin_files("arc_easy")


def test_twin_files_of_a_generative_task_are_bad_input():
    with pytest.raises(BadInput, match=r"evaluate\.data: there is no local data of 'gsm8k'"):
        twin_files("gsm8k")
