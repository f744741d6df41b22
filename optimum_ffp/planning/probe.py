"""The speed of a model, from a probe of about a second."""

import copy
import time

import torch
from torch import nn
from transformers import PreTrainedModel

from ..modeling.families import decoder_layers
from ..utils.lm_head import decode, embedding_of
from ..utils.precision import compute_dtype, convert


# Parameters times tokens that one core computes in less than a second.
CPU_PRODUCTS = 2**34


@torch.no_grad()
def seconds_per_token(model: PreTrainedModel, device: torch.device, length: int, bf16: bool) -> float:
    """Measure the largest decoder layer on a window, and return the time of all layers per token of a forward pass.

    The model may be on the meta device, since the speed does not depend on its weights. On the CPU, the window is
    short enough to take less than a second.
    """
    sizes = [sum(one.numel() for one in layer.parameters()) for layer in decoder_layers(model)]
    largest, probe = sizes.index(max(sizes)), copy.deepcopy(model)
    decoder_layers(probe)[0] = decoder_layers(probe)[largest]
    del decoder_layers(probe)[1:]
    with torch.device("meta"):
        probe.base_model.set_input_embeddings(nn.Embedding(1, embedding_of(model).embedding_dim))
    decoder = probe.base_model.to_empty(device=device)
    convert(decoder, torch.bfloat16 if bf16 else compute_dtype(device, model.dtype))
    for tensor in (*decoder.parameters(), *decoder.buffers()):
        tensor.fill_(0.01)
    if device.type == "cpu":
        length = min(length, 1 + CPU_PRODUCTS // sizes[largest])
    window = torch.zeros(1, length, dtype=torch.long)
    for _ in range(2):
        start = time.perf_counter()
        # Accelerators execute asynchronously until a result is read.
        decode(probe, window, device).last_hidden_state.sum().item()
    return (time.perf_counter() - start) * sum(sizes) / sizes[largest] / length
