"""Loads a pruned checkpoint with transformers alone and lets it speak.

python examples/generate.py FOLDER_OR_HUB_ID ["prompt"]
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer


def main(model_id: str, prompt: str = "The capital of France is") -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_id)
    model = AutoModelForCausalLM.from_pretrained(model_id, trust_remote_code=True)
    inputs = tokenizer(prompt, return_tensors="pt")
    output = model.generate(**inputs, max_new_tokens=30, do_sample=False)
    print(f"{type(model).__name__}, {model.num_parameters():,} parameters")
    print(tokenizer.decode(output[0], skip_special_tokens=True))


if __name__ == "__main__":
    main(*sys.argv[1:3])
