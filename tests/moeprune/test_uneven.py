"""Checkpoints whose layers hold different numbers of experts, of every family, loaded by the code beside them."""

import json
import shutil
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import brute_force
import families
import pytest
import tiny
import torch
from observed import corpus_of
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, LlamaConfig, LlamaModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from moeprune import loader
from moeprune.checkpoint import Checkpoint, open_checkpoint
from moeprune.configs import read_config, read_routing
from moeprune.errors import BadInput
from moeprune.file_plan import read_file_plan
from moeprune.masks import Mask
from moeprune.meta import meta_model
from moeprune.models import load_model
from moeprune.observation import observe_chunk
from moeprune.observer import Observer
from moeprune.schema import Plan, read_plan
from moeprune.sizes import parameters, pruned_bytes
from moeprune.surgery import prune_checkpoint
from moeprune.uneven import check_uneven

TOLERANCE = 1e-5
FAMILIES = [family for family in families.discovered() if family != "doge"]
every_family = pytest.mark.parametrize("family", FAMILIES)
IDS = torch.stack(tiny.token_ids(24, 24, seed=4))


def load(folder: Path) -> torch.nn.Module:
    """The model by transformers, which must be given leave to run the code beside it."""
    model, info = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True, output_loading_info=True)
    MODEL_FOR_CAUSAL_LM_MAPPING._extra_content.clear()  # where it is noted for the process: other tests list families
    for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[kind], f"{kind}: {info[kind]}"
    return model.eval()


@dataclass(frozen=True)
class Case:
    """A family's tiny model on disk and what becomes of it; each step is made once, by the first test that needs it."""

    family: str
    folder: Path

    @cached_property
    def source(self) -> Checkpoint:
        """The whole checkpoint."""
        families.tiny_model(self.family).save_pretrained(self.folder / "whole")
        return open_checkpoint(self.folder / "whole")

    @cached_property
    def plan(self) -> Plan:
        """Its plan."""
        return read_plan(read_config(self.source.folder))

    @cached_property
    def mask(self) -> Mask:
        """Other numbers of experts, and other ones, in each layer."""
        routing = read_routing(read_config(self.source.folder))
        numbers = [number for number in range(routing.experts + 1) if routing.works(number)][-3:]
        size, generator = routing.experts // routing.groups, torch.Generator().manual_seed(5)
        kept = {}
        for i, layer in enumerate(self.plan.layers):
            each = numbers[(i + 1) % len(numbers)] // routing.groups
            chosen = [
                torch.randperm(size, generator=generator)[:each] + group * size for group in range(routing.groups)
            ]
            kept[layer] = tuple(sorted(torch.cat(chosen).tolist()))
        return Mask("0" * 64, routing.experts, kept)

    @cached_property
    def pruned(self) -> Checkpoint:
        """What is left of it by the mask."""
        (self.folder / "pruned").mkdir()
        prune_checkpoint(self.source, self.plan, self.mask, self.folder / "pruned", 10**9)
        return open_checkpoint(self.folder / "pruned")

    @cached_property
    def model(self) -> torch.nn.Module:
        """That, loaded by transformers."""
        return load(self.pruned.folder)


@pytest.fixture(scope="session")
def case(tmp_path_factory):
    return lru_cache(lambda family: Case(family, tmp_path_factory.mktemp(family)))


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


@every_family
def test_uneven_checkpoint_equals_the_model_with_router_logits_at_minus_infinity(family, case):
    case = case(family)
    assert case.mask.uneven
    whole, found = tiny.load(case.source.folder), tiny.logits(case.model, IDS)
    assert distance(found, brute_force.masked_logits(whole, IDS, case.mask.kept)) < TOLERANCE
    assert distance(found, tiny.logits(whole, IDS)) > 1e-3, "pruning changed nothing: the comparison shows nothing"


@every_family
def test_uneven_checkpoint_saved_again_is_the_same_and_loads(family, case, tmp_path):
    case = case(family)
    case.model.save_pretrained(tmp_path)
    again = open_checkpoint(tmp_path)
    assert {name: info.shape for name, info in again.tensors.items()} == {
        name: info.shape for name, info in case.pruned.tensors.items()
    }
    for key in ("model_type", "architectures", "auto_map", "moeprune"):
        assert again.config[key] == case.pruned.config[key]
    assert (tmp_path / loader.FILE.name).read_bytes() == loader.FILE.read_bytes()
    assert torch.equal(tiny.logits(load(tmp_path), IDS), tiny.logits(case.model, IDS))


@pytest.fixture
def plain(case):
    """The family that is looked at where one is as good as another."""
    return case("qwen3_moe")


def test_uneven_checkpoint_generates_as_the_masked_model_does(plain):
    prompt = IDS[:1, :8]
    written = plain.model.generate(prompt, max_new_tokens=4, do_sample=False)
    whole = tiny.load(plain.source.folder)
    expected = prompt
    for _ in range(4):
        following = brute_force.masked_logits(whole, expected, plain.mask.kept)[:, -1].argmax(-1)
        expected = torch.cat([expected, following[:, None]], 1)
    assert torch.equal(written, expected)


def test_uneven_checkpoint_is_refused_by_transformers_without_leave_to_run_its_code(plain):
    for kind in (AutoConfig, AutoModelForCausalLM):
        with pytest.raises(ValueError, match="trust_remote_code"):
            kind.from_pretrained(plain.pruned.folder, trust_remote_code=False)


def test_uneven_checkpoint_taken_for_a_stock_one_is_not_loaded_with_random_experts(plain, tmp_path):
    shutil.copytree(plain.pruned.folder, tmp_path / "stock")
    config = json.loads((tmp_path / "stock/config.json").read_text())
    config |= {"model_type": "qwen3_moe", "auto_map": {}}
    (tmp_path / "stock/config.json").write_text(json.dumps(config))
    with pytest.raises(RuntimeError, match="mismatch"):
        AutoModelForCausalLM.from_pretrained(tmp_path / "stock")


def test_uneven_checkpoint_says_what_it_is(plain):
    content = plain.pruned.config
    assert content["model_type"] == "moeprune_uneven_qwen3_moe"
    assert content["architectures"] == ["UnevenQwen3MoeForCausalLM"]
    assert content["moeprune"]["experts"] == {f"model.layers.{i}": n for i, n in plain.mask.counts.items()}
    assert "trust_remote_code=True" in content["moeprune"]["about"]
    text = (plain.pruned.folder / loader.FILE.name).read_text()
    assert text == loader.FILE.read_text() and "vLLM" in text.split('"""')[1]
    lines = [line for line in text.splitlines() if line.startswith(("import", "from"))]
    assert all(line.split()[1].split(".")[0] in ("copy", "operator", "typing", "transformers") for line in lines)


def test_uneven_checkpoint_keeps_the_type_by_which_transformers_chooses_a_tokenizer(plain):
    assert plain.model.config.model_type == "qwen3_moe"
    assert plain.model.config.to_dict()["model_type"] == "moeprune_uneven_qwen3_moe"


def test_uneven_checkpoint_is_loaded_by_our_own_code_never_by_the_folders(plain, tmp_path):
    shutil.copytree(plain.pruned.folder, tmp_path / "other")
    (tmp_path / "other" / loader.FILE.name).write_text("raise SystemExit('the code of the folder was run')\n")
    model = load_model(tmp_path / "other", "float32")
    assert distance(tiny.logits(model, IDS), tiny.logits(plain.model, IDS)) < TOLERANCE


def test_uneven_model_made_from_its_config_alone_has_its_counts_and_no_empty_weights(plain):
    config = AutoConfig.from_pretrained(plain.pruned.folder, trust_remote_code=True)
    model = AutoModelForCausalLM.from_config(config, trust_remote_code=True)
    shapes = {name: tensor.shape for name, tensor in plain.model.state_dict().items()}
    assert {name: tensor.shape for name, tensor in model.state_dict().items()} == shapes
    assert tiny.logits(model, IDS).isfinite().all()


def test_uneven_config_is_read_as_the_stock_one_with_the_largest_count(plain):
    folder = plain.pruned.folder
    config, whole = read_config(folder), read_config(plain.source.folder)
    assert type(config) is type(whole) and config.model_type == "qwen3_moe"
    assert read_routing(config).experts == max(plain.mask.counts.values())
    assert loader.counts(config) == plain.pruned.config["moeprune"]["experts"]
    assert loader.counts(whole) is None and not loader.is_uneven(plain.source.folder)
    assert read_config(folder / "config.json").to_dict() == config.to_dict()


@pytest.mark.parametrize("family", ["qwen3_moe", "mixtral", "gpt_oss", "deepseek_v3"])
def test_uneven_parameters_and_bytes_are_those_of_the_model(family, case):
    case = case(family)
    assert pruned_bytes(case.source, case.plan, case.mask) == case.pruned.weight_bytes
    plan, blocks = read_file_plan(case.pruned), tiny.moe_blocks(case.model)
    total = sum(tensor.numel() for tensor in case.model.state_dict().values())
    idle = sum(
        sum(tensor.numel() for tensor in blocks[layer].experts.parameters()) * (count - tiny.TOP_K) / count
        for layer, count in case.mask.counts.items()
    )
    assert parameters(case.pruned, plan, plan.experts, tiny.TOP_K) == (total, round(total - idle))
    uniform = Mask("", case.plan.experts, dict.fromkeys(case.plan.layers, (0, 1, 2, 3)))
    assert pruned_bytes(case.source, case.plan, uniform) == pruned_bytes(case.source, case.plan, 4)


def test_uneven_model_is_observed_like_the_masked_one(plain):
    corpus = corpus_of(tiny.token_ids(14, 9, 20), [0, 0, 0])
    model = load_model(plain.pruned.folder, "float32")
    with Observer(model, ("core", "vectors", "pairs"), ("deployed",)) as observer:
        found = observe_chunk(model, observer, corpus, 0, 4)
    for number, (layer, count) in enumerate(plain.mask.counts.items()):
        one = found.count[0, number]
        assert found.layer[number] == layer and one[:count].sum() == found.tokens[0] * 2 and not one[count:].any()


def test_uneven_counts_of_a_model_that_is_no_causal_language_model_are_refused():
    with torch.device("meta"):
        model = LlamaModel(LlamaConfig(num_hidden_layers=1))
    with pytest.raises(BadInput, match="choose a rule that keeps equally many"):
        check_uneven(model, {"model_type": "llama"})


def test_uneven_counts_of_the_text_tower_of_a_composite_config_are_refused():
    text = {"num_hidden_layers": 1, "num_local_experts": 4, "hidden_size": 16, "intermediate_size": 8, "head_dim": 8}
    config = CONFIG_MAPPING["llama4"](text_config=text, architectures=["Llama4ForCausalLM"])
    with pytest.raises(BadInput, match="not for the llama4_text within a llama4: choose a rule"):
        check_uneven(meta_model(config), {"model_type": "llama4"})
