"""Uploads: one goes over the wire, to a small Hub on loopback; the others to an `HfApi` that remembers its calls."""

import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard

from optimum_ffp import FFPError
from optimum_ffp.checkpoint.pushing import push_checkpoint, push_result
from optimum_ffp.checkpoint.saving import load_agent
from optimum_ffp.hub.upload import check_push, describe_failure
from tests.helpers import FILES, contents, make_tiny_model, make_tokenizer, published, write_data, write_record
from tests.hub_server import TOKEN, Repository, run_hub, uploaded


CLI = "from optimum.commands.optimum_cli import main; main()"
SMALL = "--seq-len 24 --num-samples 8 --search-samples 2 --eval-samples 3 --sparsity 0.3 --device cpu --method uniform"
# A process that loads the repository without this package, and with it.
PULL = """
import sys, torch
sys.modules["optimum_ffp"] = None
from transformers import AutoModelForCausalLM
tokens = torch.arange(3, 23)[None]
remote = AutoModelForCausalLM.from_pretrained("me/tiny-ffp", trust_remote_code=True)
del sys.modules["optimum_ffp"]
from optimum_ffp import FFPModelForCausalLM
for name in ("me/tiny-ffp", sys.argv[1]):
    assert torch.equal(FFPModelForCausalLM.from_pretrained(name)(tokens).logits, remote(tokens).logits)
"""


@pytest.mark.slow
def test_hub_model_is_pruned_uploaded_and_loaded(tmp_path):
    data, base = write_data(tmp_path / "some data"), tmp_path / "base"
    make_tiny_model().save_pretrained(base)
    make_tokenizer().save_pretrained(base)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# Base\n")
    with run_hub(TOKEN) as hub:
        hub.repositories["org/tiny"] = Repository(private=False)
        revision = hub.repositories["org/tiny"].commit("initial commit", contents(base)).oid
        settings = {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
        environment = os.environ | settings | {"HF_HOME": str(tmp_path / "home"), "HF_TOKEN": TOKEN}

        def run(*words):
            done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, done.stderr
            return done.stdout + done.stderr

        command = f"ffp prune -m org/tiny out --push-to-hub --hub-model-id tiny-ffp --private {SMALL}"
        output = run(sys.executable, "-c", CLI, *command.split(), "--dataset", data)
        repository = hub.repositories["me/tiny-ffp"]
        assert repository.private and len(repository.commits) == 2
        assert f"uploaded: {hub.url}/me/tiny-ffp/commit/{repository.commits[-1].oid}" in output
        assert uploaded(repository) == published(tmp_path / "out", "me/tiny-ffp")
        # Neither the token nor folders of this machine are in any file.
        assert TOKEN not in output
        for content in uploaded(repository).values():
            assert TOKEN.encode() not in content and str(tmp_path).encode() not in content
        card = ModelCard(uploaded(repository)["README.md"].decode())
        assert (card.data.base_model, card.data.license, card.data.license_name) == ("org/tiny", "other", "tiny")
        assert card.data.license_link == f"https://huggingface.co/org/tiny/blob/{revision}/LICENSE"
        run(sys.executable, "-c", PULL, tmp_path / "out")


class Api:
    """A Hub whose repositories are all `me/...`, with one commit of these files."""

    def __init__(self, there=(), folder=None):
        self.there, self.folder, self.calls = list(there), folder, []
        self.fails = {}

    def __call__(self, token=None):
        return self

    def _called(self, name, *words):
        self.calls.append((name, *words))
        if name in self.fails:
            raise self.fails[name]

    def whoami(self):
        return {"name": "me"}

    def create_repo(self, repo_id, private, exist_ok):
        self._called("create_repo", repo_id, private)
        return SimpleNamespace(repo_id=f"me/{repo_id.rpartition('/')[2]}")

    def model_info(self, repo_id):
        return SimpleNamespace(private=True)

    def create_branch(self, repo_id, branch, exist_ok):
        self._called("create_branch", repo_id, branch)

    def list_repo_files(self, repo_id, revision):
        return self.there

    def hf_hub_download(self, repo_id, name, revision):
        return self.folder / name

    def create_commit(self, repo_id, operations, commit_message, revision, create_pr):
        self._called("create_commit", repo_id, commit_message, revision, create_pr)
        added = {one.path_in_repo: one.path_or_fileobj for one in operations if isinstance(one, CommitOperationAdd)}
        self.added = {name: one if isinstance(one, bytes) else Path(one).read_bytes() for name, one in added.items()}
        self.deleted = [one.path_in_repo for one in operations if isinstance(one, CommitOperationDelete)]
        return SimpleNamespace(pr_url="the request" if create_pr else None, commit_url="the commit")


@pytest.fixture
def api(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)

    def use(*arguments, **options):
        api = Api(*arguments, **options)
        monkeypatch.setattr("optimum_ffp.hub.upload.HfApi", api)
        return api

    return use


def test_upload_rewrites_only_model_card(api, folder):
    (folder / "LICENSE").touch()
    (folder / "NOTES.md").touch()
    (folder / "my.txt").touch()
    before, hub = contents(folder), api()
    assert push_checkpoint(folder, "it", private=True) == "the commit"
    assert hub.added.keys() == FILES | {"LICENSE", "NOTES.md"} and contents(folder) == before and not hub.deleted
    assert b'from_pretrained("me/it", trust_remote_code=True)' in hub.added["README.md"]
    assert {name for name in FILES if hub.added[name] != before[name]} == {"README.md"}
    assert hub.calls == [
        ("create_repo", "it", True),
        ("create_commit", "me/it", "Upload a model pruned by optimum-ffp", None, False),
    ]


def test_upload_deletes_files_of_previous_checkpoint(api, folder, tmp_path):
    there = ["ffp_config.json", "model-00001-of-00002.safetensors", "my.bin", "notes.txt", "policy.png"]
    write_record(tmp_path, files=["ffp_config.json", "my.bin", "policy.png"])
    hub = api(there, folder=tmp_path)
    push_checkpoint(folder, "me/it")
    assert hub.deleted == ["my.bin"]


def test_upload_to_branches_and_pull_requests(api, folder):
    for options, calls, url in (
        ({"revision": "v1"}, [("create_repo", "me/it", None), ("create_branch", "me/it", "v1")], "the commit"),
        ({"revision": "refs/pr/1"}, [("create_repo", "me/it", None)], "the commit"),
        ({"create_pr": True}, [], "the request"),
    ):
        hub = api()
        repo_id = "it" if "create_pr" in options else "me/it"
        assert push_checkpoint(folder, repo_id, commit_message="m", **options) == url
        commit = ("create_commit", "me/it", "m", options.get("revision"), "create_pr" in options)
        assert hub.calls == [*calls, commit]


def http_error(status: int, message: str) -> Exception:
    error = OSError("request failed")
    error.response = SimpleNamespace(status_code=status, reason_phrase="Reason")
    error.server_message = message
    return error


@pytest.mark.parametrize(
    "call, error, words",
    [
        ("create_repo", http_error(401, "Invalid"), ["401 Invalid", "hf auth login"]),
        ("create_repo", http_error(403, "No rights"), ["403 No rights", "write access"]),
        ("create_commit", http_error(404, None), ["404 Reason", "check the names"]),
        ("create_commit", http_error(503, "Away"), ["503 Away", "try again later"]),
        ("create_commit", OSError(f"Connection broke, Bearer {TOKEN}\nmore"), ["Connection broke, Bearer ***"]),
    ],
)
def test_failed_upload_is_one_line_error_and_keeps_folder(api, folder, call, error, words):
    before = contents(folder)
    api().fails[call] = error
    with pytest.raises(FFPError) as caught:
        push_checkpoint(folder, "me/it", private=True)
    for word in (*words, "the upload to me/it failed"):
        assert word in str(caught.value)
    # The command can be pasted into a shell.
    command = str(caught.value).partition("same options: ")[2]
    assert shlex.split(command) == ["optimum-cli", "ffp", "push", str(folder), "me/it"]
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value) and contents(folder) == before


def test_symlink_out_of_folder_is_not_uploaded(api, folder, tmp_path):
    hub = api()
    (tmp_path / "secret").touch()
    (folder / "NOTES.md").symlink_to(tmp_path / "secret")
    with pytest.raises(FFPError, match="NOTES"):
        push_checkpoint(folder, "me/it")
    assert not hub.calls


def test_result_is_saved_and_uploaded(api, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    hub = api()
    push_result(lambda place: folder.rename(place), "me/it")
    assert hub.added.keys() == FILES and not list(tmp_path.glob("optimum-ffp-*"))


def test_result_is_kept_when_upload_fails(api, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    api().fails["create_commit"] = http_error(503, "Away")
    with pytest.raises(FFPError, match="complete in"):
        push_result(lambda place: folder.rename(place), "me/it")
    (parent,) = tmp_path.glob("optimum-ffp-*")
    assert contents(parent / "it").keys() == FILES


def test_invalid_repository_and_missing_token_are_rejected(monkeypatch):
    with pytest.raises(FFPError, match="not a valid repository name"):
        check_push("../../evil", TOKEN)
    monkeypatch.setattr("optimum_ffp.hub.upload.get_token", lambda: None)
    with pytest.raises(FFPError, match="token"):
        check_push("me/it")


@pytest.mark.parametrize("repo_id", ["../../etc/passwd", "a/b/c", "me/..", "--flag", "me/it@../x"])
def test_path_like_repository_ids_are_rejected(repo_id):
    with pytest.raises(FFPError, match="no folder"):
        load_agent(repo_id)


def test_failure_message_uses_error_cause_and_hides_token():
    outer = RuntimeError("Error while uploading")
    outer.__cause__ = http_error(403, "Bearer hf_given refused")
    assert "Bearer *** refused" in describe_failure(outer, "hf_given")
