import json
from functools import partial

import pytest
import torch

from tests.helpers import make_byte_level_tokenizer, make_tiny_model


@pytest.fixture
def run(run_ffp):
    return partial(run_ffp, "export")


@pytest.fixture
def model(tmp_path):
    folder = tmp_path / "model"
    make_tiny_model(vocab_size=320).save_pretrained(folder)
    make_byte_level_tokenizer().save_pretrained(folder)
    return folder


def test_export_writes_requested_output_type(run, model, tmp_path):
    import gguf

    out = tmp_path / "deep" / "model.gguf"
    code, output, _ = run("-m", model, out, "--outtype", "f32")
    assert code == 0 and "f32, architecture llama" in output
    (found,) = [tensor for tensor in gguf.GGUFReader(out).tensors if tensor.name == "token_embd.weight"]
    expected = make_tiny_model(vocab_size=320).model.embed_tokens.weight
    assert torch.equal(torch.from_numpy(found.data.copy()), expected)
    assert [path.name for path in out.parent.iterdir()] == ["model.gguf"]


def test_special_tokens_without_embedding_are_omitted(run, model, tmp_path):
    """As fine-tunes add a padding token without resizing the model."""
    import gguf

    tokenizer = make_byte_level_tokenizer()
    rows = json.loads((model / "config.json").read_text())["vocab_size"]
    tokenizer.add_tokens([f"<|unused{number}|>" for number in range(rows - len(tokenizer))], special_tokens=True)
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert tokenizer.pad_token_id == rows
    tokenizer.save_pretrained(model)
    code, _, errors = run("-m", model, tmp_path / "out.gguf")
    assert code == 0, errors
    fields = gguf.GGUFReader(tmp_path / "out.gguf").fields
    assert len(fields["tokenizer.ggml.tokens"].data) == rows and "tokenizer.ggml.padding_token_id" not in fields


@pytest.mark.slow
def test_only_gguf_files_are_overwritten_and_only_with_option(run, model, tmp_path):
    out, words = tmp_path / "out.gguf", ["-m", model, tmp_path / "out.gguf"]
    out.write_text("mine")
    for more in ([], ["--overwrite"]):
        code, _, errors = run(*words, *more)
        assert code == 2 and errors.count("\n") == 1 and out.read_text() == "mine"
    assert "is never replaced" in errors
    out.write_bytes(b"GGUF of another model")
    code, _, errors = run(*words)
    assert code == 2 and "pass --overwrite" in errors
    assert run(*words, "--overwrite")[0] == 0 and out.stat().st_size > 1000
    for place in (model, model / "config.json", tmp_path):
        assert run("-m", model, place, "--overwrite")[0] == 2
