"""Broken weights and wild arguments: each ends in a named error or changes nothing."""

import json
import struct
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, RecoveryConfig
from tests.helpers import read_files


# What fixtures provide is the same for all examples.
fuzz = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow], deadline=None)
weights_breaks = st.one_of(
    st.tuples(st.just("cut"), st.floats(0, 1, exclude_max=True)),
    st.tuples(st.just("length"), st.sampled_from([0, 1, 100, 2**40, 2**64 - 1])),
    st.tuples(st.just("noise"), st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255))),
    st.tuples(st.just("text"), st.sampled_from(["", "not a checkpoint"])),
    st.tuples(st.just("shape"), st.sampled_from([[48, 32], [0], [2**40, 2**40], [-1, 4], []])),
    st.tuples(st.just("dtype"), st.sampled_from(["F16", "F64", "BOOL", "X9"])),
    st.tuples(st.just("data_offsets"), st.sampled_from([[0, 4], [-4, 8], [2**40, 2**41], [8, 4]])),
    st.tuples(st.sampled_from(["rename", "remove"]), st.none()),
)


def break_weights(content: bytes, broken: tuple[str, Any], tensor: int) -> bytes:
    """Cut a safetensors file off, or let its header say something else about the same bytes."""
    (length,) = struct.unpack("<Q", content[:8])
    header, body = json.loads(content[8 : 8 + length]), content[8 + length :]
    names = [key for key in header if key != "__metadata__"]
    name = names[tensor % len(names)]
    match broken:
        case "cut", share:
            return content[: int(share * len(content))]
        case "length", wrong:
            return struct.pack("<Q", wrong) + content[8:]
        case "noise", (share, byte):
            at = 8 + int(share * length)
            return content[:at] + bytes([byte]) + content[at + 1 :]
        case "text", text:
            return text.encode()
        case "rename", _:
            header[f"{name}.other"] = header.pop(name)
        case "remove", _:
            del header[name]
        case kind, value:
            header[name][kind] = value
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + body


@pytest.mark.slow
@settings(fuzz, max_examples=12)
@given(broken=weights_breaks, tensor=st.integers(0, 30))
def test_corrupt_weights_never_load_as_other_model(pruned, windows, broken, tensor):
    files = read_files(pruned[1])
    expected = FFPModelForCausalLM.from_pretrained(pruned[1])(windows).logits
    with TemporaryDirectory() as folder:
        files["model.safetensors"] = break_weights(files["model.safetensors"], broken, tensor)
        for name, content in files.items():
            path = Path(folder, name)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)
        try:
            model = FFPModelForCausalLM.from_pretrained(folder)
        except FFPError as error:
            assert "\n" not in str(error) and str(error)
        else:
            assert torch.equal(model(windows).logits, expected)


WORDS = ["-1", "0", "0.2", "1", "1.5", "2", "1e9", "nan", "inf", "x", "", "32", "none", "../..", "é"]
wild_values = st.one_of(
    st.sampled_from([*WORDS, *map(int, ["-1", "0", "2"]), -0.5, 0.2, 1e300, float("nan"), None, True, [], {}]),
    st.lists(st.integers(-1, 3), max_size=3),
)


@pytest.mark.parametrize("kind", [FFPConfig, RecoveryConfig])
@settings(fuzz, max_examples=200)
@given(data=st.data())
def test_random_options_round_trip_or_are_one_line_errors(kind, data, tmp_path):
    options = data.draw(st.dictionaries(st.sampled_from(kind.option_names()), wild_values, max_size=3))
    file = tmp_path / "options.json"
    file.write_text(json.dumps(options))
    try:
        config = kind.from_file(file)
    except FFPError as error:
        assert "\n" not in str(error) and str(error)
    else:
        file.write_text(json.dumps(config.to_dict()))
        assert kind.from_file(file) == config


@settings(fuzz, max_examples=40)
@given(name=st.sampled_from(FFPConfig.option_names()), value=st.sampled_from(WORDS))
@example(name="config", value="")
def test_random_arguments_are_one_line_errors(run_ffp, name, value):
    code, output, errors = run_ffp("prune", "-m", "nobody/nothing", "--plan", f"--{name.replace('_', '-')}", value)
    assert code == 2 and "Traceback" not in output + errors
    assert len([line for line in errors.splitlines() if "error: " in line]) == 1
