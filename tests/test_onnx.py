import re
import subprocess
import sys

import pytest

from tests.test_after_pruning import EXAMPLES, FAMILIES, prune_picomodel


@pytest.mark.parametrize("name", FAMILIES)
def test_onnx_runtime_gives_the_logits_of_torch(name, tmp_path):
    for module in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(module)
    folder, output = prune_picomodel(name, tmp_path / "pruned"), tmp_path / "model.onnx"
    command = [sys.executable, str(EXAMPLES / "export_onnx.py"), str(folder), str(output)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    differences = re.findall(r"differ by (\S+)", done.stdout)
    assert len(differences) == 3 and max(map(float, differences)) < 1e-4
