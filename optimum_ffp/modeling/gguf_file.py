"""GGUF files of dense models, which transformers dequantizes: checks before and after loading."""

import logging
from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..errors import FFPError, convert_errors, one_line
from ..utils.folders import expand


if TYPE_CHECKING:
    from gguf import GGUFReader


# It warns of a vocabulary size that isn't in the file, which is read from the tokenizer.
logging.getLogger("transformers.modeling_gguf_pytorch_utils").setLevel(logging.ERROR)
# Hidden size of Gemma 2 27B, the only one with another `query_pre_attn_scalar`.
GEMMA2_27B = 4608


def check_gguf_installed() -> None:
    """Raise `FFPError` if the `gguf` package is missing."""
    if find_spec("gguf") is None:
        raise FFPError("GGUF files need the gguf package: pip install gguf")


@lru_cache(maxsize=1)
def open_gguf(model_id: str) -> "GGUFReader":
    """Open a GGUF file to read its metadata. Raises `FFPError` if it can't be read."""
    check_gguf_installed()
    from gguf import GGUFReader

    # A broken file can raise any exception in the parser.
    with convert_errors(lambda error: f"{model_id} is not a readable GGUF file: {one_line(error)}"):
        return GGUFReader(expand(model_id))


def check_complete(model_id: str, model: PreTrainedModel) -> None:
    """Raise `FFPError` if transformers hasn't loaded all weights or the RoPE scaling of a GGUF file.

    Transformers silently skips tensors without a name mapping (biases, RoPE factors).
    """
    reader = open_gguf(model_id)
    stored, loaded = sum(int(tensor.n_elements) for tensor in reader.tensors), model.num_parameters()
    scaling = [field.contents() for name, field in reader.fields.items() if name.endswith("rope.scaling.type")]
    if stored != loaded or {*scaling} - {"none"}:
        problem = f"{stored:,} weights for a model of {loaded:,}" if stored != loaded else "RoPE scaling"
        raise FFPError(
            f"{model_id} has {problem}: transformers can't load this GGUF file completely, and would run a different "
            "model; use the original folder or Hub id"
        )
    if model.config.model_type == "gemma2" and model.config.hidden_size == GEMMA2_27B:
        raise FFPError(
            f"{model_id} is a Gemma 2 of 27B, whose attention scale transformers doesn't read from GGUF files; "
            "use the original folder or Hub id"
        )
