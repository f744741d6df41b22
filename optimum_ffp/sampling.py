"""Text that a model writes itself, for when there is no data."""

from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import (
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
)

from .batches import with_halving_batches
from .errors import FFPError
from .progress import progress_bar


# Each holds a KV cache of its whole length.
WINDOWS_AT_ONCE = 32


def sample_from_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, count: int, length: int, seed: int
) -> torch.Tensor:
    """Text that the model itself writes from its start token at temperature 1.

    Args:
        model: The dense model.
        tokenizer: Its tokenizer.
        count: Windows to write; `WINDOWS_AT_ONCE` of them a batch, fewer where memory runs out.
        length: Tokens a window.
        seed: Of the sampling.

    Returns:
        Token ids, shape `[count, length]`. Each window begins with the start token that its text was sampled from.

    Raises:
        FFPError: If the tokenizer has no start or end token to begin with.
    """
    start = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.eos_token_id
    if start is None:
        raise FFPError("the tokenizer has neither a start nor an end token to sample from; name a dataset instead")
    prompts = torch.full((count, 1), start, device=model.device)
    # Without an end token the model goes on with its next document, as in the packed text that it was trained on.
    plain_sampling = GenerationConfig(
        do_sample=True, top_k=0, top_p=1.0, max_new_tokens=length - 1, eos_token_id=None, pad_token_id=start
    )

    def write(batch_size: int) -> torch.Tensor:
        batches = prompts.split(batch_size)
        with progress_bar(len(batches) * (length - 1), "Sampling text", "token") as bar, torch.random.fork_rng():
            torch.manual_seed(seed)
            return torch.cat(
                [
                    model.generate(
                        prompt,
                        # The start token may be the padding token too, and must not be masked for it.
                        attention_mask=torch.ones_like(prompt),
                        generation_config=plain_sampling,
                        stopping_criteria=StoppingCriteriaList([_Ticks(bar)]),
                    ).cpu()
                    for prompt in batches
                ]
            )

    return with_halving_batches(write, WINDOWS_AT_ONCE)


class _Ticks(StoppingCriteria):
    # generate has no progress callback; a criterion is asked after every token.
    def __init__(self, bar: tqdm):
        self.bar = bar

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any) -> torch.Tensor:
        self.bar.update()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)
