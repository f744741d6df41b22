"""Generates with a recovered or pruned model and those that it was made from, with transformers alone.

python examples/generate.py RECOVERED PRUNED DENSE [--prompt "prompt"]

RECOVERED and PRUNED are folders written by optimum-ffp, of which one may be left out; DENSE is a folder, a Hub
id, or a .gguf file (needs the gguf package). The prompt is a chat message if the model has a chat template, otherwise
it is continued.
"""

import argparse
import json
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, PreTrainedModel


def load(source: str) -> PreTrainedModel:
    """Loads a model in float32; the class of a pruned model comes from its folder."""
    path, options = Path(source), {"dtype": torch.float32}
    if path.suffix == ".gguf":
        dequantized = {"gguf_file": path.name, "quantization_config": GgufConfig(dequantize=True)}
        return AutoModelForCausalLM.from_pretrained(path.parent, **options, **dequantized)
    pruned = (path / "ffp_config.json").is_file()
    return AutoModelForCausalLM.from_pretrained(source, trust_remote_code=pruned, **options)


def figures(folder: str) -> dict:
    """Perplexities that were measured on the same windows, by model, and what these windows are."""
    record = json.loads((Path(folder) / "ffp_config.json").read_text(encoding="utf-8"))
    if "recovery" in record:
        return record["recovery"][-1]["perplexity"]
    measured = record["provenance"]["perplexity"]
    return measured | {"pruned": measured.get("calibrated", measured.get("searched"))}


def main(sources: list[str], prompt: str) -> None:
    measured, tokenizer = figures(sources[0]), AutoTokenizer.from_pretrained(sources[0])
    first = "recovered" if "recovered" in measured else "pruned"
    names = [first, "dense"] if len(sources) == 2 else ["recovered", "pruned", "dense"]
    models = {name: load(source) for name, source in zip(names, sources)}
    if tokenizer.chat_template:
        chat = [{"role": "user", "content": prompt}]
        inputs = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    else:
        inputs = tokenizer(prompt, return_tensors="pt")

    print("Perplexity says how well a model predicts text, lower is better. It was measured on")
    print(f"{measured['windows']} windows of {measured['window_length']} tokens: {measured['split']}.\n")
    print(f"{'':<10}{'parameters':>14}{'perplexity':>12}")
    for name, model in models.items():
        print(f"{name:<10}{model.num_parameters():>14,}{measured[name]:>12.2f}")
    smaller = 1 - models[names[0]].num_parameters() / models["dense"].num_parameters()
    worse = measured[names[0]] / measured["dense"] - 1
    print(f"\nThe {names[0]} model has {smaller:.0%} fewer parameters and {worse:.0%} more perplexity than the dense.")
    print(f"All are asked: {prompt}")
    for name, model in models.items():
        output = model.generate(**inputs, max_new_tokens=40, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        print(f"\n{name}: {tokenizer.decode(output, skip_special_tokens=True).strip()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="+", help="RECOVERED PRUNED DENSE; one of the first two may be left out")
    parser.add_argument("--prompt", default="What is the capital of France?")
    args = parser.parse_args()
    if len(args.models) not in (2, 3):
        parser.error(f"two or three models are compared, found {len(args.models)}")
    main(args.models, args.prompt)
