"""A run whose mask is applied in memory only: killed, run again, and against the run that really pruned."""

import io
import json
import shutil
import sys
from collections.abc import Iterator
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import families
import killed
import pytest
from mlflow.tracking import MlflowClient
from safetensors.torch import load_file

from flows.command import main
from flows.fit import check_fit
from flows.planning import Plan, make_plan
from flows.recipe import Recipe, parse_recipe, read_recipe
from moeprune.checkpoint import Checkpoint
from moeprune.configs import read_routing
from moeprune.errors import BadInput
from moeprune.inspection import written
from moeprune.meta import meta_model
from moeprune.schema import read_plan

WHOLE, CHANGE = "params/whole.yaml", "evaluate.virtual=true"


@dataclass(frozen=True)
class Virtually:
    """A project whose real run was followed by a virtual one that was killed first; and what each said."""

    project: Path
    killed: int
    before: Plan
    after: Plan
    really: Plan
    said: str
    answer: dict[str, Any]

    def report(self, of: str) -> dict[str, Any]:
        """The report of the run's base or pruned model."""
        (path,) = [one["path"] for one in self.answer["stages"]["evaluate"]["artifacts"] if one["of"] == of]
        return json.loads((self.project / ".moeprune" / path / "report.json").read_text())


@pytest.fixture(scope="module")
def virtually(finished, tmp_path_factory, server) -> Iterator[Virtually]:
    project = tmp_path_factory.mktemp("virtually") / "project"
    shutil.copytree(finished[0], project)
    shutil.rmtree(project / ".moeprune/prune")  # it needs no checkpoint
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(project)
        patch.setattr("moeprune.footprint.measure", lambda *_: {})
        recipe = read_recipe(Path(WHOLE), (CHANGE,))
        before = make_plan(recipe)
        # The base is in the store; the mask's second corpus is not reached.
        words = ("run", WHOLE, "--set", CHANGE)
        code = killed.moeprune(project, words, "moeprune.perplexity.document_nll", 2, server)
        patch.setattr(sys, "argv", ["moeprune", *words, "--json"])
        with redirect_stdout(io.StringIO()) as out, suppress(SystemExit):
            main()
        said = out.getvalue()
        answer = json.loads(said.splitlines()[-1])
        assert answer["status"] == "done", answer["error"]
        yield Virtually(project, code, before, make_plan(recipe), make_plan(read_recipe(Path(WHOLE))), said, answer)


def test_plan_of_a_virtual_mask_writes_no_checkpoint_and_counts_a_copy_of_what_it_keeps(virtually, finished):
    states = {stage.step.title: stage.state for stage in virtually.before.stages}
    assert "prune" not in states and [title for title, state in states.items() if state == "run"] == ["evaluate pruned"]
    tensors = {
        name: tensor
        for path in Path(finished[1].json["checkpoint"]).glob("*.safetensors")
        for name, tensor in load_file(path).items()
    }
    assert virtually.really.disk - virtually.before.disk == sum(tensor.nbytes for tensor in tensors.values())
    of_experts = [tensor for name, tensor in tensors.items() if ".experts." in name or name.endswith("mlp.gate.weight")]
    assert virtually.before.copied == sum(tensor.nbytes for tensor in of_experts)
    assert virtually.really.copied is None
    assert {stage.state for stage in virtually.after.stages} == {"hit"}


def test_run_of_a_virtual_mask_killed_and_run_again_finds_what_the_pruned_checkpoint_did(virtually, finished):
    assert virtually.killed == -9
    store, expected = virtually.project / ".moeprune", finished[1].json["metrics"]
    assert not (store / "prune").exists() and not list(store.glob("*/.*.building"))
    assert virtually.answer["checkpoint"] is None and "prune" not in virtually.answer["stages"]
    caches = {one["of"]: one["cache"] for one in virtually.answer["stages"]["evaluate"]["artifacts"]}
    assert caches == {"base": "hit", "pruned": "miss"}
    assert virtually.answer["metrics"].keys() == expected.keys()
    for of, metrics in virtually.answer["metrics"].items():
        assert metrics.keys() == expected[of].keys()
        for name, metric in metrics.items():
            assert metric == pytest.approx(expected[of][name], rel=1e-5, abs=1e-5), (of, name)


def test_run_of_a_virtual_mask_calls_its_memory_computed_wherever_it_is_shown(virtually):
    assert virtually.report("base")["memory_known"] == "measured"
    report = virtually.report("pruned")
    assert report["memory_known"] == "computed"
    assert report["memory"].keys() == {"disk", "weights", "parameters", "active_parameters"}
    rows = [[cell.strip() for cell in line.split("│")[1:2]] for line in virtually.said.splitlines()]
    for kind in ("disk", "weights", "parameters", "active parameters"):
        assert [f"{kind} (computed)"] in rows and [kind] not in rows
    assert "no checkpoint was written" in virtually.said
    client = MlflowClient(f"sqlite:///{virtually.project}/.moeprune/mlflow.db")
    logged = client.get_run(virtually.answer["run_id"]).data.metrics
    assert logged["pruned/memory_computed/weights"] == report["memory"]["weights"]
    assert not [name for name in logged if name.startswith("pruned/memory/")]
    assert [name for name in logged if name.startswith("base/memory/")]


CONTENT = {
    "download": {"source": "model"},
    "calibrate": {"corpora": [{"name": "wiki", "source": "a"}]},
    "mask": {"ratio": 0.25},
    "evaluate": {"virtual": True},
}


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"distill": {}}, "distill trains the checkpoint"),
        ({"evaluate": {"virtual": True, "expert_skipping": True}}, "evaluate.expert_skipping observes the checkpoint"),
        (
            {"mask": {"sparsity": 0.5}, "score": {"criterion": "wanda"}, "observe": {"sums": ["inputs"]}},
            "mask.sparsity zeroes weights inside experts",
        ),
    ],
    ids=["distill", "skipping", "sparsity"],
)
def test_recipe_that_needs_a_checkpoint_is_refused_a_virtual_mask(sections: dict[str, Any], words: str):
    with pytest.raises(BadInput, match=rf"^recipe: evaluate.virtual: {words}.*: set it to false$"):
        parse_recipe(CONTENT | sections, "recipe")
    assert not parse_recipe(CONTENT | sections | {"evaluate": {"virtual": False}}, "recipe").virtual


def fit(recipe: Recipe, quantised: dict[str, Any] | None) -> None:
    config = families.tiny_config("deepseek_v3")
    if quantised:
        config.quantization_config = quantised
    model = meta_model(config)
    check_fit(recipe, model, Checkpoint(Path(), written(model)), read_plan(config), read_routing(config))


def test_quantised_model_is_refused_a_virtual_mask():
    recipe, fp8 = parse_recipe(CONTENT, "recipe"), {"quant_method": "fp8", "weight_block_size": [128, 128]}
    with pytest.raises(BadInput, match=r"^evaluate.virtual: .* quantised \(fp8\).* set it to false$"):
        fit(recipe, fp8)
    fit(recipe, None)
    fit(parse_recipe(CONTENT | {"evaluate": {}}, "recipe"), fp8)
