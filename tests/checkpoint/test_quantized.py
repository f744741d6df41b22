"""Quantized copies of pruned checkpoints; what needs llm-compressor runs in an environment of its own."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, GenerationConfig

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.checkpoint.quantized import GROUP_SIZES, _write, find_group_size
from optimum_ffp.errors import FFPError
from optimum_ffp.evaluation.record import size_record
from tests.helpers import make_pruner, make_tiny_model, read_files, save_with_tokenizer, write_data, write_record


SIZES = {"hidden_size": 128, "head_dim": 32, "intermediate_size": 192, "num_hidden_layers": 2}


@pytest.mark.parametrize(("width", "expected"), [(256, 128), (192, 64), (160, 32)])
def test_group_size_divides_inputs_of_every_projection(width, expected):
    model = make_tiny_model(**SIZES | {"intermediate_size": width})
    assert find_group_size(model, "w4a16") == expected and find_group_size(model, "w8a8") is None


def test_inputs_not_divisible_by_any_group_size_are_rejected():
    with pytest.raises(FFPError, match=r"multiples of 32 inputs, found 200;"):
        find_group_size(make_tiny_model(**SIZES | {"intermediate_size": 200}), "w4a16")


@pytest.mark.parametrize("name", ["gpt2", "mixtral"])
def test_projections_other_than_linear_layers_are_rejected(name):
    with pytest.raises(FFPError, match=f"{name} aren't Linear"):
        find_group_size(make_tiny_model(name), "w8a8")


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint whose layers differ."""
    pytest.importorskip("llmcompressor")
    folder = tmp_path_factory.mktemp("models")
    save_with_tokenizer(make_tiny_model(**SIZES), folder / "dense")
    options = {"multiple_of": 32, "method": "no-search", "calibration": "ridge"}
    pruner = make_pruner(folder / "dense", write_data(folder / "data"), sparsity=0.3, **options)
    pruner.prune()
    pruner.save_pretrained(folder / "pruned")
    return folder / "pruned"


@pytest.mark.parametrize(("scheme", "bits", "limit"), [("w8a8", 8, 0.1), ("w4a16", 4, 0.5)])
@pytest.mark.parametrize("gptq", [False, True], ids=["rounded", "GPTQ"])
def test_quantized_checkpoint_is_close_to_pruned_model(run_ffp, pruned, tmp_path, windows, scheme, bits, limit, gptq):
    out = tmp_path / "out"
    words = ["--dataset", pruned.parent / "data", "--num-samples", 40] if gptq else []
    code, output, errors = run_ffp("quantize", "-m", pruned, out, "--scheme", scheme, *words)
    assert code == 0 and scheme in output, errors
    before, after = read_files(pruned), read_files(out)
    changed = {name for name in before if before[name] != after[name]}
    assert changed == {"config.json", "model.safetensors", "README.md", "ffp_config.json"}
    assert not any(str(pruned.parent).encode() in after[name] for name in ("README.md", "ffp_config.json"))
    assert scheme in after["README.md"].decode() and after.keys() - before.keys() == {"recipe.yaml"}

    exact = FFPModelForCausalLM.from_pretrained(pruned)
    loaded = [
        FFPModelForCausalLM.from_pretrained(out),
        AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True),
    ]
    logits = [model(windows).logits.detach() for model in (exact, *loaded)]
    assert torch.equal(logits[1], logits[2])
    assert 0 < float((logits[1] - logits[0]).norm() / logits[0].norm()) < limit
    # Scales are not counted, nor the shapes of packed weights.
    assert size_record(loaded[0]) == size_record(exact)
    # As many values as the bits allow, and embeddings as they were.
    values = loaded[0].model.layers[1].mlp.down_proj.weight
    size = json.loads(after["ffp_config.json"])["quantization"]["group_size"] or values.shape[1]
    assert max(len(group.unique()) for group in values.reshape(-1, size)) <= 2**bits
    stored = load_file(out / "model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(stored, exact.model.embed_tokens.weight) and size in (*GROUP_SIZES, values.shape[1])


def test_invalid_generation_config_is_copied(tmp_path):
    """Some releases refuse those of any checkpoint, and all of them those that were changed."""
    model, source, out = make_tiny_model(), tmp_path / "source", tmp_path / "out"
    model.generation_config = GenerationConfig(temperature=0.5)
    with pytest.raises(ValueError, match="temperature"):
        model.save_pretrained(out)
    source.mkdir()
    (source / "generation_config.json").write_text('{"temperature": 0.5}')
    write_record(source, files=["generation_config.json"])
    _write(model, source, {"scheme": "w8a8"}, out)
    assert (out / "generation_config.json").read_text() == '{"temperature": 0.5}'
    assert (out / "model.safetensors").is_file()


def test_missing_llmcompressor_is_one_line_error(run_ffp, pruned, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.commands.quantize.find_spec", lambda name: None)
    code, _, errors = run_ffp("quantize", "-m", pruned, tmp_path / "out", "--scheme", "w8a8")
    assert code == 2 and "pip install llmcompressor" in errors
