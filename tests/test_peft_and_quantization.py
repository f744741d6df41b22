"""What is done with a pruned checkpoint next: LoRA by peft, int8 by torchao and bitsandbytes."""

import re
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, PreTrainedModel, TorchAoConfig

from optimum_ffp import FFPModelForCausalLM
from tests.helpers import CONFIGS, make_tiny_model, save_pruned_model


pytestmark = pytest.mark.slow


def load(folder: Path) -> PreTrainedModel:
    return FFPModelForCausalLM.from_pretrained(folder).eval()


# peft has default targets for llama and gpt-neox, and none for ministral3; GPT-2 has layers of its own.
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "gpt2", "phi3", "ministral3"])
def test_lora_on_pruned_model_trains_loads_and_merges(name, windows, tmp_path):
    peft = pytest.importorskip("peft")
    folder = save_pruned_model(name, tmp_path / "pruned")
    # peft finds a family's default targets, if it has some, by the model type, which pruning keeps.
    known = peft.utils.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    targets = None if CONFIGS[name][0] in known else "all-linear"
    model = peft.get_peft_model(load(folder), peft.LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=targets))
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=0.03)
    losses = []
    for _ in range(8):
        loss = model(windows, labels=windows).loss
        losses.append(loss.item())
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-1] < 0.95 * losses[0]

    model.save_pretrained(tmp_path / "adapter")
    assert {path.suffix for path in (tmp_path / "adapter").iterdir()} == {".json", ".md", ".safetensors"}
    with torch.no_grad():
        expected = model.eval()(windows).logits
        again = peft.PeftModel.from_pretrained(load(folder), tmp_path / "adapter")
        assert torch.equal(again(windows).logits, expected)
        remote = peft.AutoPeftModelForCausalLM.from_pretrained(tmp_path / "adapter", trust_remote_code=True)
        assert torch.equal(remote(windows).logits, expected)

        merged = again.merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        remote = AutoModelForCausalLM.from_pretrained(tmp_path / "merged", trust_remote_code=True)
        for candidate in (merged, load(tmp_path / "merged"), remote.eval()):
            assert torch.allclose(candidate(windows).logits, expected, atol=1e-3)


def relative_error(model: PreTrainedModel, exact: PreTrainedModel, windows: torch.Tensor) -> float:
    with torch.no_grad():
        difference = model(windows).logits - exact(windows).logits
        return float(difference.norm() / exact(windows).logits.norm())


# GPT-2 has none of torch's Linear layers, which torchao looks for.
@pytest.mark.parametrize("name", ["llama", "gpt-neox", "phi3", "opt"])
def test_torchao_int8_error_of_pruned_model_is_like_dense(name, windows, tmp_path):
    quantization = pytest.importorskip("torchao.quantization")
    options = {"quantization_config": TorchAoConfig(quantization.Int8WeightOnlyConfig())}
    make_tiny_model(name).save_pretrained(tmp_path / "dense")
    folder = save_pruned_model(name, tmp_path / "pruned")
    dense = AutoModelForCausalLM.from_pretrained(tmp_path / "dense", **options)
    pruned = FFPModelForCausalLM.from_pretrained(folder, **options)
    of_dense = relative_error(dense, AutoModelForCausalLM.from_pretrained(tmp_path / "dense"), windows)
    of_pruned = relative_error(pruned, load(folder), windows)
    assert 0 < of_pruned < 2 * of_dense

    pruned.save_pretrained(tmp_path / "int8")
    assert not list((tmp_path / "int8").glob("*.bin"))
    remote = AutoModelForCausalLM.from_pretrained(tmp_path / "int8", trust_remote_code=True)
    for again in (load(tmp_path / "int8"), remote):
        assert torch.equal(again(windows).logits, pruned(windows).logits)


def test_quantization_example(run_example, data_folder, tmp_path):
    pytest.importorskip("torchao")
    folder = save_pruned_model("llama", tmp_path / "pruned")
    sizes = ["--seq-len", "24", "--eval-samples", "6", "--output", tmp_path / "int8"]
    printed = run_example("quantize.py", folder, data_folder, *sizes)
    after, before = map(float, re.search(r"^perplexity +([\d.]+) +([\d.]+)", printed, re.MULTILINE).groups())
    assert after == pytest.approx(before, rel=0.05)


def test_bitsandbytes_int8_checkpoint_round_trips(windows, tmp_path):
    pytest.importorskip("bitsandbytes")
    folder = save_pruned_model("llama", tmp_path / "pruned")
    options = {"quantization_config": BitsAndBytesConfig(load_in_8bit=True), "device_map": "cpu"}
    quantized = FFPModelForCausalLM.from_pretrained(folder, **options)
    assert 0 < relative_error(quantized, load(folder), windows) < 0.1
    quantized.save_pretrained(tmp_path / "int8")
    assert torch.equal(load(tmp_path / "int8")(windows).logits, quantized(windows).logits)
