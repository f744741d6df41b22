"""Windows to train on, in a random order."""

from dataclasses import dataclass
from itertools import chain, islice

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import Text, TextMix
from ..errors import FFPError
from ..utils.seeds import seed_of
from .cutting import cut_blocks, cut_windows, find_start_token
from .loading import CHARACTERS_PER_TOKEN, MOST_CHARACTERS, read_parts
from .request import DataRequest
from .self_generated import sample_from_model


@dataclass(frozen=True)
class TrainingWindows:
    """Windows in the order in which they are trained on.

    Attributes:
        tokens: Token ids, int32, shape `[windows, window length]`.
        passes: How often each text is read, by name: above 1 where it is shorter than its share of the windows, and 1
            where it suffices.
    """

    tokens: torch.Tensor
    passes: dict[str, float]


def training_windows(
    texts: TextMix,
    tokenizer: PreTrainedTokenizerBase,
    model: PreTrainedModel,
    count: int,
    request: DataRequest,
) -> TrainingWindows:
    """Read as much text as is needed, and cut it into windows.

    It is what `load_windows` calibrates on, and of a text without three splits all that follows what that divides.
    Text that ends before it suffices is repeated.

    Args:
        texts: Texts to train on.
        tokenizer: Tokenizer of the model.
        model: The dense model, which writes text for `self`.
        count: Number of windows.
        request: The request for `load_windows`.

    Raises:
        FFPError: If a text can't be read or is shorter than a window.
    """
    start = find_start_token(tokenizer, request.start_token)
    found, passes = [], {}
    for name, number in texts.divide(count).items():
        if name == "self":
            # Other text than the held-out and test windows that `load_windows` samples.
            sampled = sample_from_model(model, tokenizer, number, request.length, seed_of(request.seed, 1))
            found.append(sampled.int())
        elif number:
            parts, rest = read_parts(Text(name), tokenizer, request)
            size = min(request.length * CHARACTERS_PER_TOKEN * number, MOST_CHARACTERS)
            blocks = cut_blocks(chain(parts["calibration"].pieces, rest), size)
            windows = cut_windows(blocks, tokenizer, model, request.length, name, start)
            once = [window.int() for window in islice(windows, number)]
            if not once:
                raise FFPError(
                    f"{name} has less than one window of {request.length} tokens to train on; give more text, "
                    "or lower seq_len"
                )
            found.append(torch.stack(once)[torch.arange(number) % len(once)])
            passes[name] = number / len(once)
    order = torch.randperm(count, generator=torch.Generator().manual_seed(request.seed))
    return TrainingWindows(torch.cat(found)[order], passes)
