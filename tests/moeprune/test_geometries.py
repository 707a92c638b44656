"""Published models at their real size: tests/geometries/*.json, of which only tensors on the meta device are made.

The references are what was published of each model: its parameters, and its experts' width and number written out.
"""

import json
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from transformers import DeepseekV3Config, Ernie4_5_MoeConfig, Glm4MoeConfig, MixtralConfig, Qwen2MoeConfig

from moeprune.configs import read_config, read_routing
from moeprune.errors import BadInput

GEOMETRIES = Path(__file__).parents[1] / "geometries"
REMOTE = Path(__file__).parents[1] / "remote_models" / "deepseek"

SCRIPT = r"""
import json, re, sys
from dataclasses import asdict
from pathlib import Path
from moeprune.configs import read_config
from moeprune.inspection import inspect
from moeprune.schema import layer_of, read_plan
for folder in map(Path, sys.argv[1:]):
    config = read_config(folder, True)
    told = asdict(inspect(config, folder, None, True))
    plan = read_plan(config, True)
    of_experts = [name for name in plan.shapes if ".experts." in name and "score_correction" not in name]
    told["unexplained"] = [name for name in of_experts if name not in plan.axes and plan.expert_of(name) is None]
    told["routers"] = sorted({layer_of(name) for name, shape in plan.shapes.items() if plan.is_router(name, shape)})
    # Not ru_maxrss, which begins with that of the process it was forked from.
    told["peak"] = 1024 * int(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
    print(json.dumps(told), flush=True)
"""
"""Inspects models one after the other in a process of its own: `peak` is the largest until then."""


@dataclass(frozen=True)
class Published:
    """Parameters in 1e9, each with the figures its authors give; some leave the input embedding out of the active.

    Then the layers with and without experts, experts of a layer, and those chosen, and the sizes that an expert is
    made of: hidden, its own inner one, and matrices of hidden x inner with their biases.
    """

    total: str
    active: str
    layers: int
    dense: int
    experts: int
    top_k: int
    shared: int
    hidden: int
    inner: int
    embedding_active: bool = True
    biases: int = 0
    groups: int = 1

    @property
    def expert(self) -> int:
        """Parameters of one expert: gate, up and down projection."""
        return 3 * self.hidden * self.inner + self.biases


PUBLISHED = {
    "OLMoE-1B-7B-0924": Published("6.9", "1.3", 16, 0, 64, 8, 0, 2048, 1024),
    "Qwen1.5-MoE-A2.7B": Published("14.3", "2.7", 24, 0, 60, 4, 1, 2048, 1408),
    "DeepSeek-MoE-16B": Published("16.4", "2.8", 27, 1, 64, 6, 2, 2048, 1408),
    "DeepSeek-V2-Lite": Published("15.7", "2.4", 26, 1, 64, 6, 2, 2048, 1408, embedding_active=False),
    "ERNIE-4.5-21B-A3B-PT": Published("21", "3", 27, 1, 64, 6, 2, 2560, 1536),
    "Qwen3-30B-A3B": Published("30.5", "3.3", 48, 0, 128, 8, 0, 2048, 768),
    "Mixtral-8x7B-v0.1": Published("46.7", "12.9", 32, 0, 8, 2, 0, 4096, 14336),
    "gpt-oss-20b": Published(
        "20.9", "3.6", 24, 0, 32, 4, 0, 2880, 2880, embedding_active=False, biases=2 * 2880 + 2880
    ),
    "GLM-4.5-Air": Published("106", "12", 45, 1, 128, 8, 1, 4096, 1408, embedding_active=False),
    "DeepSeek-V3": Published("671", "37", 58, 3, 256, 8, 1, 7168, 2048, groups=8),
}

EMBEDDINGS = {"DeepSeek-V2-Lite": 102400 * 2048, "gpt-oss-20b": 201088 * 2880, "GLM-4.5-Air": 151552 * 4096}


def prepared(name: str, folder: Path) -> Path:
    """A folder with the model's config.json, and its code if transformers has none."""
    shutil.copyfile(GEOMETRIES / f"{name}.json", folder / "config.json")
    if "auto_map" in json.loads((folder / "config.json").read_text()):
        for code in REMOTE.glob("*.py"):
            shutil.copyfile(code, folder / code.name)
    return folder


@pytest.fixture(scope="module")
def inspected(tmp_path_factory):
    """By model, what inspecting it told, and what its plan does not explain."""
    folders = [prepared(name, tmp_path_factory.mktemp(name)) for name in PUBLISHED]
    done = subprocess.run([sys.executable, "-c", SCRIPT, *folders], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return dict(zip(PUBLISHED, map(json.loads, done.stdout.splitlines()), strict=True))


def as_published(parameters: int, figure: str) -> bool:
    """Whether a number is a published one of so many digits: some authors round, others cut off."""
    return abs(parameters / 1e9 - float(figure)) < 10 ** -len(figure.partition(".")[2])


def test_geometries_all_have_their_published_figures():
    assert {path.stem for path in GEOMETRIES.glob("*.json")} == set(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_has_the_published_parameters(name, inspected):
    found, published = inspected[name], PUBLISHED[name]
    assert as_published(found["size"]["parameters"], published.total)
    left_out = 0 if published.embedding_active else EMBEDDINGS[name]
    assert as_published(found["size"]["active"] - left_out, published.active)


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_layers_and_experts_are_those_of_the_hand_formula(name, inspected):
    found, published = inspected[name], PUBLISHED[name]
    assert found["layers"] == published.layers + published.dense
    assert found["expert_layers"] == list(range(published.dense, published.layers + published.dense))
    routing = found["routing"]
    assert (routing["experts"], routing["top_k"], routing["groups"]) == (
        published.experts,
        published.top_k,
        published.groups,
    )
    assert found["shared_experts"] == published.shared
    assert found["in_experts"] == published.layers * published.experts * published.expert
    unused = published.layers * (published.experts - published.top_k) * published.expert
    assert found["size"]["active"] == found["size"]["parameters"] - unused


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_pruned_loses_experts_and_router_rows_and_nothing_else(name, inspected):
    found, published = inspected[name], PUBLISHED[name]
    row, row_bytes = router_row(name)
    width = 2 if found["dtype"] == "bfloat16" else 4
    for pruned, ratio in zip(found["pruned"], (0.25, 0.5, 0.75), strict=True):
        gone = int(ratio * published.experts)
        assert (pruned["keep"], pruned["refusal"]) == (published.experts - gone, "")
        lost = published.layers * gone
        assert pruned["size"]["parameters"] == found["size"]["parameters"] - lost * (published.expert + row)
        assert pruned["size"]["bytes"] == found["size"]["bytes"] - lost * (width * published.expert + row_bytes)
        assert pruned["size"]["active"] == found["size"]["active"] - lost * row


def router_row(name: str) -> tuple[int, int]:
    """(parameters, bytes) of what a router has for each expert."""
    hidden = PUBLISHED[name].hidden
    if name == "ERNIE-4.5-21B-A3B-PT":  # weight and correction bias are kept in float32
        return hidden + 1, 4 * (hidden + 1)
    if name in ("DeepSeek-V3", "GLM-4.5-Air"):  # the correction bias is
        return hidden + 1, 2 * hidden + 4
    if name == "gpt-oss-20b":  # its config names no dtype, and its router has a bias
        return hidden + 1, 4 * (hidden + 1)
    return hidden, 2 * hidden


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_plan_explains_every_tensor_of_the_experts(name, inspected):
    found = inspected[name]
    assert found["unexplained"] == []
    assert found["routers"] == found["expert_layers"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_routers_refuse_what_does_not_work(name, tmp_path):
    routing, published = read_routing(read_config(prepared(name, tmp_path), True)), PUBLISHED[name]
    routing.check(published.experts * 3 // 4)
    with pytest.raises(BadInput):
        routing.check(published.top_k - 1)
    if published.groups == 1:
        routing.check(published.top_k)
    else:
        with pytest.raises(BadInput, match=f"{published.groups}"):
            routing.check(published.experts * 3 // 4 + 1)


@pytest.mark.parametrize("name", PUBLISHED)
def test_geometry_is_inspected_in_under_2_gb(name, inspected):
    assert inspected[name]["peak"] < 2e9


@pytest.mark.parametrize(
    ("name", "defaults", "other"),
    [
        ("Qwen1.5-MoE-A2.7B", Qwen2MoeConfig, {"max_position_embeddings"}),
        ("ERNIE-4.5-21B-A3B-PT", Ernie4_5_MoeConfig, set()),
        ("Mixtral-8x7B-v0.1", MixtralConfig, {"max_position_embeddings"}),
        ("DeepSeek-V3", DeepseekV3Config, {"max_position_embeddings"}),
        ("GLM-4.5-Air", Glm4MoeConfig, {"attention_bias"}),
    ],
)
def test_geometry_agrees_with_the_defaults_of_the_class_made_for_it(name, defaults, other):
    given, made = json.loads((GEOMETRIES / f"{name}.json").read_text()), defaults()
    numbers = {key for key, value in given.items() if isinstance(value, int) and hasattr(made, key)}
    assert len(numbers) > 10
    different = {key for key in numbers if given[key] != getattr(made, key)}
    ids = {key for key in numbers if key.endswith("_token_id")}
    assert different - ids == other
