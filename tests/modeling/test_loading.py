"""Checkpoints whose weights aren't those of their config, and others that only look like a model."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from optimum_ffp import FFPError, FFPPruner
from optimum_ffp.modeling.loading import LoadOptions, load_any, load_dense, resolve_device, shape_of
from tests.helpers import read_files
from tests.hub_server import Repository


CPU = LoadOptions(device="cpu")
MASK = torch.ones(1, 1, 64, 64).tril()


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(folder / "model.safetensors")
    changed = change(weights)
    save_file(changed if isinstance(changed, dict) else weights, folder / "model.safetensors", {"format": "pt"})


def edit_config(folder: Path, **changes: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))


def load_to_prune(model_id: str, options: LoadOptions) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    pruner = FFPPruner.from_pretrained(model_id, **vars(options))
    return pruner.model, pruner.tokenizer


def assert_both_loaders_refuse(folder: Path, *words: str) -> None:
    for load in (load_to_prune, load_any):
        with pytest.raises(FFPError) as caught:
            load(str(folder), CPU)
        message = str(caught.value)
        assert "\n" not in message and all(word in message for word in words), message


@pytest.mark.parametrize(
    ("name", "buffers"),
    [
        (
            "gpt-neox",
            {"gpt_neox.layers.{}.attention.bias": MASK.byte(), "gpt_neox.layers.{}.attention.masked_bias": -1e9},
        ),
        ("gpt2", {"transformer.h.{}.attn.bias": MASK.bool(), "transformer.h.{}.attn.masked_bias": -1e4}),
        ("llama", {"model.layers.{}.self_attn.rotary_emb.inv_freq": torch.ones(2)}),
    ],
)
def test_attention_mask_buffers_of_old_checkpoints_are_ignored(save_tiny_model, name, buffers, capfd):
    base = save_tiny_model(name)
    expected = AutoModelForCausalLM.from_pretrained(base).state_dict()
    edit_weights(
        base,
        lambda w: w.update(
            {key.format(layer): torch.as_tensor(value).clone() for key, value in buffers.items() for layer in range(3)}
        ),
    )
    for load in (load_dense, load_any):
        found = load(str(base), CPU)[0].state_dict()
        assert all(torch.equal(tensor, found[key]) for key, tensor in expected.items())
    assert "UNEXPECTED" not in "".join(capfd.readouterr())


@pytest.mark.parametrize(
    ("change", "config", "message"),
    [
        (lambda w: w.pop("model.layers.1.mlp.up_proj.weight"), {}, "model.layers.1.mlp.up_proj.weight"),
        (lambda w: w, {"num_hidden_layers": 5}, "model.layers.3.input_layernorm.weight"),
        (lambda w: w, {"num_hidden_layers": 2}, "model.layers.2.input_layernorm.weight"),
        (lambda w: w, {"intermediate_size": 47}, "mlp.down_proj.weight"),
        (lambda w: w.update({"model.layers.0.self_attn.q_proj.bias": torch.ones(32)}), {}, "q_proj.bias"),
    ],
    ids=["missing", "more layers", "fewer layers", "other shape", "bias"],
)
def test_weights_not_matching_config_are_rejected(save_tiny_model, change, config, message, capfd):
    base = save_tiny_model()
    edit_weights(base, change)
    edit_config(base, **config)
    assert_both_loaders_refuse(base, message)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())


def test_tied_head_and_base_model_prefix_may_be_missing(save_tiny_model):
    base = save_tiny_model("qwen2")
    assert "lm_head.weight" not in load_file(base / "model.safetensors")
    edit_weights(base, lambda w: {key.removeprefix("model."): value for key, value in w.items()})
    for load in (load_to_prune, load_any):
        assert load(str(base), CPU)[0].lm_head.weight.numel()


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_folder_without_tokenizer_is_rejected(save_tiny_model, name):
    """Transformers has no tokenizer of a llama, and an empty one of a gpt2."""
    base = save_tiny_model(name)
    for path in base.glob("tokenizer*"):
        path.unlink()
    assert_both_loaders_refuse(base, "tokenizer.json")


def test_single_file_as_model_is_rejected(save_tiny_model):
    assert_both_loaders_refuse(save_tiny_model() / "config.json", "no folder")


def test_every_process_loads_all_weights_under_fsdp(save_tiny_model, monkeypatch):
    """Every one measures both models, and some versions of transformers would give zeros to all but the first."""
    found = []
    load = AutoModelForCausalLM.from_pretrained
    told = "FSDP_CPU_RAM_EFFICIENT_LOADING"
    note = lambda *names, **options: found.append(os.environ[told]) or load(*names, **options)  # noqa: E731
    monkeypatch.setattr("transformers.AutoModelForCausalLM.from_pretrained", note)
    folder = str(save_tiny_model())
    monkeypatch.setenv(told, "true")
    load_any(folder, LoadOptions(device="cpu"))
    assert os.environ[told] == "true"
    monkeypatch.delenv(told)
    load_any(folder, LoadOptions(device="cpu"))
    assert told not in os.environ and found == ["false", "false"]


def test_default_device_is_current_accelerator_with_index(monkeypatch):
    """Threads that bring layers to it have another current device."""
    empty = torch.empty
    monkeypatch.setattr("torch.accelerator.current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr("torch.accelerator.current_device_index", lambda: 3)
    monkeypatch.setattr("torch.empty", lambda size, device: empty(size))
    chosen = [str(resolve_device(name)) for name in (None, "cuda", "cuda:1", "cpu")]
    assert chosen == ["cuda:3", "cuda:3", "cuda:1", "cpu"]


def test_hub_config_is_read_without_downloading_weights(save_tiny_model, hub, tmp_path):
    hub.repositories["me/tiny"] = Repository(private=False)
    hub.repositories["me/tiny"].commit("initial commit", read_files(save_tiny_model()))
    options = LoadOptions(device="cpu")
    assert shape_of("me/tiny", options).config.hidden_size == 32
    assert not [path for _, path, _ in hub.requests if path.endswith(".safetensors")]
    load_dense("me/tiny", options)
    assert [path for _, path, _ in hub.requests if path.endswith(".safetensors")]
