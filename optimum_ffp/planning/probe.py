"""The speed of a model, from a probe of about a second."""

import copy
from timeit import repeat

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.families import decoder_layers
from ..utils.lm_head import decode, decoder_of, embedding_of
from ..utils.precision import compute_dtype, convert, has_fast_matmul


# Parameters times tokens that one core computes in less than a second.
CPU_PRODUCTS = 2**34


@torch.no_grad()
def seconds_per_token(model: PreTrainedModel, device: torch.device, length: int) -> float:
    """Measure the largest decoder layer on a window, and return the time of all layers per token of a forward pass.

    The model may be on the meta device, since speed does not depend on the values of weights. A CPU reads as many
    tokens of the window as take it less than a second.
    """
    probe = copy.deepcopy(model)
    layers = decoder_layers(probe)
    sizes = [sum(one.numel() for one in layer.parameters()) for layer in layers]
    layers[0] = layers[sizes.index(max(sizes))]
    del layers[1:]
    probe.set_input_embeddings(nn.Embedding(1, embedding_of(model).embedding_dim, device="meta"))
    dtype = torch.bfloat16 if has_fast_matmul(device, torch.bfloat16) else compute_dtype(device, model.dtype)
    decoder = convert(decoder_of(probe).to_empty(device=device), dtype)
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        tensor.fill_(0.01)
    if device.type == "cpu":
        length = min(length, 1 + CPU_PRODUCTS // max(sizes))
    window = torch.zeros(1, length, dtype=torch.long)
    # The first is a warmup, and others may be interrupted. Accelerators execute asynchronously until a result is read.
    seconds = repeat(lambda: decode(probe, window, device).last_hidden_state.sum().item(), number=1, repeat=3)
    return min(seconds) * sum(sizes) / max(sizes) / length
