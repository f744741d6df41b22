import pytest
import torch
from tokenizers import decoders
from transformers import PreTrainedTokenizerFast

from optimum_ffp.data.windows import count_bytes
from tests.helpers import SAMPLE, make_byte_fallback_tokenizer, make_byte_level_tokenizer


def make_llama_tokenizer() -> PreTrainedTokenizerFast:
    """BPE with byte fallback that strips the first space of what it decodes, as Llama 2's."""
    tokenizer = make_byte_fallback_tokenizer()
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def bytes_of(token: str) -> int:
    """Bytes that a token of BPE with byte fallback stands for."""
    return 1 if token.startswith("<0x") else len(token.replace("▁", " ").encode())


@pytest.mark.parametrize(
    ("make_tokenizer", "measure"), [(make_byte_level_tokenizer, len), (make_llama_tokenizer, bytes_of)]
)
def test_bytes_of_windows_are_those_of_their_predicted_tokens(make_tokenizer, measure):
    tokenizer = make_tokenizer()
    # Windows of 10 tokens divide some of the Greek letters, of which both tokenizers encode the bytes.
    tokens = torch.tensor(tokenizer((SAMPLE + "of αλεπού , ") * 9, add_special_tokens=False).input_ids)
    windows = tokens[: len(tokens) // 10 * 10].view(-1, 10)
    expected = sum(measure(token) for window in windows for token in tokenizer.convert_ids_to_tokens(window[1:]))
    assert count_bytes(windows, tokenizer) == expected
