"""Compares the answers of models with each other, with transformers alone.

python examples/generate.py DENSE PRUNED [RECOVERED] [--prompts "first prompt" "second prompt"]

DENSE is a folder, a Hub id, or a .gguf file (needs the gguf package); PRUNED and RECOVERED are folders written by
optimum-ffp, with the perplexities in the table. A prompt is a chat message if the model has a chat template, otherwise
it is continued.
"""

import argparse
import json
import textwrap
import time
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel, PreTrainedTokenizerBase


NAMES = ("dense", "pruned", "recovered")
PROMPTS = (
    "What is the capital of France?",
    "Write a short email to thank Anna for her help with the project.",
    "How do I reverse a list in Python?",
)
LINE_LENGTH = 96


def load(source: str) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Loads a model in float32, and its tokenizer; the class of a pruned model comes from its folder."""
    path, options = Path(source), {"dtype": torch.float32}
    if path.suffix == ".gguf":
        tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
        options |= {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(path.parent, **options), tokenizer
    pruned = (path / "ffp_config.json").is_file()
    model = AutoModelForCausalLM.from_pretrained(source, trust_remote_code=pruned, **options)
    return model, AutoTokenizer.from_pretrained(source)


def read_perplexities(folder: str) -> list[dict]:
    """Returns the perplexities of all models on each text, from the record of the last prune or recovery."""
    record = json.loads((Path(folder) / "ffp_config.json").read_text(encoding="utf-8"))
    step = record["recovery"][-1] if "recovery" in record else record["provenance"]
    texts = [step["perplexity"], *step["other_texts"]]
    return [{"pruned": text.get("calibrated", text.get("searched")), **text} for text in texts]


def answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, new_tokens: int
) -> tuple[str, float]:
    """Returns the most likely answer, and the tokens per second."""
    if tokenizer.chat_template:
        prompt = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], add_generation_prompt=True, tokenize=False
        )
    inputs = tokenizer(prompt, return_tensors="pt", add_special_tokens=not tokenizer.chat_template)
    start = time.perf_counter()
    output = model.generate(**inputs, max_new_tokens=new_tokens, do_sample=False)
    answered = output[0, inputs["input_ids"].shape[1] :]
    speed = len(answered) / (time.perf_counter() - start)
    return " ".join(tokenizer.decode(answered, skip_special_tokens=True).split()), speed


def main(sources: list[str], prompts: list[str], new_tokens: int) -> None:
    texts = read_perplexities(sources[-1])
    models = {name: load(source) for name, source in zip(NAMES, sources)}
    # In turns, so that what else the machine does slows down all of them.
    answers = [{name: answer(*loaded, prompt, new_tokens) for name, loaded in models.items()} for prompt in prompts]

    columns = ["perplexity"] if len(texts) == 1 else [f"perplexity {number}" for number in range(1, len(texts) + 1)]
    print(
        f"{'':<12}{'parameters':>12}{'MiB':>8}", *(f"{column:>14}" for column in columns), f"{'tokens/s':>12}", sep=""
    )
    for name, (model, _) in models.items():
        perplexities = "".join(f"{text[name]:>14.2f}" for text in texts)
        speed = max(answered[name][1] for answered in answers)
        size = model.get_memory_footprint(return_buffers=False) / 2**20
        print(f"{name:<12}{model.num_parameters():>12,}{size:>8.0f}{perplexities}{speed:>12.1f}")
    print()
    for column, text in zip(columns, texts):
        print(f"{column}: {text['split']}, {text['windows']} windows of {text['window_length']} tokens")
    for prompt, answered in zip(prompts, answers):
        print(f"\n{prompt}")
        for name, (text, _) in answered.items():
            print(textwrap.fill(text, LINE_LENGTH, initial_indent=f"  {name:<10} ", subsequent_indent=" " * 13))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned")
    parser.add_argument("recovered", nargs="?")
    parser.add_argument("--prompts", nargs="+", default=PROMPTS)
    parser.add_argument("--new-tokens", type=int, default=48, help="Maximum number of tokens in an answer.")
    args = parser.parse_args()
    sources = [source for source in (args.dense, args.pruned, args.recovered) if source]
    main(sources, args.prompts, args.new_tokens)
