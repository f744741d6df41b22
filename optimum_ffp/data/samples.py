"""Short texts of a model, to show beside its perplexity."""

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..utils.generation import generate
from .rows import apply_template


QUESTIONS = ("What is the capital of France?", "Why is the sky blue?", "Tell me a story about a dog.")
BEGINNINGS = ("The capital of France is", "The sky is blue because", "Once upon a time, there was a dog who")
NEW_TOKENS = 32


def supports_chat(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Return whether the tokenizer has a chat template that accepts string content."""
    try:
        return "hello" in tokenizer.apply_chat_template([{"role": "user", "content": "hello"}], tokenize=False)
    except Exception:  # There may be no template, and templates may raise any exception.
        return False


@torch.no_grad()
def write_samples(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> dict[str, str]:
    """Return up to `NEW_TOKENS` greedy tokens of a model by prompt: answers if it can chat, or continuations."""
    chat, samples = supports_chat(tokenizer), {}
    greedy = {"do_sample": False, "temperature": None, "top_p": None, "top_k": None, "pad_token_id": 0}
    for prompt in QUESTIONS if chat else BEGINNINGS:
        message = {"role": "user", "content": prompt}
        text = apply_template(tokenizer, [message], add_generation_prompt=True) if chat else prompt
        tokens = tokenizer(text, add_special_tokens=not chat, return_tensors="pt").input_ids.to(model.device)
        written = generate(model, tokens, max_new_tokens=NEW_TOKENS, **greedy)
        samples[prompt] = tokenizer.batch_decode(written[:, tokens.shape[1] :], skip_special_tokens=True)[0].strip()
    return samples
