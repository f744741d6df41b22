import shutil

import pytest

from tests.helpers import expected_upload
from tests.hub_server import Repository, uploaded_files


pytestmark = pytest.mark.slow


def test_push_uploads_folder_in_one_commit(run_ffp, hub, folder):
    code, output, _ = run_ffp("push", folder, "it", "--private", "--commit-message", "Prune 20 %")
    repository = hub.repositories["me/it"]
    assert code == 0 and output.strip() == f"uploaded: {hub.url}/me/it/commit/{repository.commits[-1].oid}"
    assert repository.private and [commit.message for commit in repository.commits[1:]] == ["Prune 20 %"]
    assert uploaded_files(repository) == expected_upload(folder, "me/it")


@pytest.mark.parametrize(
    ("case", "words", "message"),
    [
        ("no folder", ["me/it"], "no folder"),
        ("dense", ["me/it"], "no pruned model"),
        ("no weights", ["me/it"], "no pruned model"),
        ("checkpoint", ["a/b/c"], "repository name"),
        ("checkpoint", ["org/it"], "--create-pr"),
        ("checkpoint", ["me/public", "--private"], "public"),
    ],
)
def test_invalid_push_is_one_line_error(run_ffp, hub, folder, save_tiny_model, case, words, message):
    hub.repositories["me/public"] = Repository(private=False)
    hub.repositories["me/public"].commit("initial commit", {})
    if case == "no folder":
        shutil.rmtree(folder)
    if case == "no weights":
        (folder / "model.safetensors").unlink()
    code, _, errors = run_ffp("push", save_tiny_model() if case == "dense" else folder, *words)
    (line,) = errors.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and message in line
    assert [*hub.repositories] == ["me/public"] and len(hub.repositories["me/public"].commits) == 1
