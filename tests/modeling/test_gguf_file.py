"""GGUF files as models: read whole, or refused in one line."""

import pytest
import torch

from optimum_ffp.errors import FFPError
from optimum_ffp.export import export_gguf
from optimum_ffp.modeling.loading import LoadOptions, load_any, load_dense
from optimum_ffp.utils.resume import fingerprint
from tests.helpers import make_byte_level_tokenizer, make_tiny_model


gguf = pytest.importorskip("gguf")
CPU = LoadOptions(device="cpu")


def test_gguf_file_loads_as_exported_model(tmp_path):
    model, path = make_tiny_model("llama", vocab_size=600), tmp_path / "model.gguf"
    export_gguf(model, make_byte_level_tokenizer(), path, "f32")
    expected = model.state_dict()
    on_disk = LoadOptions(device="cpu", offload="disk")
    converted = load_dense(str(path), on_disk, tmp_path / "weights")
    sources = load_any(str(path), CPU), load_dense(str(path), CPU), converted
    assert len({fingerprint(model) for model, _ in sources[1:]}) == 1
    for loaded, tokenizer in sources:
        assert loaded.dtype == torch.float32 and loaded.state_dict().keys() == expected.keys()
        assert all(torch.allclose(tensor, expected[name]) for name, tensor in loaded.state_dict().items())
        assert tokenizer("the quick").input_ids == make_byte_level_tokenizer()("the quick").input_ids


def test_malformed_gguf_file_is_one_line_error(tmp_path):
    (tmp_path / "model.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    with pytest.raises(FFPError, match="is not a readable GGUF file") as caught:
        load_dense(str(tmp_path / "model.gguf"), CPU)
    assert "\n" not in str(caught.value)


def test_gguf_file_with_unread_weights_is_rejected(tmp_path):
    model = make_tiny_model("llama-mha", vocab_size=600)
    export_gguf(model, make_byte_level_tokenizer(), tmp_path / "model.gguf", "f32")
    with pytest.raises(FFPError, match="can't load this GGUF file"):
        load_dense(str(tmp_path / "model.gguf"), CPU)
