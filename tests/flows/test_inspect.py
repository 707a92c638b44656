"""`moeprune inspect` on folders, config files and a Hub on the loopback interface."""

import json
import shutil
from pathlib import Path

import pytest
import tiny
import torch
from hub import Fault, closed_port, point_at, serve
from transformers import AutoModelForCausalLM, LlamaConfig

from moeprune.checkpoint import DTYPES

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "demo" / "model"
GEOMETRIES = ROOT / "tests" / "geometries"
NAME, COMMIT = "owner/demo", "c" * 40


@pytest.fixture(scope="module")
def sharded(tmp_path_factory):
    """The demo model in many files, with a card."""
    folder = tmp_path_factory.mktemp("sharded")
    AutoModelForCausalLM.from_pretrained(DEMO).save_pretrained(folder, max_shard_size="4MB")
    (folder / "README.md").write_text("a card")
    return folder


@pytest.fixture
def hub(sharded, tmp_path, monkeypatch):
    with serve({NAME: {COMMIT: sharded}}) as running:
        point_at(monkeypatch, running.url, tmp_path / "cache")
        yield running


@pytest.fixture
def refuse(moeprune):
    """Inspect what must be refused; returns the one line."""

    def call(*words: str) -> str:
        answer = moeprune("inspect", *words)
        assert (answer.status, answer.out) == (2, "")
        (line,) = answer.err.splitlines()
        assert line.startswith("error: ")
        return line

    return call


def told(answer) -> dict:
    assert answer.status == 0, answer.err
    return answer.json


def test_inspect_folder_shows_the_model_and_what_pruning_would_leave(moeprune):
    answer = moeprune("inspect", str(DEMO))
    assert answer.status == 0, answer.err
    for words in ("olmoe (OlmoeForCausalLM)", "4, all with experts", "16 a layer, 2 chosen", "16.94 MB in the files"):
        assert words in answer.out
    rows = [line.split() for line in answer.out.splitlines()]
    assert ["25%", "12", "6.70", "M", "2.27", "M", "13.39", "MB", "79.1%"] in rows
    assert "router_weight_norm" in answer.out and "tb_coverage" in answer.out


def test_inspect_page_fits_a_terminal_of_100_columns(moeprune, monkeypatch):
    from flows import show

    monkeypatch.setattr(show.console, "width", 100)
    page = moeprune("inspect", str(GEOMETRIES / "gpt-oss-20b.json")).out
    assert max(map(len, page.splitlines())) <= 100
    assert "…" not in page
    assert "as if it were not quantised, which names no dtype: float32" in " ".join(page.split())


def test_inspect_methods_that_are_not_possible_are_told_once_with_the_reason(moeprune, monkeypatch):
    from moeprune import methods
    from moeprune.errors import BadInput

    def experts_of(model: object) -> None:
        raise BadInput("download.source: made of one stone")

    monkeypatch.setattr(methods, "experts_of", experts_of)
    page = moeprune("inspect", str(DEMO)).out
    (line,) = [line for line in page.splitlines() if line.endswith("not possible: made of one stone")]
    assert {"reap", "mone", "hope"} <= set(line.replace(",", "").split())
    assert page.count("reap") == 1


def test_inspect_files_that_cannot_be_pruned_say_so_in_place_of_what_pruning_would_leave(moeprune, tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(DEMO, tmp_path / "more")
    file = next((tmp_path / "more").glob("*.safetensors"))
    unknown = {"model.layers.0.mlp.experts.0.secret": torch.ones(4)}
    save_file(load_file(file) | unknown, file, {"format": "pt"})
    index = tmp_path / "more/model.safetensors.index.json"
    if index.is_file():
        content = json.loads(index.read_text())
        content["weight_map"] |= dict.fromkeys(unknown, file.name)
        index.write_text(json.dumps(content))
    page = moeprune("inspect", str(tmp_path / "more")).out
    assert "prunable" in page and "experts.0.secret" in page
    assert "score.criterion" not in page and "what pruning would leave" not in page


def test_inspect_json_is_one_object_with_everything(moeprune):
    found = told(moeprune("inspect", str(DEMO), "--json"))
    assert (found["status"], found["error"], found["source"]) == ("done", None, str(DEMO))
    assert found["routing"]["experts"] == 16
    assert found["size"]["bytes"] == 16_939_392
    assert [pruned["keep"] for pruned in found["pruned"]] == [12, 8, 4]
    assert {"word": "aimer", "kind": "criterion", "needs": "weights", "refusal": ""} in found["methods"]


@pytest.mark.parametrize("name", DTYPES)
def test_dtype_is_shown_as_pytorch_calls_it(name):
    from flows.show_model import _dtype

    assert getattr(torch, _dtype(name)) == DTYPES[name]
    assert _dtype("F6_E2M3") == "f6_e2m3"


def test_inspect_folder_with_only_a_config_computes_sizes_and_says_so(moeprune, tmp_path):
    shutil.copyfile(DEMO / "config.json", tmp_path / "config.json")
    found, whole = (told(moeprune("inspect", str(folder), "--json")) for folder in (tmp_path, DEMO))
    assert (found["computed"], whole["computed"]) == (True, False)
    same = ("size", "pruned", "methods", "dtypes", "in_experts")
    assert {key: found[key] for key in same} == {key: whole[key] for key in same}
    assert "16.94 MB computed from the config: bfloat16" in moeprune("inspect", str(tmp_path)).out


@pytest.mark.parametrize("name", ["config.json", "another.json"])
def test_inspect_config_file_is_as_its_folder(name, moeprune, tmp_path):
    shutil.copyfile(DEMO / "config.json", tmp_path / name)
    found = told(moeprune("inspect", str(tmp_path / name), "--json"))
    assert (found["computed"], found["size"]["bytes"]) == (True, 16_939_392)


def test_inspect_hub_fetches_the_config_and_headers_alone(moeprune, hub, sharded):
    found = told(moeprune("inspect", NAME, "--revision", "main", "--json"))
    local = told(moeprune("inspect", str(sharded), "--json"))
    assert found | {"source": ""} == local | {"source": ""}
    files = list(sharded.glob("*.safetensors"))
    weights = sum(path.stat().st_size for path in files)
    assert len(files) > 3 and weights > 16e6
    # huggingface_hub asks for the first 100 kB of each file.
    assert sum(size for name, size in hub.served.items() if name.endswith(".safetensors")) <= 100_001 * len(files)
    assert hub.sent < weights / 10
    assert "README.md" not in hub.served


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((NAME, "--revision", "missing"), "does not give out owner/demo at revision missing"),
        (("owner/other",), "does not give out owner/other"),
    ],
)
def test_inspect_hub_without_the_model_is_refused(words, said, refuse, hub):
    assert said in refuse(*words)


@pytest.mark.parametrize("content", ["{", "{}", '{"weight_map": {}}'])
def test_inspect_hub_with_an_index_that_is_none_is_refused(content, refuse, sharded, tmp_path, monkeypatch):
    shutil.copytree(sharded, tmp_path / "broken")
    (tmp_path / "broken/model.safetensors.index.json").write_text(content)
    with serve({NAME: {COMMIT: tmp_path / "broken"}}) as running:
        point_at(monkeypatch, running.url, tmp_path / "cache")
        assert "model.safetensors.index.json" in refuse(NAME)


def test_inspect_hub_that_gates_the_files_is_refused(refuse, hub):
    hub.faults.append(Fault(r"\.safetensors", 403, "GatedRepo"))
    assert "gated" in refuse(NAME)


def test_inspect_hub_that_cannot_be_reached_is_refused(refuse, monkeypatch, tmp_path):
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")
    assert "cannot be reached" in refuse(NAME)


def test_inspect_ratio_that_the_router_refuses_shows_the_reason_and_the_nearest(moeprune, tmp_path):
    tiny.new_model("mixtral", num_experts_per_tok=4).save_pretrained(tmp_path)
    answer = moeprune("inspect", str(tmp_path))
    assert "75% not possible: " in answer.out
    assert "needs 4 (top-k 4)" in answer.out
    assert any(line.split()[:4] == ["75%:", "no,", "nearest", "4"] for line in answer.out.splitlines())


def test_inspect_code_of_the_model_runs_only_if_it_is_trusted(moeprune, refuse, tmp_path):
    for file in (ROOT / "tests" / "remote_models" / "deepseek").glob("*.*"):
        shutil.copyfile(file, tmp_path / file.name)
    assert "--trust-remote-code" in refuse(str(tmp_path))
    found = told(moeprune("inspect", str(tmp_path), "--trust-remote-code", "--json"))
    assert (found["model_type"], found["unobservable"], len(found["pruned"])) == ("deepseek", "", 3)


def dense(folder: Path) -> None:
    LlamaConfig().save_pretrained(folder)


def broken(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": "olmoe",')


def unknown(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "olmoa"}))


def mistyped(folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({"model_type": "mixtral", "num_local_experts": "8"}))


def unfit(folder: Path) -> None:
    tiny.new_model("mixtral").config.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"hidden_act": "no_such"}))


def empty(folder: Path) -> None:
    pass


def other_format(folder: Path) -> None:
    shutil.copyfile(DEMO / "config.json", folder / "config.json")
    (folder / "pytorch_model.bin").write_bytes(b"")


def truncated(folder: Path) -> None:
    shutil.copyfile(DEMO / "config.json", folder / "config.json")
    (folder / "model.safetensors").write_bytes((DEMO / "model.safetensors").read_bytes()[:-1])


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (dense, "model type 'llama' is not a Mixture-of-Experts model"),
        (broken, "config.json"),
        (unknown, "olmoa"),
        (mistyped, "'num_local_experts'"),
        (unfit, "cannot make a model"),
        (empty, "no config.json"),
        (other_format, "only safetensors checkpoints"),
        (truncated, "model.safetensors"),
    ],
)
def test_inspect_wrong_folder_is_refused_in_one_line(make, said, refuse, tmp_path):
    make(tmp_path)
    line = refuse(str(tmp_path))
    assert said in line
    assert "download.source" not in line


def test_inspect_source_that_is_not_there_is_refused(refuse):
    assert "there is no folder" in refuse("./nowhere")


def test_inspect_refusal_as_json_has_its_status(moeprune):
    answer = moeprune("inspect", "./nowhere", "--json")
    assert (answer.status, answer.json["status"]) == (2, "bad_input")
