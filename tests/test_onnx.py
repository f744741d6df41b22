import re
import runpy
import sys

import pytest

from tests.helpers import EXAMPLES, prune_tiny_model


pytestmark = pytest.mark.slow


@pytest.mark.parametrize("name", ["llama", "gemma3", "phi3", "gpt-neox", "gpt2"])
def test_onnx_runtime_gives_the_logits_of_torch(name, tmp_path, monkeypatch, capsys):
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    script, output = EXAMPLES / "export_onnx.py", tmp_path / "model.onnx"
    monkeypatch.setattr(sys, "argv", [str(script), str(prune_tiny_model(name, tmp_path / "pruned")), str(output)])
    runpy.run_path(str(script), run_name="__main__")
    differences = re.findall(r"differ by (\S+)", capsys.readouterr().out)
    assert len(differences) == 3 and max(map(float, differences)) < 1e-4
