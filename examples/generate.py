"""Generates with a pruned model and its dense base model, with transformers alone.

python examples/generate.py PRUNED DENSE ["prompt"]

PRUNED is a folder written by optimum-ffp; DENSE is a folder, a Hub id, or a .gguf file (needs the gguf package). The
prompt is a chat message if the model has a chat template, otherwise it is continued.
"""

import json
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel


def load(source: str) -> PreTrainedModel:
    """Loads a model in float32; the class of a pruned model comes from its folder."""
    path, options = Path(source), {"dtype": torch.float32, "trust_remote_code": True}
    if path.suffix == ".gguf":
        dequantized = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(path.parent, **options, **dequantized)
    return AutoModelForCausalLM.from_pretrained(source, **options)


def main(pruned: str, dense: str, prompt: str = "What is the capital of France?") -> None:
    tokenizer = AutoTokenizer.from_pretrained(pruned)
    models = {"dense": load(dense), "pruned": load(pruned)}
    sizes = {name: model.num_parameters() for name, model in models.items()}
    measured = json.loads((Path(pruned) / "ffp_config.json").read_text(encoding="utf-8"))["provenance"]["perplexity"]
    perplexities = {"dense": measured["dense"], "pruned": measured.get("calibrated", measured.get("searched"))}
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        inputs = tokenizer(prompt, return_tensors="pt")

    print("Perplexity says how well a model predicts text, lower is better. It was measured on")
    print(f"{measured['windows']} windows of {measured['window_length']} tokens: {measured['split']}.\n")
    print(f"{'':<8}{'parameters':>14}{'perplexity':>12}")
    for name in models:
        print(f"{name:<8}{sizes[name]:>14,}{perplexities[name]:>12.2f}")
    print(
        f"\nThe pruned model has {1 - sizes['pruned'] / sizes['dense']:.0%} fewer parameters and "
        f"{perplexities['pruned'] / perplexities['dense'] - 1:.0%} more perplexity. Both are asked: {prompt}"
    )
    for name, model in models.items():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        print(f"\n{name}: {tokenizer.decode(output, skip_special_tokens=True).strip()}")


if __name__ == "__main__":
    main(*sys.argv[1:])
