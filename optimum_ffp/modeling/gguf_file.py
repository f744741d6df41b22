"""GGUF files of dense models, which transformers dequantizes: checks before and after loading."""

from functools import lru_cache
from importlib.util import find_spec
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..errors import FFPError, convert_errors, one_line
from ..utils.folders import expand


if TYPE_CHECKING:
    from gguf import GGUFReader


# Hidden size of the one Gemma 2 whose `query_pre_attn_scalar` is not that of the others.
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


def check_read_whole(model_id: str, model: PreTrainedModel) -> None:
    """Raise `FFPError` if a model lacks weights or rotary scaling of its file.

    Transformers silently skips tensors that it has no name for (biases, factors of a rotary embedding).
    """
    reader = open_gguf(model_id)
    held, read = sum(int(tensor.n_elements) for tensor in reader.tensors), model.num_parameters()
    scaled = [name for name in reader.fields if name.endswith("rope.scaling.type")]
    if held != read or any(reader.fields[name].contents() != "none" for name in scaled):
        found = f"{held:,} weights for a model of {read:,}" if held != read else "a scaled rotary embedding"
        raise FFPError(
            f"{model_id} has {found}: transformers doesn't read this GGUF file whole and would run another model; "
            "give the folder or Hub id that it was made from"
        )
    if model.config.model_type == "gemma2" and model.config.hidden_size == GEMMA2_27B:
        raise FFPError(
            f"{model_id} is a Gemma 2 of 27B, whose scale of attention transformers doesn't read from GGUF files; "
            "give the folder or Hub id that it was made from"
        )
