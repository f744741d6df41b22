import re

import pytest

from tests.helpers import save_pruned_model


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["gemma3", "gpt2"])
def test_onnx_export_matches_torch_logits(name, run_example, tmp_path):
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    printed = run_example("export_onnx.py", save_pruned_model(name, tmp_path / "pruned"), tmp_path / "model.onnx")
    differences = re.findall(r"differ by (\S+)", printed)
    assert len(differences) == 3 and max(map(float, differences)) < 1e-4
