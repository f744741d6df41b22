import shutil

import pytest

from optimum_ffp import FFPModelForCausalLM
from tests.helpers import contents, published
from tests.hub_server import uploaded


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
def test_what_cannot_be_pushed_is_one_line_and_nothing_is_made(run_ffp, hub, folder, save_tiny_model, case, message):
    repo_id, more = "me/it", []
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
            more = ["--token", "hf_wrong"]
    code, _, errors = run_ffp("push", folder, repo_id, *more)
    (line,) = errors.strip().splitlines()
    assert code == 2 and line.startswith("error: ") and message in line
    assert hub.repositories == {}
