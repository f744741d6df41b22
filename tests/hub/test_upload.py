"""Pushes and pulls go over the wire, to a small Hub on loopback."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from huggingface_hub import ModelCard

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner
from optimum_ffp.checkpoint.saving import load_agent
from optimum_ffp.hub.upload import check_push, name_repository, push_folder
from tests.helpers import FILES, SETTINGS, contents, make_tiny_model, make_tokenizer, published, write_data
from tests.hub_server import TOKEN, Hub, Repository, run_hub, uploaded


pytestmark = pytest.mark.slow


BINARIES = Path(sys.executable).parent
# Without the pauses between the attempts of huggingface_hub.
CLI = "import time; time.sleep = lambda seconds: None; from optimum.commands.optimum_cli import main; main()"
SMALL = "--seq-len 24 --num-samples 8 --search-samples 2 --eval-samples 3 --sparsity 0.3 --device cpu"

# What a standalone does with a repository: first without our package, then with it, then as its card says.
PULL = """
import re, sys, torch
from importlib.util import find_spec
from pathlib import Path
repo_id, folder, revision = sys.argv[1:]
sys.modules["optimum_ffp"] = None
from huggingface_hub import snapshot_download
from transformers import AutoModelForCausalLM
tokens = torch.arange(3, 23)[None]
remote = AutoModelForCausalLM.from_pretrained(repo_id, trust_remote_code=True)
del sys.modules["optimum_ffp"]
from optimum_ffp import FFPModelForCausalLM
ours = [FFPModelForCausalLM.from_pretrained(name) for name in (folder, repo_id)]
ours.append(FFPModelForCausalLM.from_pretrained(repo_id, revision=revision))
for model in ours:
    assert torch.equal(model(tokens).logits, remote(tokens).logits)
pulled = Path(snapshot_download(repo_id))
def contents(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != ".gitattributes"]
    return {path.relative_to(folder): path.read_bytes() for path in files if path.name != "README.md"}
assert contents(Path(folder)) == contents(pulled)
blocks = re.findall(r"```python\\n(.*?)```", (pulled / "README.md").read_text(), re.S)
names = {}
for block in blocks:
    if "peft" not in block or find_spec("peft"):
        exec(block, names)
print("blocks", len(blocks))
"""


def environment(hub: Hub, home: Path, token: str | None = TOKEN) -> dict[str, str]:
    """Of a process that speaks to the Hub by its environment alone."""
    settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1", "HF_HOME": str(home)}
    settings |= {"HF_HUB_DISABLE_UPDATE_CHECK": "1", "PATH": f"{BINARIES}{os.pathsep}{os.environ['PATH']}"} | (
        {"HF_TOKEN": token} if token else {}
    )
    return {name: value for name, value in os.environ.items() if name != "HF_TOKEN"} | settings


def test_command_line_prunes_a_model_of_the_hub_and_puts_it_there(tmp_path):
    data, base = write_data(tmp_path / "some data"), tmp_path / "base"
    make_tiny_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# Base\n")
    with run_hub(TOKEN) as hub:
        hub.repositories["org/tiny"] = Repository(private=False)
        hub.repositories["org/tiny"].commit("initial commit", contents(base))
        command = f"ffp prune -m org/tiny out --push-to-hub --hub-model-id tiny-ffp --private {SMALL}"
        done = subprocess.run(
            [sys.executable, "-c", CLI, *command.split(), "--dataset", data],
            cwd=tmp_path,
            env=environment(hub, tmp_path / "home"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        repository = hub.repositories["me/tiny-ffp"]
        assert repository.private and len(repository.commits) == 2
        assert f"uploaded: {hub.url}/me/tiny-ffp/commit/{repository.commits[-1].oid}" in done.stdout
        assert uploaded(repository) == published(tmp_path / "out", "me/tiny-ffp")
        assert set(uploaded(repository)) == FILES
        assert [status for *_, status in hub.requests if status >= 500] == []

        # The token was used, and is nowhere to be found.
        written = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
        assert TOKEN not in done.stdout + done.stderr

        card = ModelCard(uploaded(repository)["README.md"].decode())
        assert (card.data.base_model, card.data.license, card.data.license_name) == ("org/tiny", "other", "tiny")
        # A file that the result doesn't have.
        revision = hub.repositories["org/tiny"].commits[-1].oid
        assert card.data.license_link == f"https://huggingface.co/org/tiny/blob/{revision}/LICENSE"
        assert 'from_pretrained("me/tiny-ffp", trust_remote_code=True)' in card.content
        # Its tokenizer is none of llama.cpp's.
        assert "optimum-cli ffp export" not in card.content
        assert "./out" not in card.content
        # Nothing says where the data and the model were on this machine.
        assert not [name for name, data in uploaded(repository).items() if str(tmp_path).encode() in data]

        # A later commit takes the weights away; the revision still has them.
        done = subprocess.run(
            [sys.executable, "-c", PULL, "me/tiny-ffp", tmp_path / "out", repository.commits[-1].oid],
            env=environment(hub, tmp_path / "home"),
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        assert "blocks 5" in done.stdout


def test_a_second_push_replaces_what_the_first_left(pruned, hub, tmp_path):
    pruner, _ = pruned
    address = pruner.push_to_hub("it", private=True)
    repository = hub.repositories["me/it"]
    assert address == f"{hub.url}/me/it/commit/{repository.commits[-1].oid}"
    assert repository.private and set(uploaded(repository)) == FILES
    first = repository.commits[-1].oid
    repository.commit(
        "by hand", repository.commits[-1].files | {"model-00001-of-00002.safetensors": b"old", "notes.txt": b"mine"}
    )
    found = pruner.result.search
    agent, found.agent = found.agent, None
    try:
        pruner.push_to_hub("me/it")
    finally:
        found.agent = agent
    assert len(repository.commits) == 4
    assert set(uploaded(repository)) == FILES - {"search/agent.safetensors"} | {"notes.txt"}
    # The agent is gone from the branch, and still there at the first commit.
    with pytest.raises(
        FFPError, match=r"no folder me/it, and the Hub gives no agent of that name: 404 Entry not found"
    ):
        load_agent("me/it")
    found = load_agent(f"me/it@{first}")
    assert {name: array.tolist() for name, array in found.items()} == {
        name: array.tolist() for name, array in agent.items()
    }
    with pytest.raises(FFPError, match="404 Invalid rev id: nothing"):
        load_agent("me/it@nothing")


def test_revision_and_warm_start_by_repository(pruned, folder, hub, windows, tmp_path):
    pruner, _ = pruned
    push_folder(folder, "me/it")
    first = hub.repositories["me/it"].commits[-1].oid
    saved = pruner.result
    assert pruner.prune(0.4, warm_start="me/it").policy.sparsity == pytest.approx(0.4, abs=0.01)
    pruner.push_to_hub("me/it")
    options = {"cache_dir": tmp_path / "cache"}
    newest = FFPModelForCausalLM.from_pretrained("me/it", **options)
    assert torch.equal(newest(windows).logits, pruner.result.model(windows).logits)
    pruner.result = saved
    older = FFPModelForCausalLM.from_pretrained("me/it", revision=first, **options)
    assert torch.equal(older(windows).logits, saved.model(windows).logits)
    assert older.num_parameters() > newest.num_parameters()


FAILURES = {
    "401": ("POST", "/repos/create", 401, "Invalid credentials in Authorization header", "hf auth login"),
    "403": ("POST", "/repos/create", 403, "You don't have the rights to create a model", "write access"),
    "404": ("POST", "/preupload/", 404, "Repository not found", "check the name"),
    "409": ("POST", "/commit/", 409, "A commit has happened since", "try again"),
    "500": ("PUT", "/lfs/", 500, "Internal Error", "try again later"),
    "503": ("POST", "/commit/", 503, "Service Unavailable", "try again later"),
    "cut": ("PUT", "/lfs/", None, "", "check the connection"),
}


@pytest.mark.parametrize("name", FAILURES)
def test_failed_upload_is_one_line_and_the_folder_is_whole(folder, hub, name):
    method, path, status, said, advice = FAILURES[name]
    hub.fail(method, path, status, said)
    before = contents(folder)
    with pytest.raises(FFPError) as caught:
        push_folder(folder, "me/it", private=True)
    message = str(caught.value)
    assert "\n" not in message and TOKEN not in message and advice in message
    assert re.match(rf"the upload to me/it failed: .*{status or 'pload'}.*{re.escape(said)}", message), message
    command = f"optimum-cli ffp push '{folder}' me/it --private"
    assert message.endswith(f"The checkpoint is complete in {folder}; retry with: {command}")
    assert contents(folder) == before
    hub.faults.clear()
    push_folder(folder, "me/it", private=True)
    assert uploaded(hub.repositories["me/it"]) == published(folder, "me/it")


def test_the_command_that_the_message_names_goes_on(folder, hub, tmp_path):
    hub.fail("PUT", "/lfs/", None)
    with pytest.raises(FFPError, match="retry with: .* me/other --revision v1 --commit-message 'Prune 20 %'$"):
        push_folder(folder, "other", revision="v1", commit_message="Prune 20 %")
    with pytest.raises(FFPError) as caught:
        push_folder(folder, "it", private=True)
    hub.faults.clear()
    words = shlex.split(str(caught.value).partition("retry with: ")[2])
    assert words[:3] == ["optimum-cli", "ffp", "push"]
    done = subprocess.run(
        [sys.executable, "-c", CLI, *words[1:]],
        env=environment(hub, tmp_path / "home"),
        text=True,
        capture_output=True,
    )
    assert done.returncode == 0, done.stderr
    repository = hub.repositories["me/it"]
    assert repository.private and uploaded(repository) == published(folder, "me/it")


def test_a_result_that_could_not_be_uploaded_is_kept(pruned, hub):
    pruner, _ = pruned
    hub.fail("POST", "/commit/", 503)
    with pytest.raises(FFPError) as caught:
        pruner.push_to_hub("it")
    kept = Path(re.search(r"complete in (\S+);", str(caught.value))[1])
    assert set(contents(kept)) == FILES
    shutil.rmtree(kept.parent)


@pytest.mark.parametrize("name", ["403", "cut"])
def test_command_line_ends_with_the_line_and_code_2(
    hub, run_ffp, save_tiny_model, data_folder, tmp_path, monkeypatch, name
):
    monkeypatch.chdir(tmp_path)
    method, path, status, said, _ = FAILURES[name]
    hub.fail(method, path, status, said)
    words = ["prune", "-m", save_tiny_model(), "out", "--push-to-hub", *SMALL.split(), "--method", "uniform"]
    code, output, errors = run_ffp(*words, "--dataset", data_folder)
    assert code == 2
    assert "Traceback" not in errors and TOKEN not in output + errors
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert line.endswith("retry with: optimum-cli ffp push out " + ("out" if status else "me/out"))
    FFPModelForCausalLM.from_pretrained("./out")


def test_what_would_stop_an_upload_is_found_before_the_work(monkeypatch):
    with pytest.raises(FFPError, match="'../../evil' is not a valid repository name"):
        check_push("../../evil", TOKEN)
    monkeypatch.setattr("optimum_ffp.hub.upload.get_token", lambda: None)
    with pytest.raises(FFPError, match="needs a token of the Hub: log in with `hf auth login`"):
        check_push("me/it")


def test_card_says_what_the_hub_parses(pruned):
    pruner, folder = pruned
    card = ModelCard.load(folder / "README.md")
    (result,) = card.data.eval_results
    assert (result.task_type, result.dataset_split, result.metric_type) == ("text-generation", "test", "perplexity")
    assert result.metric_value == pytest.approx(pruner.result.perplexity, abs=1e-4)
    assert card.data.base_model is None and card.data.license is None and card.data.datasets is None
    assert {"pruned", "optimum-ffp"} <= set(card.data.tags)
    for section in re.split(r"^## ", card.text, flags=re.M):
        assert len(section.strip().splitlines()) > 1
    for text in ("pipeline(", "FFPModelForCausalLM", "get_peft_model", "ignore_mismatched_sizes=True", "![", "torch "):
        assert text in card.text


def test_what_the_hub_refuses_is_kept_and_named(pruned, hub):
    pruner, _ = pruned
    pruner.push_to_hub("me/public")
    with pytest.raises(FFPError, match="me/public exists and is public, .*; the checkpoint is in ") as refused:
        pruner.push_to_hub("me/public", private=True)
    folder = Path(str(refused.value).rpartition(" is in ")[2])
    assert (folder / "model.safetensors").is_file() and len(hub.repositories["me/public"].commits) == 2
    shutil.rmtree(folder.parent)


def test_a_card_names_its_folder_and_once_pushed_its_repository(pruned, folder, hub):
    local = (folder / "README.md").read_text()
    # As `pruned` was saved; what is copied or renamed later keeps the name that it was given.
    loaded = re.findall(r'from_pretrained\("(.*?)"', local)
    assert len(loaded) > 3 and set(loaded) == {"./pruned"} and 'model="./pruned"' in local
    assert "vllm serve ./pruned --trust-remote-code" in local
    for repo_id in ("me/first", "me/second"):
        push_folder(folder, repo_id)
        # From what was pulled it goes elsewhere too.
        (folder / "README.md").write_bytes(uploaded(hub.repositories[repo_id])["README.md"])
        assert (folder / "README.md").read_text() == local.replace("./pruned", repo_id)


def test_names_that_a_shell_needs_quoted(pruned, tmp_path, monkeypatch):
    pruner, _ = pruned
    monkeypatch.setattr("optimum_ffp.checkpoint.gguf.writer.read_tokenizer", lambda tokenizer: None)
    pruner.save_pretrained(tmp_path / "two words")
    card = (tmp_path / "two words" / "README.md").read_text()
    assert 'from_pretrained("./two words", trust' in card and "vllm serve './two words' --trust" in card
    assert "--model './two words' 'two words.gguf'" in card
    named = name_repository(card, "me/it")
    assert "two words" not in named.replace("'two words.gguf'", "") and "vllm serve me/it --trust" in named
    # As a recovery does, whose folder is another.
    assert name_repository(named, "./two words") == card
    accented = name_repository(card, "./modèle")
    assert 'from_pretrained("./modèle", trust' in accented
    assert "two words" not in name_repository(accented, "me/it").replace("'two words.gguf'", "")


def test_names_that_json_escapes(pruned, tmp_path):
    pruner, _ = pruned
    pruner.save_pretrained(tmp_path / 'say "x"')
    card = (tmp_path / 'say "x"' / "README.md").read_text()
    assert r'from_pretrained("./say \"x\"", trust' in card
    named = name_repository(card, "me/it")
    assert 'from_pretrained("me/it", trust' in named and "vllm serve me/it --trust" in named and "say" not in named


def test_what_is_not_of_the_checkpoint_stays_here(folder, hub, caplog):
    for name in (".env", "out.gguf", "wandb/notes.md", "license.txt"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("mine")
    push_folder(folder, "me/mine")
    assert set(uploaded(hub.repositories["me/mine"])) == FILES | {"license.txt"}
    (line,) = [one.getMessage() for one in caplog.records if one.name == "optimum_ffp.hub.upload"]
    assert line == "not of the checkpoint, and not uploaded: .env, out.gguf, wandb/notes.md"


def test_a_folder_without_a_model_replaces_none(folder, hub, tmp_path):
    push_folder(folder, "me/model")
    before = uploaded(hub.repositories["me/model"])
    with pytest.raises(FFPError, match="nowhere is not the folder of a model; nothing was uploaded"):
        push_folder(tmp_path / "nowhere", "me/model")
    assert uploaded(hub.repositories["me/model"]) == before


def test_what_git_and_downloads_leave_stays_at_home(folder, hub):
    for name in (".git/config", ".cache/huggingface/download/x.lock"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("")
    push_folder(folder, "me/it")
    assert set(uploaded(hub.repositories["me/it"])) == FILES


def test_the_command_of_a_card_repeats_the_weights_though_base_and_agent_have_moved_on(
    hub, run_ffp, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    data, oids = write_data(tmp_path / "data"), []

    def push_base(seed: int) -> None:
        make_tiny_model(seed=seed).save_pretrained("base")
        make_tokenizer().save_pretrained("base")
        repository = hub.repositories.setdefault("org/tiny", Repository(private=False))
        oids.append(repository.commit(f"seed {seed}", contents(Path("base"))).oid)

    def push_agent(sparsity: float) -> str:
        pruner = FFPPruner.from_pretrained("base", config, device="cpu")
        pruner.prune(sparsity)
        pruner.push_to_hub("agent")
        return hub.repositories["me/agent"].commits[-1].oid

    config = FFPConfig(dataset=str(data), sparsity=0.3, **SETTINGS)
    push_base(0)
    agent = push_agent(0.2)
    options = ("--device", "cpu", "--dtype", "bfloat16", "--warm-start", "me/agent", "--dataset", "data")
    sizes = SMALL.partition(" --sparsity")[0].split()
    code, _, errors = run_ffp("prune", "-m", "org/tiny", "first", "--sparsity", 0.3, *sizes, *options)
    assert code == 0, errors
    push_base(1)
    push_agent(0.4)

    provenance = json.loads(Path("first", "ffp_config.json").read_text())["provenance"]
    assert (provenance["revision"], provenance["dtype"]) == (oids[0], "bfloat16")
    card = Path("first", "README.md").read_text()
    assert f"[org/tiny](https://huggingface.co/org/tiny) (revision [{oids[0][:12]}]" in card
    (command,) = re.findall(r"^optimum-cli ffp prune .*$", card, re.M)
    assert f"--revision {oids[0]} --dtype bfloat16 --warm-start me/agent@{agent}" in command
    code, _, errors = run_ffp(*shlex.split(command)[2:], "second", "--device", "cpu")
    assert code == 0, errors
    first, second = (Path(name, "model.safetensors").read_bytes() for name in ("first", "second"))
    assert first == second
