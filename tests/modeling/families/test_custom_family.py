"""A family from outside of the package, added as docs/families.md says: its record and a generated file."""

from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_ffp import FFPConfig, FFPModelForCausalLM, FFPPruner
from optimum_ffp.modeling.families import FAMILIES, Family
from tests.helpers import GATED, fill_with_noise, save_with_tokenizer


pytestmark = pytest.mark.slow


STARCODER2 = Family(
    model_type="starcoder2",
    ffn_inputs=("mlp.c_fc",),
    ffn_output="mlp.c_proj",
    modeling="tests.modeling.families.modeling_ffp_starcoder2",
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    config = AutoConfig.for_model("starcoder2", **GATED, sliding_window=None)
    save_with_tokenizer(fill_with_noise(AutoModelForCausalLM.from_config(config)), tmp_path / "dense")
    return tmp_path / "dense"


def test_custom_family_is_pruned_saved_and_loaded(folder, data_folder, windows, tmp_path, monkeypatch):
    monkeypatch.setitem(FAMILIES, "starcoder2", STARCODER2)
    sizes = {"seq_len": 24, "num_samples": 6, "search_samples": 2, "eval_samples": 2, "search_steps": 8}
    pruner = FFPPruner.from_pretrained(
        folder, FFPConfig(dataset=str(data_folder), sparsity=0.3, **sizes), device="cpu"
    )
    model = pruner.prune().model
    pruned = tmp_path / "pruned"
    pruner.save_pretrained(pruned)
    assert (pruned / "modeling_ffp_starcoder2.py").is_file()
    logits = model(windows).logits
    assert FFPModelForCausalLM.from_pretrained(pruned)(windows).logits.equal(logits)

    # The code of the folder alone, as on a machine without this package.
    remote = AutoModelForCausalLM.from_pretrained(pruned, trust_remote_code=True)
    assert type(remote).__module__.startswith("transformers_modules") and remote(windows).logits.equal(logits)
