"""Uploads: one goes over the wire, to a small Hub on loopback; the others to a mocked `HfApi`."""

import os
import shlex
import subprocess
import sys
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from huggingface_hub import CommitOperationAdd, CommitOperationDelete, ModelCard

from optimum_ffp import FFPError
from optimum_ffp.checkpoint.pushing import push_checkpoint, push_result
from optimum_ffp.checkpoint.saving import load_agent
from optimum_ffp.hub.upload import check_push, describe_failure
from tests.helpers import (
    CHECKPOINT_FILES,
    expected_upload,
    make_tiny_model,
    read_files,
    save_with_tokenizer,
    write_data,
    write_record,
)
from tests.hub_server import TOKEN, Repository, run_hub, uploaded_files


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
    save_with_tokenizer(make_tiny_model(), base)
    (base / "README.md").write_text("---\nlicense: other\nlicense_name: tiny\nlicense_link: LICENSE\n---\n# Base\n")
    with run_hub(TOKEN) as hub:
        hub.repositories["org/tiny"] = Repository(private=False)
        revision = hub.repositories["org/tiny"].commit("initial commit", read_files(base)).oid
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
        assert uploaded_files(repository) == expected_upload(tmp_path / "out", "me/tiny-ffp")
        # Neither the token nor folders of this machine are in any file.
        assert TOKEN not in output and "--base-model" not in output
        for content in uploaded_files(repository).values():
            assert TOKEN.encode() not in content and str(tmp_path).encode() not in content
        card = ModelCard(uploaded_files(repository)["README.md"].decode())
        assert (card.data.base_model, card.data.license, card.data.license_name) == ("org/tiny", "other", "tiny")
        assert card.data.license_link == f"https://huggingface.co/org/tiny/blob/{revision}/LICENSE"
        run(sys.executable, "-c", PULL, tmp_path / "out")


@pytest.fixture
def api(monkeypatch) -> Mock:
    """A client of a Hub whose repositories are all `me/...` and empty."""
    api = Mock()
    api.whoami.return_value = {"name": "me"}
    api.create_repo.side_effect = lambda repo_id, **_: SimpleNamespace(repo_id=f"me/{repo_id.rpartition('/')[2]}")
    api.list_repo_files.return_value = []
    api.create_commit.return_value = SimpleNamespace(pr_url=None, commit_url="the commit")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setattr("optimum_ffp.checkpoint.pushing.HfApi", lambda token: api)
    return api


def committed_files(api: Mock) -> tuple[dict[str, str | bytes], list[str]]:
    """Paths or contents of the files that a commit adds, and names of those that it deletes."""
    _, operations = api.create_commit.call_args.args
    added = {one.path_in_repo: one.path_or_fileobj for one in operations if isinstance(one, CommitOperationAdd)}
    return added, [one.path_in_repo for one in operations if isinstance(one, CommitOperationDelete)]


def test_upload_rewrites_only_model_card(api, folder):
    for name in ("LICENSE", "NOTES.md", "my.txt"):
        (folder / name).touch()
    before = read_files(folder)
    assert push_checkpoint(folder, "it", private=True) == "the commit" and read_files(folder) == before
    added, deleted = committed_files(api)
    assert b'from_pretrained("me/it", trust_remote_code=True)' in added.pop("README.md") and not deleted
    names = CHECKPOINT_FILES | {"LICENSE", "NOTES.md"}
    assert added == {name: str(folder / name) for name in names - {"README.md"}}
    api.create_repo.assert_called_once_with("it", private=True, exist_ok=True)
    message = "Upload a model pruned by optimum-ffp"
    assert api.create_commit.call_args.kwargs == {"commit_message": message, "revision": None, "create_pr": False}
    assert not api.create_branch.called


def test_upload_deletes_files_of_previous_checkpoint(api, folder, tmp_path):
    write_record(tmp_path, files=["ffp_config.json", "my.bin", "policy.png"])
    there = ["ffp_config.json", "model-00001-of-00002.safetensors", "my.bin", "notes.txt", "policy.png"]
    api.list_repo_files.return_value, api.hf_hub_download.return_value = there, tmp_path / "ffp_config.json"
    push_checkpoint(folder, "me/it")
    assert committed_files(api)[1] == ["my.bin"]


@pytest.mark.parametrize(
    ("repo_id", "options", "branches"),
    [("me/it", {"revision": "v1"}, ["v1"]), ("me/it", {"revision": "refs/pr/1"}, []), ("it", {"create_pr": True}, [])],
)
def test_upload_to_branches_and_pull_requests(api, folder, repo_id, options, branches):
    api.create_commit.return_value.pr_url = pr_url = "the pull request" if "create_pr" in options else None
    assert push_checkpoint(folder, repo_id, commit_message="m", **options) == (pr_url or "the commit")
    assert [call.kwargs["branch"] for call in api.create_branch.call_args_list] == branches
    assert api.create_repo.called == (pr_url is None) and api.create_commit.call_args.args[0] == "me/it"
    expected = {"commit_message": "m", "revision": None, "create_pr": False}
    assert api.create_commit.call_args.kwargs == expected | options


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
    before = read_files(folder)
    getattr(api, call).side_effect = error
    with pytest.raises(FFPError) as caught:
        push_checkpoint(folder, "me/it", private=True)
    for word in (*words, "the upload to me/it failed"):
        assert word in str(caught.value)
    # The command can be pasted into a shell.
    command = str(caught.value).partition("same options: ")[2]
    assert shlex.split(command) == ["optimum-cli", "ffp", "push", str(folder), "me/it"]
    assert "\n" not in str(caught.value) and TOKEN not in str(caught.value) and read_files(folder) == before


def test_symlink_out_of_folder_is_not_uploaded(api, folder, tmp_path):
    (tmp_path / "secret").touch()
    (folder / "NOTES.md").symlink_to(tmp_path / "secret")
    with pytest.raises(FFPError, match="NOTES"):
        push_checkpoint(folder, "me/it")
    assert not api.create_repo.called


def test_result_is_saved_and_uploaded(api, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    push_result(lambda place: folder.rename(place), "me/it")
    assert committed_files(api)[0].keys() == CHECKPOINT_FILES and not list(tmp_path.glob("optimum-ffp-*"))


def test_result_is_kept_when_upload_fails(api, folder, tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    api.create_commit.side_effect = http_error(503, "Away")
    with pytest.raises(FFPError, match="complete in"):
        push_result(lambda place: folder.rename(place), "me/it")
    (parent,) = tmp_path.glob("optimum-ffp-*")
    assert read_files(parent / "it").keys() == CHECKPOINT_FILES


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
