"""Broken configs, checkpoints, data and arguments: each ends in a named error, and none in a wrong model."""

import json
import random
import resource
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner
from tests.conftest import make_text, make_tiny_model, make_tokenizer


SECONDS, GIBIBYTES = 20, 6
OPTIONS = {"seq-len": 24, "num-samples": 4, "search-samples": 2, "eval-samples": 2, "device": "cpu"}
FAST = [word for name, value in OPTIONS.items() for word in (f"--{name}", str(value))]
NUMBERS = [-1, 0, 1, 3, 10**3, 10**12, 2**63, 1.5, float("nan"), "8", "", None, True, [], [4], {}, {"a": 1}]
WILD_OPTIONS = [
    *(
        "sparsity",
        "min-retention",
        "max-retention",
        "num-samples",
        "seq-len",
        "search-steps",
        "search-samples",
        "seed",
    ),
    *(
        "ridge-lambda",
        "criterion",
        "mapping",
        "reward",
        "calibration",
        "method",
        "preset",
        "ffn-multiple",
        "candidates",
    ),
    *("held-out-samples", "dtype", "warm-start", "batch-size", "rate-precision", "dense-target", "revision", "config"),
]
SIZES = [
    "hidden_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "intermediate_size",
    "vocab_size",
    "tie_word_embeddings",
]


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
    config = FFPConfig(dataset=str(data), sparsity=0.4, method="no-search", seq_len=24, num_samples=4, eval_samples=2)
    pruner = FFPPruner.from_pretrained(dense, config, device="cpu")
    pruner.prune()
    folder = tmp_path_factory.mktemp("pruned") / "model"
    pruner.save_pretrained(folder)
    return folder


def edit_json(path: Path, change: Callable[[dict[str, Any]], Any]) -> None:
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def break_config(folder: Path, generator: random.Random) -> str:
    """Wrong sizes, for all layers or one, wrong layers, wrong names and broken JSON."""
    path = folder / "config.json"
    name, value = generator.choice(SIZES), generator.choice(NUMBERS)
    layers = json.loads(path.read_text()).get("per_layer_config") or {"0": {}}
    layer = generator.choice(sorted(layers))
    changes: list[tuple[str, Callable[[dict[str, Any]], Any]]] = [
        (f"{name}={value!r}", lambda config: config.update({name: value})),
        (f"no {name}", lambda config: config.pop(name, None)),
        (f"layer {layer} {name}={value!r}", lambda config: config["per_layer_config"][layer].update({name: value})),
        (f"layer {layer} is {value!r}", lambda config: config["per_layer_config"].update({layer: value})),
        (f"per_layer_config={value!r}", lambda config: config.update(per_layer_config=value)),
        (f"no layer {layer}", lambda config: config["per_layer_config"].pop(layer)),
        (f"layer {value!r}", lambda config: config["per_layer_config"].update({str(value): layers[layer]})),
        (f"model_type={value!r}", lambda config: config.update(model_type=value)),
        (f"auto_map={value!r}", lambda config: config.update(auto_map=value)),
        ("auto_map is a path", lambda config: config.update(auto_map={"AutoModelForCausalLM": "../../evil.Model"})),
        (f"architectures={value!r}", lambda config: config.update(architectures=value)),
        (f"dtype={value!r}", lambda config: config.update(dtype=value)),
    ]
    label, change = generator.choice(changes)
    try:
        edit_json(path, change)
    except (KeyError, AttributeError, TypeError):
        path.write_text(path.read_text()[: generator.randrange(len(path.read_text()))])
        label = "cut config"
    return label


def break_weights(folder: Path, generator: random.Random) -> str:
    """Truncated files and headers that say something else about the same bytes."""
    path = folder / "model.safetensors"
    content = path.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    name = generator.choice([key for key in header if key != "__metadata__"])
    kind = generator.choice(
        ["cut", "empty", "length", "shape", "dtype", "rename", "remove", "offsets", "noise", "text"]
    )
    match kind:
        case "cut":
            path.write_bytes(content[: generator.randrange(len(content))])
            return kind
        case "empty":
            path.write_bytes(b"")
            return kind
        case "length":
            path.write_bytes(struct.pack("<Q", generator.choice([0, 1, length * 2, 2**40, 2**64 - 1])) + content[8:])
            return kind
        case "noise":
            position = generator.randrange(8, 8 + length)
            path.write_bytes(content[:position] + bytes([generator.randrange(256)]) + content[position + 1 :])
            return f"{kind} at {position}"
        case "text":
            path.write_text("not a checkpoint")
            return kind
        case "shape":
            header[name]["shape"] = generator.choice([header[name]["shape"][::-1], [0], [2**40, 2**40], [-1, 4], []])
        case "dtype":
            header[name]["dtype"] = generator.choice(["I32", "F16", "F64", "BOOL", "X9"])
        case "rename":
            header[f"{name}.other"] = header.pop(name)
        case "remove":
            del header[name]
        case "offsets":
            header[name]["data_offsets"] = generator.choice([[0, 4], [-4, 8], [2**40, 2**41], [8, 4]])
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)
    return f"{kind} {name}"


def break_data(folder: Path, generator: random.Random) -> str:
    """Files that are empty, binary, of another encoding, one enormous line, or of other columns."""
    suffix = generator.choice([".txt", ".jsonl", ".json", ".parquet", ".csv", ""])
    contents = {
        "empty": b"",
        "blank": b"\n\n \n\t\n",
        "binary": generator.randbytes(2000),
        "latin-1": "é\xff ÿ ".encode("latin-1") * 500,
        "utf-16": make_text(200).encode("utf-16"),
        "nulls": b"\0" * 5000,
        "one line": make_text(3000).replace("\n", " ").encode(),
        "short": b"w5 w6",
        "columns": b'{"a": "w5", "b": "w6"}\n' * 50,
        "numbers": b'{"text": 5}\n' * 50,
        "missing": b'{"text": null}\n' * 50,
        "mixed": b'{"text": "w5 w6"}\n{"text": ["w5"]}\n' * 30,
        "broken": b'{"text": "w5 w6"\n' * 20,
        "half": b"PAR1" + generator.randbytes(100),
    }
    kind = generator.choice(sorted(contents))
    (folder / f"data{suffix}").write_bytes(contents[kind])
    return f"data{suffix}"


def wild_arguments(generator: random.Random) -> list[str]:
    """One to three options with values that may be wrong."""
    values = ["-1", "0", "0.2", "1", "1.5", "2", "1e9", "nan", "inf", "x", "", "32", "none", "../..", "\0", "é"]
    words = []
    for name in generator.sample(WILD_OPTIONS, generator.randint(1, 3)):
        words += [f"--{name}", generator.choice(values)]
    return words


def in_bounds(action: Callable[[], Any]) -> Any:
    """Runs something and checks that time and memory stay bounded."""
    start = time.monotonic()
    try:
        return action()
    finally:
        assert time.monotonic() - start < SECONDS
        assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20 < GIBIBYTES


def ends_well(code: int, errors: str) -> bool:
    """Whether a command was done, or ended in one line that names what is wrong."""
    named = [line for line in errors.splitlines() if line.startswith("error: ") or ": error: " in line]
    return code == 0 or (code == 2 and len(named) == 1 and "Traceback" not in errors)


def seeds(count: int) -> Iterator[Any]:
    return (pytest.param(seed, id=str(seed)) for seed in range(count))


@pytest.mark.parametrize("part", [break_config, break_weights])
@pytest.mark.parametrize("seed", seeds(90))
def test_a_broken_checkpoint_never_loads_as_another_model(pruned, windows, tmp_path, part, seed):
    folder = tmp_path / "broken"
    shutil.copytree(pruned, folder)
    label = part(folder, random.Random(seed))
    try:
        model = in_bounds(lambda: FFPModelForCausalLM.from_pretrained(folder))
    except FFPError as error:
        assert "\n" not in str(error) and str(error), label
    else:
        expected = FFPModelForCausalLM.from_pretrained(pruned)(windows).logits
        assert torch.allclose(model(windows).logits.float(), expected, atol=1e-2), label


@pytest.mark.parametrize("part", [break_config, break_weights])
@pytest.mark.parametrize("seed", seeds(30))
def test_a_broken_model_is_not_pruned(dense, data, tmp_path, part, seed, run_ffp):
    folder = tmp_path / "broken"
    shutil.copytree(dense, folder)
    label = part(folder, random.Random(seed))
    words = ["prune", "-m", str(folder), str(tmp_path / "out"), "--dataset", str(data), "--method", "uniform", *FAST]
    code, _, errors = in_bounds(lambda: run_ffp(*words))
    assert ends_well(code, errors), f"{label}: {errors}"
    assert code == 0 or not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", seeds(50))
def test_broken_data_ends_in_one_line(dense, tmp_path, seed, run_ffp):
    name = break_data(tmp_path, random.Random(seed))
    words = [
        "prune",
        "-m",
        str(dense),
        str(tmp_path / "out"),
        "--dataset",
        str(tmp_path / name),
        "--method",
        "uniform",
    ]
    code, _, errors = in_bounds(lambda: run_ffp(*words, *FAST))
    assert ends_well(code, errors), errors
    assert code == 0 or not (tmp_path / "out").exists()


@pytest.mark.parametrize("seed", seeds(60))
def test_wild_arguments_end_in_one_line(dense, data, tmp_path, seed, run_ffp, monkeypatch):
    words = wild_arguments(random.Random(seed))
    monkeypatch.chdir(tmp_path)
    command = ["prune", "-m", str(dense), "out", "--dataset", str(data), *FAST, "--search-steps", "4", *words]
    code, _, errors = in_bounds(lambda: run_ffp(*command))
    assert ends_well(code, errors), f"{words}: {errors}"
    assert code == 0 or not (tmp_path / "out").exists()
