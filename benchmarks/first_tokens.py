"""Counts the first tokens whose massive activation a pruned model has lost.

    python benchmarks/first_tokens.py DENSE PRUNED [PRUNED ...] --dataset DATASET [--tokens 2000] [--seed 0]
        [--output first_tokens.json]

Many models give the first token of a text, whatever it is, a hidden state hundreds of times as large as others have,
on which attention rests where it finds nothing else. Where a pruned model doesn't, all that follows is predicted
badly. The first token sees nothing but itself, so that a sequence of one token tells. `--tokens` are drawn from the
test windows of DATASET, as windows without a start token begin anywhere; the special tokens of the tokenizer, with
which chats begin, are counted apart. A token has it if the norm of its hidden state, after the layer where the median
over tokens is largest in the dense model, is more than `LARGE` times that of its embedding; it is lost if the dense
model has it and the pruned one less than `LOST` of the dense one's.
"""

import argparse
import json
from pathlib import Path

import torch
from compare import load_with_text
from transformers import PreTrainedModel

from optimum_ffp.commands.errors import one_line_endings
from optimum_ffp.modeling.loading import LoadOptions, load_any
from optimum_ffp.utils.progress import progress_bar


LARGE, LOST = 100, 1 / 20
AT_ONCE = 256


@torch.no_grad()
def norms_of(model: PreTrainedModel, tokens: torch.Tensor) -> torch.Tensor:
    """Norms of the hidden states of sequences of one token, after the embeddings and every layer.

    Args:
        model: A causal LM.
        tokens: Token ids, shape `[tokens]`.

    Returns:
        Shape `[layers + 1, tokens]`.
    """
    found = []
    with progress_bar(len(tokens), "First tokens", "token") as bar:
        for part in tokens.split(AT_ONCE):
            states = model(part[:, None].to(model.device), output_hidden_states=True).hidden_states
            found.append(torch.stack([state[:, 0].float().norm(dim=-1) for state in states]).cpu())
            bar.update(len(part))
    return torch.cat(found, 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dense")
    parser.add_argument("pruned", nargs="+")
    parser.add_argument("--dataset", required=True)
    parser.add_argument("--tokens", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("first_tokens.json"))
    args = parser.parse_args()

    dense, tokenizer, windows = load_with_text(args.dense, args.dataset, LoadOptions())
    text = windows.tokens.flatten()
    drawn = text[torch.randperm(len(text), generator=torch.Generator().manual_seed(args.seed))[: args.tokens]]
    tokens = torch.cat([drawn, torch.tensor(tokenizer.all_special_ids)])
    norms = norms_of(dense, tokens)
    layer = int(norms.median(1).values.argmax())
    large = norms[layer] > LARGE * norms[0]
    records = []
    print(f"| after layer {layer} | drawn tokens, with it in the dense model | lost | special tokens | lost |")
    print("|---|---:|---:|---:|---:|")
    for source in args.pruned:
        lost = large & (norms_of(load_any(source, LoadOptions())[0], tokens)[layer] < LOST * norms[layer])
        counts = [int(mask.sum()) for both in zip(large.split(len(drawn)), lost.split(len(drawn))) for mask in both]
        name = Path(source).name
        columns = ("drawn", "drawn_lost", "special", "special_lost")
        records.append({"model": name, "layer": layer, **dict(zip(columns, counts))})
        print(f"| {name} | {' | '.join(map(str, counts))} |")
        args.output.write_text(json.dumps(records, indent=2) + "\n")


if __name__ == "__main__":
    with one_line_endings():
        main()
