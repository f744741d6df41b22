"""Answers of the model itself to the prompts of a text."""

import json
from collections.abc import Iterable, Iterator
from hashlib import sha256
from itertools import islice
from pathlib import Path

import torch
from huggingface_hub import constants
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from ..config.texts import Text
from ..utils.batch_size import with_halving_batches
from ..utils.generation import generate
from ..utils.progress import progress_bar
from ..utils.resume import fingerprint
from ..utils.seeds import seed_of
from .rows import ROW_SEPARATOR, Row, render
from .self_generated import TOKENS_AT_ONCE


# Maximum tokens of an answer.
MAX_ANSWER = 512
# Number of prompts whose answers are saved together.
PROMPTS_AT_ONCE = 32


def answered_pieces(
    prompts: Iterable[Row], text: Text, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, seed: int
) -> Iterator[str]:
    """Yield prompts with the model's answers as pieces of text, answering no more of them than are consumed.

    The model answers as its generation config says, greedily if there is none. All answers are saved in a file, which
    is read first: in the columns `prompt` and `completion`, so that it can be used as a text itself.

    Args:
        prompts: The prompts, of which texts become user turns if the tokenizer has a chat template.
        text: The text that they are from.
        model: The dense model.
        tokenizer: Its tokenizer.
        seed: Random seed.

    Raises:
        FFPError: If the chat template rejects a prompt.
    """
    file = answers_file(text, model, seed)
    file.parent.mkdir(parents=True, exist_ok=True)
    file.touch()
    with file.open(encoding="utf-8") as stream:
        answers = {json.dumps(row["prompt"]): row["completion"] for row in map(json.loads, stream)}
    prompts = (
        [{"role": "user", "content": prompt}] if isinstance(prompt, str) and tokenizer.chat_template else prompt
        for prompt in prompts
    )
    while batch := [*islice(prompts, PROMPTS_AT_ONCE)]:
        unanswered = [prompt for prompt in batch if json.dumps(prompt) not in answers]
        torch.manual_seed(seed_of(seed, len(answers)))
        with file.open("a", encoding="utf-8") as stream:
            for prompt, completion in zip(unanswered, _answer(unanswered, text, model, tokenizer)):
                stream.write(json.dumps({"prompt": prompt, "completion": completion}, ensure_ascii=False) + "\n")
                answers[json.dumps(prompt)] = completion
        for prompt in batch:
            yield render(prompt + answers[json.dumps(prompt)], tokenizer, text.name) + ROW_SEPARATOR


def answers_file(text: Text, model: PreTrainedModel, seed: int) -> Path:
    """Return the file for the answers of a model to the prompts of a text."""
    key = sha256(f"{text.name} {fingerprint(model)} {seed}".encode()).hexdigest()[:12]
    return Path(constants.HF_HOME) / "optimum_ffp" / f"answers-{key}.jsonl"


def _answer(prompts: list[Row], text: Text, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[Row]:
    """Return what the model answers: texts to texts, and a message to a conversation."""
    if not prompts:
        return []
    rendered = [render(prompt, tokenizer, text.name, add_generation_prompt=True) for prompt in prompts]
    tokens = [tokenizer(prompt, add_special_tokens=isinstance(prompts[0], str)).input_ids for prompt in rendered]
    longest, end = max(map(len, tokens)), model.generation_config.eos_token_id
    ends = tokenizer.eos_token_id if end is None else end
    inputs = torch.tensor([[0] * (longest - len(row)) + row for row in tokens], device=model.device)
    mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in tokens], device=model.device)

    def run(batch_size: int) -> list[str]:
        written = []
        with progress_bar(len(prompts), f"Answering {text.source}", "prompt") as bar:
            for rows in zip(inputs.split(batch_size), mask.split(batch_size)):
                output = generate(model, *rows, max_new_tokens=MAX_ANSWER, eos_token_id=ends, pad_token_id=0)
                written += tokenizer.batch_decode(output[:, longest:], skip_special_tokens=True)
                bar.update(len(output))
        return written

    written = with_halving_batches(run, max(1, TOKENS_AT_ONCE // (longest + MAX_ANSWER)))
    return [
        answer if isinstance(prompt, str) else [{"role": "assistant", "content": answer}]
        for prompt, answer in zip(prompts, written)
    ]
