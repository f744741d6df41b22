"""Training windows in random order."""

from itertools import chain

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.progress import progress_bar
from ..utils.seeds import seed_of
from .loading import TextReader
from .request import DataRequest
from .self_generated import sample_from_model


def training_windows(
    tokenizer: PreTrainedTokenizerBase, model: PreTrainedModel, request: DataRequest, count: int
) -> tuple[torch.Tensor, dict[str, float]]:
    """Read as much text as needed, and cut it into shuffled windows.

    The text is the calibration part of `load_windows`, whose arguments these are, and whatever follows the divided
    text if there are not three splits. Text that is too short is repeated.

    Returns:
        Token ids, int32, shape `[count, window length]`, and the number of passes over each text by name, which is
        more than 1 if the text is shorter than its share of the windows.

    Raises:
        FFPError: If a text can't be read or is shorter than a window.
    """
    reader, windows_by_text, passes = TextReader(tokenizer, model, request), [], {}
    shares = request.texts.divide(count)
    for text in request.texts:
        name, share = text.name, shares[text.name]
        if text.is_self:
            # Sampled with another seed than the held-out and test windows of `load_windows`.
            sampled = sample_from_model(model, tokenizer, share, request.length, seed_of(request.seed, 1))
            windows_by_text.append(sampled.int())
        else:
            parts, remaining = reader.divide(text)
            blocks = reader.blocks(chain(parts["calibration"][0], remaining), 1 if text.is_answers else share)
            with progress_bar(share, f"Reading {name}, to train on", "window") as bar:
                distinct = reader.cut(blocks, share, f"{name} (to train on)", bar, dtype=torch.int32)
            windows_by_text.append(distinct[torch.arange(share) % len(distinct)])
            passes[name] = share / len(distinct)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(request.seed))
    return torch.cat(windows_by_text)[order], passes
