from pathlib import Path

import pytest

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from optimum_ffp.modeling.loading import LoadOptions, load_dense
from tests.helpers import SETTINGS


def test_layers_on_disk_are_memory_mapped(save_tiny_model):
    folder = save_tiny_model()
    model, _ = load_dense(str(folder), LoadOptions(device="cpu", offload="disk"))
    start = model.model.layers[1].mlp.up_proj.weight.data_ptr()
    mapped = [line.split()[0] for line in Path("/proc/self/maps").read_text().splitlines() if str(folder) in line]
    bounds = [[int(end, 16) for end in words.split("-")] for words in mapped]
    assert any(low <= start < high for low, high in bounds)


@pytest.mark.parametrize(("offload", "message"), [("host", "accelerators"), ("cloud", "cloud")])
def test_impossible_offload_is_rejected(save_tiny_model, offload, message):
    with pytest.raises(FFPError, match=message):
        load_dense(str(save_tiny_model()), LoadOptions(device="cpu", offload=offload))


def test_disk_offload_requires_work_folder(save_tiny_model, data_folder):
    config = FFPConfig(dataset=str(data_folder), **SETTINGS)
    with pytest.raises(FFPError, match="offload 'disk' needs a work_folder"):
        FFPPruner.from_pretrained(save_tiny_model(), config, device="cpu", offload="disk")


@pytest.mark.parametrize(
    ("name", "dtype", "options"),
    [
        ("llama", "auto", {"calibration": "ridge"}),
        # Weights are converted on their way to the disk.
        ("llama", "bfloat16", {"calibration": "ridge"}),
        *(pytest.param(name, "auto", {}, marks=pytest.mark.slow) for name in ("llama", "phi3", "gpt2")),
    ],
)
def test_prune_from_disk_is_bit_identical(save_tiny_model, data_folder, tmp_path, name, dtype, options):
    # Several first tokens per window: products with a single row depend on where its factor is in memory.
    config, folder = FFPConfig(dataset=str(data_folder), first_tokens=4, **SETTINGS | options), save_tiny_model(name)
    saved, policies = [], []
    for offload in ("none", "disk"):
        placement = {"device": "cpu", "dtype": dtype, "offload": offload}
        pruner = FFPPruner.from_pretrained(folder, config, tmp_path / "work", **placement)
        result = pruner.prune()
        policies.append((result.policy, result.perplexities, result.log))
        out = tmp_path / offload
        pruner.save_pretrained(out)
        saved.append((out / "model.safetensors").read_bytes())
        assert not (tmp_path / "work").exists()
    assert policies[0] == policies[1]
    assert saved[0] == saved[1]
