"""Hostile checkpoints: every one is refused in one line, and none of its code runs."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from optimum_ffp import FFPError, FFPModelForCausalLM
from optimum_ffp.checkpoint.saving import load_agent
from optimum_ffp.hub.validate_checkpoint import check_checkpoint, check_reachable
from optimum_ffp.modeling.loading import LoadOptions, load_any, load_dense


CPU = LoadOptions(device="cpu")
INDEX = "model.safetensors.index.json"


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, trap_file: Path):
        self.trap_file = trap_file

    def __reduce__(self):
        return Path.touch, (self.trap_file,)


@pytest.fixture
def trap_file(tmp_path, monkeypatch) -> Path:
    """The file that a trap leaves. Code that transformers copies stays in this test's folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "trap_file"


def edit(path: Path, **entries) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | entries))


def set_trap(path: Path, trap_file: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"open({str(trap_file)!r}, 'w').close()\n" + (path.read_text() if path.is_file() else ""))


def assert_refused(load: Callable[[], object], *words: str) -> None:
    with pytest.raises(FFPError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.slow
def test_checkpoint_code_runs_only_with_trust_remote_code(folder, trap_file):
    set_trap(folder / "modeling_ffp_llama.py", trap_file)
    set_trap(folder / "custom_generate" / "generate.py", trap_file)
    with open(folder / "custom_generate" / "generate.py", "a") as file:
        file.write("def generate(model, *args, **kwargs): ...\n")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]})
    set_trap(folder / "evil.py", trap_file)
    for options in ({}, {"trust_remote_code": True}):
        FFPModelForCausalLM.from_pretrained(folder, **options).generate(torch.tensor([[5]]), max_new_tokens=2)
    load_any(str(folder), CPU)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert not trap_file.exists()
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert trap_file.exists()


def test_code_of_dense_model_never_runs(save_tiny_model, trap_file, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers has asked for permission"))
    base = save_tiny_model()
    set_trap(base / "evil.py", trap_file)
    edit(base / "config.json", auto_map={"AutoModelForCausalLM": "evil.Model"})
    assert_refused(lambda: load_dense(str(base), CPU), "code")
    load_any(str(base), CPU)
    edit(base / "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"})
    for load in (load_dense, load_any):
        assert_refused(lambda load=load: load(str(base), CPU), str(base))
    assert_refused(lambda: FFPModelForCausalLM.from_pretrained(base), str(base))
    assert not trap_file.exists()


@pytest.mark.parametrize("entry", ["../../evil.Foo", "/tmp/evil.Foo", "other/repository--evil.Foo", "evil.Foo"])
def test_auto_map_to_foreign_code_is_rejected(folder, entry):
    auto_map = json.loads((folder / "config.json").read_text())["auto_map"]
    for auto in ("AutoModel", "AutoModelForCausalLM", "AutoConfig"):
        edit(folder / "config.json", auto_map=auto_map | {auto: entry})
        assert_refused(lambda: FFPModelForCausalLM.from_pretrained(folder), auto, repr(entry), "don't trust")


OUTSIDE = ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "C:\\x.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
def test_weight_files_outside_checkpoint_are_rejected(tmp_path, name):
    edit(tmp_path / INDEX, weight_map={"lm_head.weight": name})
    assert_refused(lambda: check_checkpoint(tmp_path), repr(name), INDEX, "outside")
    edit(tmp_path / "config.json", transformers_weights=name)
    assert_refused(lambda: check_checkpoint(tmp_path), repr(name), "config.json", "outside")


@pytest.mark.parametrize(
    "file, entries, words",
    [
        (INDEX, {"weight_map": {"lm_head.weight": "pytorch_model.bin"}}, ["only .safetensors"]),
        (INDEX, {"weight_map": ["x"]}, ["weight_map"]),
        (INDEX, {"weight_map": {"lm_head.weight": 1}}, ["only .safetensors"]),
        ("config.json", {"auto_map": ["evil"]}, ["auto_map"]),
        ("config.json", {"attn_implementation": "other/kernel"}, ["code of another repository"]),
        ("tokenizer_config.json", {"fast_tokenizer_files": ["../tokenizer.4.0.0.json"]}, ["outside"]),
        ("adapter_config.json", {"base_model_name_or_path": "other/repository"}, ["adapter", "merge"]),
    ],
)
def test_unsafe_config_entries_are_rejected(folder, file, entries, words):
    edit(folder / file, **entries)
    assert_refused(lambda: load_any(str(folder), CPU), *words)


@pytest.mark.parametrize("content", ["[]", "{", "\xff"])
def test_malformed_json_is_one_line_error(tmp_path, content):
    (tmp_path / INDEX).write_text(content, encoding="latin-1")
    assert_refused(lambda: check_checkpoint(tmp_path), INDEX)


def test_pickled_weights_are_never_loaded(folder, save_tiny_model, trap_file):
    base = save_tiny_model()
    for place, loads in (
        (base, [load_dense, load_any]),
        (folder, [lambda name, options: FFPModelForCausalLM.from_pretrained(name), load_any]),
    ):
        (place / "model.safetensors").unlink()
        (place / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(trap_file)))
        for load in loads:
            with pytest.raises((FFPError, OSError), match="safetensors"):
                load(str(place), CPU)
    (folder / "search" / "agent.safetensors").write_bytes(pickle.dumps(Trap(trap_file)))
    assert_refused(lambda: load_agent(folder), "not a valid safetensors")
    assert not trap_file.exists()
    pickle.loads((base / "pytorch_model.bin").read_bytes())
    assert trap_file.exists()


@pytest.mark.slow
def test_truncated_and_missing_weights_are_one_line_errors(folder):
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:99])
    assert_refused(lambda: FFPModelForCausalLM.from_pretrained(folder), str(folder))
    weights.unlink()
    edit(folder / INDEX, metadata={}, weight_map={"lm_head.weight": "model-00001-of-00002.safetensors"})
    assert_refused(lambda: FFPModelForCausalLM.from_pretrained(folder), str(folder))


def test_cached_model_in_subfolder_needs_no_request(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.HfApi.file_exists", lambda *_, **__: pytest.fail("asked the Hub"))
    repository = tmp_path / "models--me--tiny"
    folder = repository / "snapshots" / "abc" / "sub"
    folder.mkdir(parents=True)
    edit(folder / "config.json")
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text("abc")
    check_reachable("me/tiny", cache_dir=str(tmp_path), subfolder="sub")


def test_missing_model_is_rejected_after_one_request(monkeypatch):
    requests = []

    def fail(self, repo_id, *args, **options):
        requests.append(repo_id)
        raise ConnectionError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.HfApi.file_exists", fail)
    monkeypatch.setattr("optimum_ffp.hub.validate_checkpoint.cached_file", None)
    for offline, message in ((False, "not known"), (True, "offline")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        assert_refused(lambda: load_dense("tinyy", CPU), "folder tinyy", message)
    assert requests == ["tinyy", "tinyy"]
