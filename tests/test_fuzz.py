"""Broken configs, weights, data and arguments: each ends in a named error or changes nothing."""

import json
import re
import shutil
import struct
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner
from tests.helpers import make_text, make_tiny_model, make_tokenizer


pytestmark = pytest.mark.slow
SECONDS, BYTES = 20, 2**28
OPTIONS = {"seq-len": 24, "num-samples": 4, "search-samples": 2, "eval-samples": 2, "device": "cpu"}
SHORT = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
# What `run_ffp` captures and patches is the same for all examples.
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(scope="module")
def dense(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("dense") / "model"
    make_tiny_model().save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("data")
    for seed, split in enumerate(("train", "validation", "test")):
        (folder / f"{split}.txt").write_text(make_text(600, seed))
    return folder


@pytest.fixture(scope="module")
def pruned(dense, data, tmp_path_factory) -> Path:
    """What `prune_command` makes of the sound model and data."""
    options = {name.replace("-", "_"): value for name, value in OPTIONS.items() if name != "device"}
    config = FFPConfig(dataset=str(data), method="uniform", **options)
    pruner = FFPPruner.from_pretrained(dense, config, device="cpu")
    pruner.prune()
    folder = tmp_path_factory.mktemp("pruned") / "model"
    pruner.save_pretrained(folder)
    return folder


def prune_command(model: Path, out: Path, data: Path) -> list[str]:
    return ["prune", "-m", str(model), str(out), "--dataset", str(data), "--method", "uniform", *SHORT]


@contextmanager
def in_bounds() -> Iterator[None]:
    """Checks that what is done takes little time, and little more memory than there was before."""
    start, before = time.monotonic(), peak_bytes(reset=True)
    yield
    assert time.monotonic() - start < SECONDS
    assert peak_bytes() - before < BYTES


def peak_bytes(reset: bool = False) -> int:
    """The most memory that this process has held since the last reset, 0 where the system doesn't tell."""
    status, references = Path("/proc/self/status"), Path("/proc/self/clear_refs")
    if not references.is_file():
        return 0
    if reset:
        references.write_text("5")
    return 1024 * int(re.search(r"VmHWM:\s+(\d+) kB", status.read_text())[1])


def refused(code: int, errors: str) -> bool:
    """Whether a command ended in one line that names what is wrong. It asserts that it was done otherwise."""
    named = [line for line in errors.splitlines() if line.startswith("error: ") or ": error: " in line]
    assert code == 0 or (code == 2 and len(named) == 1 and "Traceback" not in errors), errors
    return code == 2


# The place of a value in config.json and what to put there.
SIZES = (
    *("hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim"),
    *("intermediate_size", "vocab_size", "tie_word_embeddings"),
)
GONE = "gone"
VALUES = [-1, 0, 1, 3, 10**3, 10**12, 2**63, 1.5, float("nan"), "8", "", None, True, [], [4], {}, {"a": 1}, GONE]
sizes, layers, values = st.sampled_from(SIZES), st.sampled_from(["0", "1", "2", "7", "x"]), st.sampled_from(VALUES)
per_layer = st.just("per_layer_config")
other_names = st.sampled_from(["per_layer_config", "model_type", "auto_map", "architectures", "dtype"])
places = st.one_of(
    st.tuples(sizes), st.tuples(per_layer, layers, sizes), st.tuples(per_layer, layers), st.tuples(other_names)
)
config_breaks = st.one_of(st.tuples(places, values), st.floats(0, 1, exclude_max=True))
AUTO_MAP_PATH = ("auto_map",), {"AutoModelForCausalLM": "../../evil.Model"}


def break_config(folder: Path, broken: tuple[tuple[str, ...], Any] | float) -> None:
    """Changes a value of config.json, or cuts the file off after this share of it."""
    path = folder / "config.json"
    text = path.read_text()
    if isinstance(broken, float):
        path.write_text(text[: int(broken * len(text))])
        return
    (*parents, name), value = broken
    config = inner = json.loads(text)
    for parent in parents:
        inner = inner.setdefault(parent, {})
    if value == GONE:
        inner.pop(name, None)
    else:
        inner[name] = value
    path.write_text(json.dumps(config))


weights_breaks = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("length"), st.sampled_from([0, 1, 100, 2**40, 2**64 - 1])),
    st.tuples(st.just("noise"), st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))),
    st.tuples(st.just("text"), st.sampled_from(["", "not a checkpoint"])),
    st.tuples(st.just("shape"), st.sampled_from([[48, 32], [0], [2**40, 2**40], [-1, 4], []])),
    st.tuples(st.just("dtype"), st.sampled_from(["I32", "F16", "F64", "BOOL", "X9"])),
    st.tuples(st.just("data_offsets"), st.sampled_from([[0, 4], [-4, 8], [2**40, 2**41], [8, 4]])),
    st.tuples(st.sampled_from(["rename", "remove"]), st.none()),
)


def break_weights(folder: Path, broken: tuple[str, Any], tensor: int = 9) -> None:
    """Cuts model.safetensors off, or lets its header say something else about the same bytes."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [key for key in header if key != "__metadata__"]
    name = names[tensor % len(names)]
    match broken:
        case "cut", share:
            content = content[: int(share * len(content))]
        case "length", wrong:
            content = struct.pack("<Q", wrong) + content[8:]
        case "noise", (share, byte):
            at = 8 + int(share * length)
            content = content[:at] + bytes([byte]) + content[at + 1 :]
        case "text", text:
            content = text.encode()
        case kind, value:
            if kind == "rename":
                header[f"{name}.other"] = header.pop(name)
            elif kind == "remove":
                del header[name]
            else:
                header[name][kind] = value
            text = json.dumps(header).encode()
            content = struct.pack("<Q", len(text)) + text + body
    path.write_bytes(content)


def loads_as_it_was_or_not_at_all(folder: Path, expected: torch.Tensor, windows: torch.Tensor) -> None:
    try:
        with in_bounds():
            model = FFPModelForCausalLM.from_pretrained(folder)
    except FFPError as error:
        assert "\n" not in str(error) and str(error)
    else:
        assert torch.equal(model(windows).logits, expected)


@pytest.fixture(scope="module")
def windows() -> torch.Tensor:
    return torch.randint(3, 128, (2, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def logits(pruned, windows) -> torch.Tensor:
    return FFPModelForCausalLM.from_pretrained(pruned)(windows).logits


@settings(fuzz, max_examples=70)
@given(broken=config_breaks)
@example(broken=AUTO_MAP_PATH)
def test_a_broken_config_never_loads_as_another_model(pruned, logits, windows, broken):
    with TemporaryDirectory() as scratch:
        folder = shutil.copytree(pruned, Path(scratch, "model"))
        break_config(folder, broken)
        loads_as_it_was_or_not_at_all(folder, logits, windows)


@settings(fuzz, max_examples=70)
@given(broken=weights_breaks, tensor=st.integers(0, 30))
def test_broken_weights_never_load_as_another_model(pruned, logits, windows, broken, tensor):
    with TemporaryDirectory() as scratch:
        folder = shutil.copytree(pruned, Path(scratch, "model"))
        break_weights(folder, broken, tensor)
        loads_as_it_was_or_not_at_all(folder, logits, windows)


def prunes_as_it_did_or_not_at_all(run_ffp, folder: Path, data: Path, pruned: Path) -> None:
    out = folder.parent / "out"
    with in_bounds():
        code, _, errors = run_ffp(*prune_command(folder, out, data))
    if refused(code, errors):
        assert not out.exists()
    else:
        assert (out / "model.safetensors").read_bytes() == (pruned / "model.safetensors").read_bytes()


@settings(fuzz, max_examples=30)
@given(broken=config_breaks)
@example(broken=AUTO_MAP_PATH)
def test_a_broken_config_is_never_pruned_as_another_model(dense, data, pruned, run_ffp, broken):
    with TemporaryDirectory() as scratch:
        folder = shutil.copytree(dense, Path(scratch, "model"))
        break_config(folder, broken)
        prunes_as_it_did_or_not_at_all(run_ffp, folder, data, pruned)


@settings(fuzz, max_examples=30)
@given(broken=weights_breaks, tensor=st.integers(0, 30))
def test_broken_weights_are_never_pruned_as_another_model(dense, data, pruned, run_ffp, broken, tensor):
    with TemporaryDirectory() as scratch:
        folder = shutil.copytree(dense, Path(scratch, "model"))
        break_weights(folder, broken, tensor)
        prunes_as_it_did_or_not_at_all(run_ffp, folder, data, pruned)


ROWS = {
    "text": b'{"text": "w5 w6"}\n' * 60,
    "columns": b'{"a": "w5", "b": "w6"}\n' * 50,
    "numbers": b'{"text": 5}\n' * 50,
    "missing": b'{"text": null}\n' * 50,
    "mixed": b'{"text": "w5 w6"}\n{"text": ["w5"]}\n' * 30,
    "one line": make_text(3000).replace("\n", " ").encode(),
}
CONTENTS = ROWS | {
    "broken": b'{"text": "w5 w6"\n' * 20,
    "empty": b"",
    "blank": b"\n\n \n\t\n",
    "latin-1": "é\xff ÿ ".encode("latin-1") * 500,
    "utf-16": make_text(200).encode("utf-16"),
    "nulls": b"\0" * 5000,
    "short": b"w5 w6",
    "half": b"PAR1" + bytes(range(128, 228)),
}


def is_text(suffix: str, content: str | bytes) -> bool:
    """Whether a file holds enough text. As plain text any row will do, even one of JSON."""
    return content == "text" if suffix in (".jsonl", ".json") else suffix == ".txt" and content in ROWS


@settings(fuzz, max_examples=50)
@given(
    suffix=st.sampled_from([".txt", ".jsonl", ".json", ".parquet", ".csv", ""]),
    content=st.sampled_from(sorted(CONTENTS))
    | st.binary(min_size=1, max_size=20).map(lambda some: b"\xff" + some * 99),
)
@example(suffix=".txt", content="one line")
@example(suffix=".jsonl", content="text")
@example(suffix=".jsonl", content="numbers")
@example(suffix=".json", content="mixed")
def test_files_without_text_are_refused_and_those_with_it_are_not(dense, run_ffp, suffix, content):
    with TemporaryDirectory() as scratch:
        file, out = Path(scratch, f"data{suffix}"), Path(scratch, "out")
        file.write_bytes(CONTENTS.get(content, content))
        with in_bounds():
            code, _, errors = run_ffp(*prune_command(dense, out, file))
        assert refused(code, errors) == (not is_text(suffix, content)), errors
        assert out.exists() == (code == 0)


# What an option may be among these, at a sparsity of 0.2. All others are errors, even if nothing reads the option.
WORDS = ["-1", "0", "0.2", "1", "1.5", "2", "1e9", "nan", "inf", "x", "", "32", "none", "../..", "\0", "é"]
COUNTS = {"1", "2", "32"}
SHARES = {"0", "0.2", "1"}
ALLOWED = {
    "sparsity": {"0.2"},
    "min-retention": {"0", "0.2"},
    "max-retention": {"1"},
    **dict.fromkeys(["num-samples", "search-samples", "search-steps", "candidates", "batch-size"], COUNTS),
    "held-out-samples": COUNTS,
    "seq-len": COUNTS - {"1"},
    "seed": COUNTS | {"0"},
    "ridge-lambda": {"0", "0.2", "1", "1.5", "2", "1e9", "32"},
    "rate-precision": SHARES,
    "ffn-multiple": {"1", "2"},
    "calibration": {"none"},
    **dict.fromkeys(["criterion", "mapping", "reward", "method", "preset", "dtype", "warm-start", "config"], set()),
    # Read only where the model is one of the Hub.
    "revision": set(),
}
# Looked for when the search begins.
LATE = ("warm-start",)


@pytest.mark.parametrize("name", sorted(ALLOWED.keys() - LATE))
def test_every_wrong_value_of_an_option_is_refused_and_no_right_one(dense, data, run_ffp, monkeypatch, tmp_path, name):
    monkeypatch.chdir(tmp_path)
    for value in WORDS:
        command = ["prune", "-m", str(dense), "out", "--dataset", str(data), *SHORT, "--plan", f"--{name}", value]
        # Only PPO reads it.
        readers = ["--agent", "ppo"] if name == "candidates" else []
        code, _, errors = run_ffp(*command, *readers)
        assert refused(code, errors) == (value not in ALLOWED[name]), (value, errors)


some_options = st.dictionaries(st.sampled_from(sorted(ALLOWED)), st.sampled_from(WORDS), min_size=1, max_size=3)


@settings(fuzz, max_examples=30)
@given(options=some_options)
@example(options={"config": ""})
@example(options={"warm-start": ""})
@example(options={"seq-len": "32", "ridge-lambda": "0"})
def test_wild_arguments_end_in_one_line(dense, data, run_ffp, monkeypatch, options):
    given_words = [word for name, value in options.items() for word in (f"--{name}", value)]
    with TemporaryDirectory() as scratch, monkeypatch.context() as patch:
        patch.chdir(scratch)
        command = ["prune", "-m", str(dense), "out", "--dataset", str(data), *SHORT, "--search-steps", "4"]
        with in_bounds():
            code, _, errors = run_ffp(*command, *given_words)
        assert refused(code, errors) or all(value in ALLOWED[name] for name, value in options.items())
        assert Path("out").exists() == (code == 0)
