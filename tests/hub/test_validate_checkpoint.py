"""Checkpoints that want more than to be read: every one is refused in one line, and nothing of it runs."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from transformers import AutoModelForCausalLM

from optimum_ffp import FFPError, FFPModelForCausalLM
from optimum_ffp.checkpoint.saving import load_agent
from optimum_ffp.hub.upload import describe_failure, push_folder
from optimum_ffp.hub.validate_checkpoint import check_checkpoint
from optimum_ffp.modeling.loading import LoadOptions, load_any, load_dense
from tests.helpers import make_tiny_model, prune_by_hand
from tests.hub_server import run_hub


pytestmark = pytest.mark.slow


CPU = LoadOptions(device="cpu")


class Trap:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, sprung: Path):
        self.sprung = sprung

    def __reduce__(self):
        return Path.touch, (self.sprung,)


@pytest.fixture
def sprung(tmp_path, monkeypatch) -> Path:
    """What a trap leaves behind. Code that transformers copies stays in this test's folder."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))
    return tmp_path / "sprung"


def edit(path: Path, change: Callable[[dict], object]) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    change(content)
    path.write_text(json.dumps(content))


def set_trap(path: Path, sprung: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"open({str(sprung)!r}, 'w').close()\n" + (path.read_text() if path.is_file() else ""))


def refused(load: Callable[[], object], *words: str) -> None:
    with pytest.raises(FFPError) as caught:
        load()
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_code_of_a_pruned_checkpoint_runs_only_for_those_who_say_so(folder, sprung):
    set_trap(folder / "modeling_ffp_llama.py", sprung)
    set_trap(folder / "custom_generate" / "generate.py", sprung)
    with open(folder / "custom_generate" / "generate.py", "a") as file:
        file.write("def generate(model, *args, **kwargs): ...\n")
    edit(folder / "tokenizer_config.json", lambda c: c.update(auto_map={"AutoTokenizer": [None, "evil.Tokenizer"]}))
    set_trap(folder / "evil.py", sprung)
    for options in ({}, {"trust_remote_code": True}):
        FFPModelForCausalLM.from_pretrained(folder, **options).generate(torch.tensor([[5]]), max_new_tokens=2)
    load_any(str(folder), CPU)
    with pytest.raises((RuntimeError, ValueError)):
        AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=False)
    assert not sprung.exists()
    AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    assert sprung.exists()


def test_code_of_a_dense_model_never_runs(save_tiny_model, sprung, monkeypatch):
    monkeypatch.setattr("builtins.input", lambda *_: pytest.fail("transformers has asked for permission"))
    base = save_tiny_model()
    set_trap(base / "evil.py", sprung)
    edit(base / "config.json", lambda c: c.update(auto_map={"AutoModelForCausalLM": "evil.Model"}))
    refused(lambda: load_dense(str(base), CPU), "code of its own")
    load_any(str(base), CPU)
    edit(base / "config.json", lambda c: c.update(model_type="evil", auto_map={"AutoConfig": "evil.Config"}))
    for load in (
        lambda: load_dense(str(base), CPU),
        lambda: load_any(str(base), CPU),
        lambda: FFPModelForCausalLM.from_pretrained(base),
    ):
        refused(load, str(base))
    assert not sprung.exists()


@pytest.mark.parametrize("entry", ["../../evil.Foo", "/tmp/evil.Foo", "other/repository--evil.Foo", "evil.Foo"])
@pytest.mark.parametrize("auto", ["AutoModel", "AutoModelForCausalLM", "AutoConfig"])
def test_auto_map_names_our_code_or_nothing(folder, entry, auto):
    edit(folder / "config.json", lambda c: c["auto_map"].update({auto: entry}))
    refused(lambda: FFPModelForCausalLM.from_pretrained(folder), auto, repr(entry), "don't trust")


OUTSIDE = ["../x.safetensors", "/etc/x.safetensors", "a/../../x.safetensors", "..\\x.safetensors", "C:\\x.safetensors"]


@pytest.mark.parametrize("name", OUTSIDE)
@pytest.mark.parametrize("variant", [None, "fp16"])
def test_shards_are_files_of_the_checkpoint(folder, name, variant):
    (folder / "model.safetensors").rename(folder.parent / "x.safetensors")
    index = "model.safetensors.index.json" if variant is None else f"model.safetensors.index.{variant}.json"
    edit(folder / index, lambda c: c.update(metadata={}, weight_map={"lm_head.weight": name}))
    refused(
        lambda: FFPModelForCausalLM.from_pretrained(folder, variant=variant),
        repr(name),
        index,
        "outside",
        "don't trust",
    )


@pytest.mark.parametrize("name", OUTSIDE)
def test_dense_models_are_held_to_the_same(save_tiny_model, name):
    base = save_tiny_model()
    (base / "model.safetensors").rename(base.parent / "x.safetensors")
    edit(base / "model.safetensors.index.json", lambda c: c.update(metadata={}, weight_map={"lm_head.weight": name}))
    for load in (load_dense, load_any):
        refused(lambda load=load: load(str(base), CPU), repr(name), "outside")
    (base / "model.safetensors.index.json").unlink()
    edit(base / "config.json", lambda c: c.update(transformers_weights=name))
    for load in (load_dense, load_any):
        refused(lambda load=load: load(str(base), CPU), repr(name), "outside")


def test_other_names_in_json_files_stay_inside_too(folder):
    edit(folder / "tokenizer_config.json", lambda c: c.update(fast_tokenizer_files=["../tokenizer.4.0.0.json"]))
    refused(lambda: load_any(str(folder), CPU), "tokenizer_config.json", "outside")
    edit(folder / "tokenizer_config.json", lambda c: c.pop("fast_tokenizer_files"))
    edit(folder / "config.json", lambda c: c.update(attn_implementation="other/kernel"))
    refused(lambda: FFPModelForCausalLM.from_pretrained(folder), "code of another repository", "'other/kernel'")
    edit(folder / "config.json", lambda c: c.pop("attn_implementation"))
    edit(folder / "adapter_config.json", lambda c: c.update(base_model_name_or_path="other/repository"))
    refused(lambda: FFPModelForCausalLM.from_pretrained(folder), "holds an adapter", "merge")


@pytest.mark.parametrize("content", ["[]", "{", '{"weight_map": ["x"]}', '{"weight_map": {"lm_head.weight": 1}}'])
def test_a_broken_index_is_said_to_be_one(folder, content):
    (folder / "model.safetensors.index.json").write_text(content)
    refused(lambda: FFPModelForCausalLM.from_pretrained(folder), "model.safetensors.index.json")


def test_pickles_are_not_read(folder, save_tiny_model, sprung):
    base = save_tiny_model()
    for place, loads in (
        (base, [lambda: load_dense(str(base), CPU), lambda: load_any(str(base), CPU)]),
        (folder, [lambda: FFPModelForCausalLM.from_pretrained(folder), lambda: load_any(str(folder), CPU)]),
    ):
        (place / "model.safetensors").unlink()
        (place / "pytorch_model.bin").write_bytes(pickle.dumps(Trap(sprung)))
        for load in loads:
            with pytest.raises((FFPError, OSError), match="safetensors"):
                load()
        edit(
            place / "model.safetensors.index.json",
            lambda c: c.update(metadata={}, weight_map={"lm_head.weight": "pytorch_model.bin"}),
        )
        for load in loads:
            refused(load, "'pytorch_model.bin'", "only .safetensors files are read")
    (folder / "search" / "agent.safetensors").write_bytes(pickle.dumps(Trap(sprung)))
    refused(lambda: load_agent(folder), "not a valid safetensors")
    assert not sprung.exists()
    pickle.loads((base / "pytorch_model.bin").read_bytes())
    assert sprung.exists()


def test_only_safetensors_text_and_pictures_are_written(pruned):
    _, folder = pruned
    suffixes = {path.suffix for path in folder.rglob("*") if path.is_file()}
    assert suffixes == {".safetensors", ".json", ".jsonl", ".md", ".html", ".png", ".py"}


@pytest.mark.parametrize("repo_id", ["../../etc/passwd", "a/b/c", "me/..", "--flag", "me/it@../x"])
def test_repository_ids_are_no_paths(repo_id, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    refused(lambda: load_agent(repo_id), repo_id)


def test_messages_blot_tokens_out(monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_stored")
    outer = RuntimeError("Error while uploading 'model.safetensors'")
    outer.__cause__ = OSError("Bearer hf_given refused")
    assert describe_failure(OSError("HTTP status client error (403 Forbidden), domain: x")).startswith(
        "403 Forbidden; the token"
    )
    assert "hf_given" not in describe_failure(outer, "hf_given") and "Bearer *** refused" in describe_failure(
        outer, "hf_given"
    )


def test_a_token_that_is_none_is_not_repeated(tmp_path, monkeypatch):
    with run_hub("hf_right") as hub:
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", hub.url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", hub.url + "/{repo_id}/{revision}/{filename}")
        for secret in ("hf_wrong", "hf_one\nhf_two", "hf_“quoted”"):
            for use in (
                lambda t: load_agent("me/it", t, str(tmp_path)),
                lambda t: push_folder(tmp_path, "me/it", token=t),
            ):
                with pytest.raises(FFPError) as caught:
                    use(secret)
                assert not any(part in str(caught.value) for part in secret.split())


def test_no_weight_need_be_as_wide_as_the_dense_model(tmp_path):
    """Where no layer keeps the whole FFN, and the vocabulary is small."""
    pruned, _ = prune_by_hand(make_tiny_model(intermediate_size=480), lambda groups, index: groups // 2)
    pruned.save_pretrained(tmp_path)
    assert max(max(weight.shape) for weight in pruned.parameters()) < pruned.config.intermediate_size
    loaded = FFPModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.state_dict().keys() == pruned.state_dict().keys()
    edit(tmp_path / "config.json", lambda config: config.update(intermediate_size=2**60))
    refused(lambda: FFPModelForCausalLM.from_pretrained(tmp_path), "intermediate_size")


@pytest.mark.parametrize("tied", [False, True])
def test_a_shard_that_is_missing_is_named(tmp_path, tied):
    model = make_tiny_model(tie_word_embeddings=tied)
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    missing = sorted(tmp_path.glob("model-00001-of-*.safetensors"))[0]
    missing.unlink()
    with pytest.raises(FFPError, match=f"has no {missing.name}, which its index of the weights names; download it"):
        check_checkpoint(tmp_path)


def test_an_index_beside_a_single_file_is_not_read(tmp_path):
    make_tiny_model().save_pretrained(tmp_path)
    index = {"weight_map": {"lm_head.weight": "model-00001-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    check_checkpoint(tmp_path)


def test_weights_of_another_user_are_no_broken_file(tmp_path, monkeypatch):
    make_tiny_model().save_pretrained(tmp_path)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(FFPError, match="model.safetensors of .* may not be read: change its permissions"):
        check_checkpoint(tmp_path)
