"""llama.cpp as node-llama-cpp carries it."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest


NODE_LLAMA_CPP = "3.22.1"


@pytest.fixture(scope="session")
def run_llama_cpp(pytestconfig: pytest.Config) -> Callable[[Path, list[str], int], list[dict[str, Any]]]:
    """Runs a GGUF file; the arguments are the file, texts, and how many tokens to go on with."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm to install node-llama-cpp")
    folder = Path(pytestconfig.cache.mkdir("node-llama-cpp"))
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        packages = [f"node-llama-cpp@{NODE_LLAMA_CPP}"]
        if platform.system() == "Linux" and platform.machine() == "x86_64":
            # Left to itself npm fetches the builds for graphics cards too, which are twenty times as large.
            packages += ["--omit=optional", f"@node-llama-cpp/linux-x64@{NODE_LLAMA_CPP}"]
        subprocess.run(["npm", "install", "--no-save", "--prefix", folder, *packages], check=True, capture_output=True)

    def run(path: Path, texts: list[str], count: int) -> list[dict[str, Any]]:
        request = {"installed": f"{folder}/", "model": str(path), "texts": texts, "count": count}
        script = Path(__file__).with_name("llama_cpp.mjs")
        done = subprocess.run(["node", script], input=json.dumps(request), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
