"""Exports a dense or pruned model to ONNX and compares it with ONNX Runtime.

pip install -e ".[onnx]"
python examples/export_onnx.py PRUNED model.onnx

The graph has the inputs `input_ids` and `attention_mask`, of any batch size and length, and the output `logits`. It
has no KV cache.
"""

import argparse

import onnxruntime
import torch
from torch import nn
from transformers import PreTrainedModel

from optimum_ffp.modeling.loading import LoadOptions, load_any


class Logits(nn.Module):
    """A forward pass whose inputs and output are tensors."""

    def __init__(self, model: PreTrainedModel):
        super().__init__()
        self.model = model

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        return self.model(input_ids=input_ids, attention_mask=attention_mask, use_cache=False).logits


def random_batch(vocabulary: int, batch: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Random tokens, the first row padded on the left."""
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, : length // 3] = 0
    return torch.randint(vocabulary, (batch, length)), mask


def export(model: PreTrainedModel, path: str) -> None:
    """Writes a model as ONNX.

    Args:
        model: A causal LM.
        path: File to write. Weights of large models are written to `path` + `.data`.
    """
    shape = {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        Logits(model).eval(),
        random_batch(model.config.vocab_size, 2, 12),
        path,
        input_names=["input_ids", "attention_mask"],
        output_names=["logits"],
        dynamic_shapes={"input_ids": shape, "attention_mask": shape},
        dynamo=True,
        external_data=model.get_memory_footprint() > 1e9,
    )


@torch.no_grad()
def largest_difference(model: PreTrainedModel, path: str, batch: int, length: int) -> float:
    """Largest absolute difference between the logits of ONNX Runtime and torch, where the mask is not zero."""
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    ids, mask = random_batch(model.config.vocab_size, batch, length)
    (logits,) = session.run(["logits"], {"input_ids": ids.numpy(), "attention_mask": mask.numpy()})
    difference = torch.from_numpy(logits) - Logits(model)(ids, mask)
    return float(difference[mask.bool()].abs().max())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="Hub id or folder.")
    parser.add_argument("output", help="The .onnx file to write.")
    args = parser.parse_args()
    model, _ = load_any(args.model, LoadOptions(device="cpu", dtype="float32"))
    export(model, args.output)
    for batch, length in ((1, 7), (3, 20), (2, 33)):
        difference = largest_difference(model, args.output, batch, length)
        print(f"batch {batch}, {length} tokens: logits differ by {difference:.1e} at most")


if __name__ == "__main__":
    main()
