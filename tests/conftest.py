"""Fixtures: tiny models saved as folders, text, a Hub of this machine."""

import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import settings
from optimum.commands.optimum_cli import main
from transformers import PreTrainedModel
from transformers.utils import logging

from optimum_ffp import FFPPruner
from tests.helpers import (
    DIVERSE_MODELS,
    EXAMPLES,
    VOCABULARY,
    make_pruner,
    make_tiny_model,
    save_with_tokenizer,
    write_data,
)
from tests.hub_server import TOKEN, Hub, run_hub


# The same examples in every run, so that a test fails where something was changed and nowhere else.
settings.register_profile("optimum-ffp", derandomize=True, deadline=None)
settings.load_profile("optimum-ffp")


@pytest.fixture(autouse=True, scope="session")
def quiet_progress() -> None:
    logging.disable_progress_bar()


@pytest.fixture(params=DIVERSE_MODELS)
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_tiny_model(request.param)


@pytest.fixture(autouse=True, scope="session")
def without_fast_bfloat16() -> Iterator[None]:
    """`search_dtype="auto"` is the model's own dtype on every machine: figures don't depend on the hardware."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_ffp.utils.precision._cpu_has_fast_matmul", lambda dtype: False)
        # Without 16-bit instructions, it is what other processes measure; without those for int8, products saturate.
        patch.setenv("ONEDNN_MAX_CPU_ISA", "AVX512_CORE_VNNI")
        yield


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    return write_data(tmp_path / "data")


@pytest.fixture
def run_ffp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs `optimum-cli ffp ...` in this process and returns its exit code, output and error output."""

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["optimum-cli", "ffp", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def run_example(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., str]:
    """Runs an example in this process and returns what it printed."""

    # As for `python examples/NAME`.
    monkeypatch.syspath_prepend(EXAMPLES)

    def run(name: str, *arguments: Any) -> str:
        monkeypatch.setattr("sys.argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture
def save_tiny_model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a tiny model and its tokenizer as a folder that the command line can be given."""

    def save(name: str = "llama") -> Path:
        return save_with_tokenizer(make_tiny_model(name), tmp_path / f"tiny-{name}")

    return save


@pytest.fixture(scope="session")
def pruned(tmp_path_factory) -> tuple[FFPPruner, Path]:
    """A pruner that has pruned a tiny model, and the folder of its checkpoint. Whoever changes it puts it back."""
    base, data, out = (tmp_path_factory.mktemp(name) for name in ("base", "data", "out"))
    save_with_tokenizer(make_tiny_model(), base)
    write_data(data)
    pruner = make_pruner(base, data, sparsity=0.3)
    pruner.prune()
    folder = out / "pruned"
    pruner.save_pretrained(folder)
    return pruner, folder


@pytest.fixture
def folder(pruned, tmp_path) -> Path:
    """A copy of the checkpoint of `pruned`."""
    return shutil.copytree(pruned[1], tmp_path / "tiny ffp")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A Hub that this process speaks to."""
    with run_hub(TOKEN) as server:
        for name, value in {
            "ENDPOINT": server.url,
            "HUGGINGFACE_CO_URL_TEMPLATE": server.url + "/{repo_id}/resolve/{revision}/{filename}",
            "HF_HUB_OFFLINE": False,
            "HF_HUB_DISABLE_XET": True,
            "HF_HUB_CACHE": str(tmp_path / "cache"),
        }.items():
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def lock_folder() -> Iterator[Callable[[Path], Callable[[], None]]]:
    """Locks a folder in a process of its own, which is killed by what this returns."""
    holders = []

    def start(folder: Path) -> Callable[[], None]:
        program = (
            "import sys; from pathlib import Path; from optimum_ffp.utils.folders import locked\n"
            "with locked(Path(sys.argv[1])): print('locked', flush=True); sys.stdin.read()"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        holder = subprocess.Popen([sys.executable, "-c", program, folder], **pipes)
        holders.append(holder)
        assert holder.stdout.readline() == b"locked\n"

        def kill() -> None:
            holder.kill()
            holder.wait()

        return kill

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()
