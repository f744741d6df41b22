"""Lets a chat model write chats to prune it on: first a message of the user, then the answer to it.

python examples/write_chats.py MODEL CHATS.jsonl [--chats 64]

MODEL is a Hub id, a folder, or a .gguf file (needs the gguf package). Each line of the new file is
`{"messages": [{"role": "user", "content": ...}, {"role": "assistant", "content": ...}]}`, which `--dataset` reads.
"""

import argparse
import json

import torch
from generate import load
from transformers import PreTrainedModel, PreTrainedTokenizerBase


# A message that doesn't end within this number of tokens is cut after its last sentence.
MAX_NEW_TOKENS = {"user": 80, "assistant": 220}
TEMPERATURE = {"user": 0.8, "assistant": 0.6}


def complete(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompts: list[str], role: str) -> list[str]:
    """Returns the message of this role that follows each prompt, up to the end of its last sentence."""
    inputs = tokenizer(prompts, add_special_tokens=False, padding=True, padding_side="left", return_tensors="pt")
    output = model.generate(
        **inputs, max_new_tokens=MAX_NEW_TOKENS[role], do_sample=True, top_k=0, temperature=TEMPERATURE[role]
    )[:, inputs["input_ids"].shape[1] :]
    messages = [text.strip() for text in tokenizer.batch_decode(output, skip_special_tokens=True)]
    ended = (output == tokenizer.eos_token_id).any(dim=1).tolist()
    return [text if end else text[: text.rfind(".") + 1] for text, end in zip(messages, ended)]


def main(source: str, file: str, chats: int, batch_size: int, seed: int) -> None:
    model, tokenizer = load(source)
    model.to(torch.bfloat16)
    torch.manual_seed(seed)
    opening = tokenizer.apply_chat_template([{"role": "user", "content": "MESSAGE"}], tokenize=False)
    opening = opening.partition("MESSAGE")[0]
    answers: dict[str, str] = {}
    while len(answers) < chats:
        messages = [*dict.fromkeys(filter(None, complete(model, tokenizer, [opening] * batch_size, "user")))]
        prompts = [
            tokenizer.apply_chat_template(
                [{"role": "user", "content": message}], tokenize=False, add_generation_prompt=True
            )
            for message in messages
        ]
        answered = zip(messages, complete(model, tokenizer, prompts, "assistant"))
        answers |= {message: answer for message, answer in answered if answer}
        print(f"{len(answers)} chats", flush=True)
    with open(file, "w", encoding="utf-8") as stream:
        for message, answer in [*answers.items()][:chats]:
            chat = [{"role": "user", "content": message}, {"role": "assistant", "content": answer}]
            stream.write(json.dumps({"messages": chat}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("file", help="File to write.")
    parser.add_argument("--chats", type=int, default=64, help="Number of chats.")
    parser.add_argument("--batch-size", type=int, default=64, help="Number of chats to write at once.")
    parser.add_argument("--seed", type=int, default=0, help="Random seed.")
    args = parser.parse_args()
    main(args.model, args.file, args.chats, args.batch_size, args.seed)
