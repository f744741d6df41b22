"""GGUF files of dense models, which transformers dequantises: what can be read, and whether all of it was."""

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import PreTrainedModel

from ..errors import FFPError
from ..hub.upload import one_line


if TYPE_CHECKING:
    from gguf import GGUFReader


def open_gguf(model_id: str) -> "GGUFReader":
    """What a GGUF file says of itself.

    Raises:
        FFPError: If it can't be read, or has an architecture that transformers doesn't read.
    """
    try:
        from gguf import GGUFReader
    except ImportError:
        raise FFPError("GGUF files need the gguf package: pip install gguf") from None
    try:
        reader = GGUFReader(Path(model_id).expanduser())
        architecture = reader.fields["general.architecture"].contents()
    except Exception as error:  # Whatever its parser runs into in a file that is broken or something else.
        raise FFPError(f"{model_id} is no GGUF file that can be read: {one_line(error)}") from None
    if architecture in ("deci", "openelm"):
        raise FFPError(
            f"{model_id} has llama.cpp's architecture {architecture}, whose layers differ in size and which "
            "transformers doesn't read; give the folder that it was exported from"
        )
    return reader


def check_read_whole(model_id: str, reader: "GGUFReader", model: PreTrainedModel) -> None:
    """Raises `FFPError` if a model has not all that its file holds.

    Transformers skips tensors that it has no name for (biases, factors of a rotary embedding) without a word.
    """
    held, read = sum(int(tensor.n_elements) for tensor in reader.tensors), model.num_parameters()
    scaled = [name for name in reader.fields if name.endswith("rope.scaling.type")]
    if held != read or any(reader.fields[name].contents() != "none" for name in scaled):
        found = f"{held:,} weights for a model of {read:,}" if held != read else "a scaled rotary embedding"
        raise FFPError(
            f"{model_id} has {found}: transformers doesn't read this GGUF file whole and would run another model; "
            "give the folder or Hub id that it was made from"
        )
