import shutil

import pytest

from optimum_ffp import FFPModelForCausalLM
from tests.helpers import contents, published
from tests.hub_server import Repository, uploaded


pytestmark = pytest.mark.slow


def test_a_folder_goes_up_in_one_commit_and_stays_as_it_is(run_ffp, hub, folder, tmp_path):
    before = contents(folder)
    code, output, _ = run_ffp("push", folder, "it", "--private")
    repository = hub.repositories["me/it"]
    assert code == 0 and output.strip() == f"uploaded: {hub.url}/me/it/commit/{repository.commits[-1].oid}"
    assert repository.private and len(repository.commits) == 2
    assert uploaded(repository) == published(folder, "me/it")
    assert b'from_pretrained("me/it", trust_remote_code=True)' in uploaded(repository)["README.md"]
    assert contents(folder) == before
    FFPModelForCausalLM.from_pretrained("me/it", cache_dir=tmp_path / "cache")


def test_what_should_be_private_is_not_put_where_all_can_see_it(run_ffp, hub, folder):
    assert run_ffp("push", folder, "it")[0] == 0
    repository = hub.repositories["me/it"]
    code, _, errors = run_ffp("push", folder, "it", "--private")
    assert code == 2 and "me/it exists and is public, so nothing was uploaded" in errors
    assert len(repository.commits) == 2


def test_to_a_branch_and_as_a_pull_request(run_ffp, hub, folder):
    hub.repositories["org/it"] = Repository(private=False)
    hub.repositories["org/it"].commit("initial commit", {})
    branches = hub.repositories["org/it"].branches
    # What is not the user's can't be written to, but for pull requests.
    code, _, errors = run_ffp("push", folder, "org/it")
    assert code == 2 and "org/it isn't one that me may create or write to; choose an owner among me, or open" in errors
    code, output, errors = run_ffp("push", folder, "org/it", "--create-pr", "--commit-message", "Prune 20 %")
    assert code == 0 and output.strip() == f"uploaded: {hub.url}/org/it/discussions/1", errors
    assert branches["refs/pr/1"][-1].message == "Prune 20 %" and len(branches["main"]) == 1
    assert branches["refs/pr/1"][-1].files == published(folder, "org/it")
    # It can be added to.
    (folder / "notes.md").write_text("more")
    code, output, errors = run_ffp("push", folder, "org/it", "--revision", "refs/pr/1")
    assert code == 0 and f"{hub.url}/org/it/commit/" in output, errors
    assert branches["refs/pr/1"][-1].files == published(folder, "org/it") and branches.keys() == {"main", "refs/pr/1"}
    # A branch is made once, and the same files are committed once.
    for _ in range(2):
        assert run_ffp("push", folder, "it", "--revision", "v1")[0] == 0
        branches = hub.repositories["me/it"].branches
        assert {name: len(commits) for name, commits in branches.items()} == {"main": 1, "v1": 2}
        assert uploaded(hub.repositories["me/it"], branch="v1") == published(folder, "me/it")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["other", "--create-pr"], "there is no repository me/other to open a pull request for"),
        (["org/other", "--create-pr"], "there is no repository org/other to open a pull request for"),
        (["it", "--create-pr", "--revision", "dev"], "me/it has no branch dev to open a pull request for; leave out"),
    ],
)
def test_a_pull_request_needs_what_it_is_for(run_ffp, hub, folder, words, message):
    hub.repositories["me/it"] = Repository(private=False)
    hub.repositories["me/it"].commit("initial commit", {})
    code, _, errors = run_ffp("push", folder, *words)
    assert code == 2 and errors.count("error: ") == 1 and message in errors, errors
    assert [*hub.repositories] == ["me/it"] and [*hub.repositories["me/it"].branches] == ["main"]


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("no folder", "there is no folder"),
        ("dense", "holds no pruned model with its weights; name a folder"),
        ("no weights", "holds no pruned model with its weights"),
        ("broken weights", "is not a valid safetensors file"),
        ("bad name", "'a/b/c' is not a valid repository name"),
        ("bad token", "the upload to me/it would fail: 401"),
    ],
)
def test_what_cannot_be_pushed_is_one_line_and_nothing_is_made(
    run_ffp, hub, folder, save_tiny_model, monkeypatch, case, message
):
    repo_id = "me/it"
    match case:
        case "no folder":
            shutil.rmtree(folder)
        case "dense":
            folder = save_tiny_model()
        case "no weights":
            (folder / "model.safetensors").unlink()
        case "broken weights":
            (folder / "model.safetensors").write_bytes(b"broken")
        case "bad name":
            repo_id = "a/b/c"
        case "bad token":
            monkeypatch.setenv("HF_TOKEN", "hf_wrong")
    code, _, errors = run_ffp("push", folder, repo_id)
    (line,) = errors.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and message in line
    assert hub.repositories == {}
