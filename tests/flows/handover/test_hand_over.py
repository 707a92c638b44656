"""What is handed over: a folder or a repository that others load, with a card that says where it came from."""

import json
import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import sample
import torch
import yaml
from commanded import run_in
from hub import Fault, Hub, closed_port, point_at, serve
from huggingface_hub import HfApi, ModelCard, constants
from mlflow.tracking import MlflowClient
from transformers import AutoModelForCausalLM, AutoTokenizer

from flows.handover import hand_over
from flows.upkeep.collect import collect
from moeprune.checkpoint import open_checkpoint
from moeprune.errors import BadInput
from moeprune.hashing import digest_of, sha256
from moeprune.masks import Mask

BASE, COMMIT, TARGET = "owner/base", "c" * 40, "owner/smaller"
CARD = (
    "---\nlicense: other\nlicense_name: tiny-1.0\nlicense_link: LICENSE.md\nlanguage: [en]\ntags: [ours]\n---\n# Base\n"
)


@pytest.fixture(scope="module")
def runs(finished, tmp_path_factory, server) -> tuple[Path, str, str]:
    """A project after a run from its folder `model` and one of the same model from the Hub: the two runs' ids."""
    project = tmp_path_factory.mktemp("handing_over") / "project"
    shutil.copytree(finished[0], project)
    (project / "model/README.md").write_text(CARD)
    (project / "model/LICENSE.md").write_text("terms of use")
    with pytest.MonkeyPatch.context() as patch, serve({BASE: {COMMIT: project / "model"}}) as hub:
        point_at(patch, hub.url, project.parent / "cache")
        fetched = run_in(project, "params/whole.yaml", f"download.source={BASE}")
    return project, finished[1].json["run_id"], fetched


@pytest.fixture
def project(runs, tmp_path, monkeypatch) -> Path:
    """A copy of the project; the working directory."""
    shutil.copytree(runs[0], tmp_path / "project")
    monkeypatch.chdir(tmp_path / "project")
    return tmp_path / "project"


@pytest.fixture
def hub(project, tmp_path, monkeypatch):
    """A Hub that has the base model, and takes large files over plain HTTP."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    with serve({BASE: {COMMIT: project / "model"}}) as running:
        point_at(monkeypatch, running.url, tmp_path / "cache")
        yield running


def hashes(folder: Path) -> dict[str, str]:
    return {str(path.relative_to(folder)): sha256(path) for path in folder.rglob("*") if path.is_file()}


def checkpoint(run: str) -> Path:
    tags = MlflowClient(f"sqlite:///{Path.cwd()}/.moeprune/mlflow.db").get_run(run).data.tags
    return Path(".moeprune", tags["artifact.prune"])


def manifest(run: str) -> dict:
    return json.loads((checkpoint(run) / "manifest.json").read_text())


def content(hub: Hub, repository: str = TARGET) -> Path:
    found = hub.folder(repository, None)
    assert found
    return found[1]


def test_export_loads_gives_the_same_logits_and_has_the_checkpoints_digest(runs, project, moeprune):
    before = hashes(project / ".moeprune/prune")
    answer = moeprune("export", runs[1], "out/smaller", "--json")
    assert answer.status == 0, answer.err
    folder = Path("out/smaller")
    assert answer.json["folder"] == str(folder.absolute()) and set(answer.json["files"]) == {
        path.name for path in folder.iterdir()
    }
    assert [path.name for path in folder.parent.iterdir()] == ["smaller"]
    assert hashes(project / ".moeprune/prune") == before
    digest = digest_of({name: sha256(folder / name) for name in open_checkpoint(folder).files})
    assert digest == manifest(runs[1])["digest"] == answer.json["digest"]
    tokens = AutoTokenizer.from_pretrained(folder)("the river of a small town", return_tensors="pt")
    ours, stores = (AutoModelForCausalLM.from_pretrained(one).eval() for one in (folder, checkpoint(runs[1])))
    with torch.no_grad():
        assert torch.equal(ours(**tokens).logits, stores(**tokens).logits)
    # What is edited in the folder is not edited in the store.
    (folder / "config.json").write_text("{}")
    assert hashes(project / ".moeprune/prune") == before


def test_exported_recipe_makes_the_same_checkpoint_again(runs, project, run, moeprune):
    assert moeprune("export", runs[1], "smaller").status == 0
    answer = run("smaller/recipe.yaml")
    assert answer.missed == [] and Path(answer.json["checkpoint"]).samefile(checkpoint(runs[1]))


def test_card_of_a_model_from_the_hub_names_base_commit_and_licence(runs, project, hub, moeprune):
    answer = moeprune("export", runs[2], "smaller")
    assert answer.status == 0, answer.err
    card = ModelCard.load("smaller/README.md")
    assert card.data.to_dict() == {
        "base_model": BASE,
        "language": ["en"],
        "library_name": "transformers",
        "license": "other",
        "license_name": "tiny-1.0",
        "license_link": "LICENSE.md",
        "pipeline_tag": "text-generation",
        "tags": ["moe", "pruning", "expert-pruning", "moeprune"],
    }
    assert Path("smaller/LICENSE.md").read_text() == "terms of use"
    assert f"{BASE}/tree/{COMMIT}" in card.text and "`tiny-1.0`; its terms are in `LICENSE.md`" in card.text
    assert not [name for name in hub.served if name.endswith(".safetensors")], "the base model was fetched again"


def test_card_tells_what_was_removed_the_mix_the_results_and_every_hash(runs, project, moeprune):
    assert moeprune("export", runs[1], "smaller").status == 0
    text = ModelCard.load("smaller/README.md").text
    client = MlflowClient(f"sqlite:///{project}/.moeprune/mlflow.db")
    run = client.get_run(runs[1])
    tags = run.data.tags
    mask = Mask.from_json(Path(".moeprune", tags["artifact.mask"], "mask.json").read_text())
    for layer in mask.kept:
        assert f"| {layer} | 2 | {' '.join(map(str, mask.removed(layer)))} |" in text
    assert "Chosen by `reap`" in text and "arXiv:2510.13999" in text
    for name in sample.CORPORA:
        facts = json.loads(Path(".moeprune", tags[f"artifact.calibrate {name}"], "manifest.json").read_text())["facts"]
        row = next(line for line in text.splitlines() if line.startswith(f"| {name} | `sources/{name}.jsonl`"))
        assert f"| {facts['documents']} of 60 | {facts['tokens']} | 50% |" in row
        assert f"`{sha256(Path(f'sources/{name}.jsonl'))}` | `{tags[f'dvc.calibrate {name}']}`" in row
    recipe = yaml.safe_load(Path("smaller/recipe.yaml").read_text())
    held_out = ", ".join(f"{one['name']} (`{one['source']}`)" for one in recipe["evaluate"]["corpora"])
    assert f"Held-out text: {held_out}." in text and "wiki (`" in held_out and "\n\nPeaks are those of" in text
    metrics = run.data.metrics
    row = next(line for line in text.splitlines() if line.startswith("| perplexity/wiki"))
    assert f"{metrics['pruned/perplexity/wiki']:.2f} ± {metrics['pruned/perplexity/wiki_stderr']:.2f}" in row
    difference = (metrics[f"delta/log_perplexity/wiki{end}"] for end in ("", "_stderr"))
    assert " ± ".join(f"{number:.4f}" for number in difference) in row
    for title, path in tags.items():
        if title.startswith("artifact.") and not title.startswith("artifact.evaluate"):
            found = json.loads(Path(".moeprune", path, "manifest.json").read_text())
            row = next(
                line for line in text.splitlines() if line.startswith(f"| {title.removeprefix('artifact.')} | `")
            )
            assert found["key"][:16] in row and found["digest"] in row
            assert found["producer"]["git_commit"][:12] in row
    for name, file in manifest(runs[1])["files"].items():
        assert f"| {name} | {file['bytes']:,} | `{file['sha256']}` |" in text
    assert runs[1] in text and "trust_remote_code" not in text and "vllm serve smaller\n" in text


def test_export_without_the_hub_says_that_the_licence_is_not_known(runs, project, monkeypatch, tmp_path, moeprune):
    point_at(monkeypatch, f"http://127.0.0.1:{closed_port()}", tmp_path / "cache")
    answer = moeprune("export", runs[2], "smaller")
    assert answer.status == 0 and "licence is not known" in answer.out
    card = ModelCard.load("smaller/README.md")
    assert card.data.license is None and card.data.base_model == BASE
    assert "could not be carried over" in card.text and "the Hub could not be asked" in card.text


def test_export_into_what_is_there_or_of_what_is_not_is_refused(runs, project, moeprune):
    Path("there").mkdir()
    Path("there/file").write_text("mine")
    answer = moeprune("export", runs[1], "there")
    assert answer.status == 2 and "not empty" in answer.err and hashes(Path("there")).keys() == {"file"}
    answer = moeprune("export", runs[1], "there/file/smaller")
    assert answer.status == 2 and "cannot be made (Not a directory)" in answer.err
    (checkpoint(runs[1]) / "config.json").write_text("{}")
    answer = moeprune("export", runs[1], "smaller")
    assert answer.status == 2 and "config.json is not what was written" in answer.err
    assert answer.err.count("\n") == 1 and not Path("smaller").exists()


@pytest.mark.parametrize(("words", "work"), [(("export", "smaller"), "_copy"), (("push", TARGET), "publish")])
def test_what_is_handed_over_is_not_taken_by_gc_meanwhile(
    words: tuple[str, str], work: str, runs, project, hub, moeprune, monkeypatch
):
    command, target = words
    hand_on, gone = getattr(hand_over, work), []

    def beside_gc(*arguments):
        gone.extend(collect(project / ".moeprune", budget=0, unnamed=True, delete=True).items)
        return hand_on(*arguments)

    monkeypatch.setattr(hand_over, work, beside_gc)
    answer = moeprune(command, runs[2], target)
    assert answer.status == 0, answer.err
    assert gone and checkpoint(runs[2]).is_dir()


def test_export_into_the_same_folder_twice_at_once_is_that_of_one_of_them(runs, project, monkeypatch):
    copy, done = hand_over._copy, []

    def beside_another(*arguments):
        if not done:
            done.append(others.submit(hand_over.export, runs[1], Path("smaller"), Path(".moeprune")))
            with pytest.raises(TimeoutError):
                done[0].result(3)
        copy(*arguments)

    monkeypatch.setattr(hand_over, "_copy", beside_another)
    with ThreadPoolExecutor(1) as others:
        hand_over.export(runs[1], Path("smaller"), Path(".moeprune"))
        with pytest.raises(BadInput, match="is there already and not empty"):
            done[0].result()
    assert AutoModelForCausalLM.from_pretrained("smaller") and not list(Path.cwd().glob(".smaller*"))


def test_push_makes_a_private_repository_of_one_commit_that_loads(runs, project, hub, tmp_path, moeprune):
    answer = moeprune("push", runs[2], TARGET, "--json")
    assert answer.status == 0, answer.err
    assert moeprune("export", runs[2], "smaller").status == 0
    pushed, exported = hashes(content(hub)), hashes(Path("smaller"))
    pushed.pop(".gitattributes")
    assert pushed.keys() == exported.keys()
    assert {name for name in pushed if pushed[name] != exported[name]} == {"README.md"}  # which names the repository
    assert TARGET in hub.private and len(hub.messages) == 1 and runs[2] in hub.messages[0]
    shards = {sha256(path) for path in Path("smaller").glob("*.safetensors")}
    assert hub.large.keys() == shards, "large files go by LFS, others do not"
    assert answer.json["commit"] == hub.refs[TARGET]["main"] and answer.json["private"] and answer.json["removed"] == []
    card = ModelCard.load(TARGET)
    assert card.data.base_model == BASE and f'from_pretrained("{TARGET}"' in card.text
    loaded = AutoModelForCausalLM.from_pretrained(TARGET, cache_dir=tmp_path / "others")
    own = AutoModelForCausalLM.from_pretrained(checkpoint(runs[2]))
    assert all(torch.equal(mine, theirs) for mine, theirs in zip(own.parameters(), loaded.parameters(), strict=True))
    tags = MlflowClient(f"sqlite:///{project}/.moeprune/mlflow.db").get_run(runs[2]).data.tags
    assert tags[f"hub.{TARGET}"] == answer.json["commit"]


def test_push_of_what_is_there_changes_nothing_and_of_another_model_removes_the_old(runs, project, hub, moeprune):
    first = moeprune("push", runs[2], TARGET, "--json").json
    sent = len(hub.requests)
    again = moeprune("push", runs[2], TARGET, "--json")
    assert again.json["commit"] == first["commit"] and "nothing was changed" in again.out
    assert (first["changed"], again.json["changed"]) == (True, False)
    assert not [path for method, path in hub.requests[sent:] if method == "PUT" or "/commit/" in path]
    stale = {"model-00009-of-00009.safetensors": b"", "vocab.json": b"{}", "figure.png": b"mine"}
    stale |= {"pytorch_model.bin": b"", "tiny.Q4.gguf": b"", "NOTICE": b"terms of another"}
    for name, text in stale.items():
        (content(hub) / name).write_bytes(text)
    answer = moeprune("push", runs[2], TARGET, "--json")
    assert answer.status == 0 and set(answer.json["removed"]) == stale.keys() - {"figure.png"}
    left = {path.name for path in content(hub).iterdir()}
    assert "figure.png" in left and not left & set(answer.json["removed"])


def test_push_to_a_public_repository_needs_leave(runs, project, hub, moeprune):
    answer = moeprune("push", runs[2], BASE)
    assert answer.status == 2 and "is a public repository" in answer.err and answer.err.count("\n") == 1
    assert hub.refs[BASE]["main"] == COMMIT and not hub.large
    assert moeprune("push", runs[2], TARGET, "--public").status == 0
    assert TARGET not in hub.private


def test_push_for_all_to_see_needs_a_licence(runs, project, hub, moeprune):
    (project / "model/README.md").unlink()
    (project / "model/LICENSE.md").unlink()
    answer = moeprune("push", runs[1], TARGET, "--public")
    assert answer.status == 2 and "the licence of the base model" in answer.err and TARGET not in hub.repositories
    (project / "model/LICENSE").write_text("our own terms")
    assert moeprune("push", runs[1], TARGET, "--public").status == 0
    data = ModelCard.load(content(hub) / "README.md").data
    assert (data.license, data.license_name, data.license_link) == ("other", "as-of-the-base-model", "LICENSE")
    assert (content(hub) / "LICENSE").read_text() == "our own terms"


@pytest.mark.parametrize(
    ("where", "status", "words"),
    [
        ("POST /api/repos/create", 403, "does not let you write to owner/smaller (403)"),
        ("PUT /lfs/", 403, "does not let you write to owner/smaller (403)"),
        ("POST .*/commit/", 412, "was changed by somebody else meanwhile (412)"),
        ("POST .*/commit/", 502, "fails (502) to take owner/smaller: push again later"),
        ("POST .*/preupload/", 413, "refuses owner/smaller"),
    ],
    ids=["creating", "uploading", "overtaken", "failing", "full"],
)
def test_push_that_the_hub_refuses_says_why_and_changes_nothing(
    where: str, status: int, words: str, runs, project, hub, moeprune
):
    hub.faults.append(Fault(where, status))
    answer = moeprune("push", runs[2], TARGET)
    assert answer.status == 2 and words in answer.err, answer.err
    assert [line for line in answer.err.splitlines() if line.startswith("error: ")] == [answer.err.splitlines()[-1]]
    assert TARGET not in hub.repositories or {path.name for path in content(hub).iterdir()} == {".gitattributes"}
    hub.faults.clear()
    assert moeprune("push", runs[2], TARGET).status == 0


def test_push_that_is_overtaken_by_another_is_refused_by_the_hub_itself(runs, project, hub, moeprune, monkeypatch):
    assert moeprune("push", runs[2], TARGET).status == 0
    (content(hub) / "config.json").write_text("{}")  # so that there is something to commit
    create_commit = HfApi.create_commit

    def overtaken(api, repository, operations, **words):
        hub.repositories[repository] = {**hub.repositories[repository], "d" * 40: content(hub)}
        hub.refs[repository]["main"] = "d" * 40
        return create_commit(api, repository, operations, **words)

    monkeypatch.setattr(HfApi, "create_commit", overtaken)
    answer = moeprune("push", runs[2], TARGET)
    assert answer.status == 2 and "was changed by somebody else meanwhile (412)" in answer.err
    assert hub.refs[TARGET]["main"] == "d" * 40


def test_push_sends_the_token_to_the_hub_alone(runs, project, hub, moeprune, monkeypatch):
    answer = moeprune("push", runs[2], "stranger/model")
    assert answer.status == 2 and "does not let you write to stranger/model (403)" in answer.err
    hub.token = "hf_onlyForTheHub0123456789"
    assert "does not let you write to owner/smaller (401)" in moeprune("push", runs[1], TARGET).err
    monkeypatch.setenv("HF_TOKEN", hub.token)
    answer = moeprune("push", runs[2], TARGET)
    assert answer.status == 0, answer.err
    assert hub.large and hub.told == set(), "the storage of large files is no part of the Hub"
    assert hub.token not in answer.out + answer.err
    assert not [path for path in content(hub).iterdir() if hub.token.encode() in path.read_bytes()]


@pytest.mark.parametrize("name", ["smaller", "a/b/c", "owner/", "owner/sm aller"])
def test_push_to_what_is_no_repository_is_refused_before_anything_is_asked(name: str, runs, project, hub, moeprune):
    answer = moeprune("push", runs[1], name)
    assert answer.status == 2 and "is no repository of the Hub: give owner/name" in answer.err and hub.requests == []


def test_card_whose_licence_the_hub_does_not_know_is_refused_before_files_are_sent(runs, project, hub, moeprune):
    (project / "model/README.md").write_text("---\nlicense: my-own\n---\n")
    answer = moeprune("push", runs[1], TARGET)
    assert answer.status == 2 and '"license" is not known' in answer.err and not hub.large
    assert yaml.safe_load((project / "params/whole.yaml").read_text())["download"]["source"] == "model"
