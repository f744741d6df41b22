"""Backward passes through a frozen model, for what gradients say about the outputs of its units."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from .precision import POSITIONS


# No label.
UNKNOWN = -1


def backward_passes(
    model: PreTrainedModel,
    layers: Iterable[nn.Module],
    windows: torch.Tensor,
    watchers: Mapping[nn.Module, Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], Any]],
    labels_of: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    dtype: torch.dtype | None = None,
) -> Iterator[float]:
    """One forward and one backward pass a window, from the loss summed over its tokens.

    Args:
        model: A causal LM. Its weights are frozen and get no gradients.
        layers: Its decoder layers. Each keeps its input alone and runs again in the backward pass.
        windows: Token ids, shape `[windows, window length]`.
        watchers: Forward hooks by module; they may register hooks on the gradient of the module's output.
        labels_of: From a window of shape `[window length]`, probabilities of shape `[positions, vocabulary]` and the
            first of those positions to their labels, shape `[positions]`, `UNKNOWN` where there is none.
        dtype: Type to compute in under autocast; `None` for the model's own.

    Yields:
        The summed loss of every window, in nats, once its backward pass is done.
    """
    with ExitStack() as stack:
        # Gradients flow because the embeddings ask for them.
        embeddings = model.get_input_embeddings()
        stack.callback(embeddings.register_forward_hook(lambda m, i, output: output.requires_grad_()).remove)
        for module, watcher in watchers.items():
            stack.callback(module.register_forward_hook(watcher).remove)
        for layer in layers:
            stack.callback(_recomputed(layer))
        for window in windows.split(1):
            with torch.enable_grad(), torch.autocast(model.device.type, dtype) if dtype else nullcontext():
                logits = model(window.to(model.device), use_cache=False).logits
            # Of all logits: the gradient of a part of them would be padded, in another tensor of their size.
            loss, gradient = _loss_and_gradient(logits.detach()[0], window[0].to(logits.device), labels_of)
            logits.backward(gradient[None])
            del logits, gradient
            yield loss


def _recomputed(layer: nn.Module) -> Callable[[], None]:
    """Lets a layer keep its input alone and run again in the backward pass; returns what undoes that."""
    forward = layer.forward
    layer.forward = lambda *inputs, **options: checkpoint(
        forward, *inputs, use_reentrant=False, preserve_rng_state=False, **options
    )
    return lambda: delattr(layer, "forward")


def _loss_and_gradient(
    logits: torch.Tensor,
    window: torch.Tensor,
    labels_of: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
) -> tuple[float, torch.Tensor]:
    """The summed loss, and its gradient: probabilities, less one at the label."""
    gradient, loss = torch.empty_like(logits), 0.0
    starts = range(0, len(logits), POSITIONS)
    for start, rows, out in zip(starts, logits.split(POSITIONS), gradient.split(POSITIONS)):
        probabilities = rows.float().softmax(-1)
        labels = labels_of(window, probabilities, start)
        known = labels != UNKNOWN
        chosen = known.nonzero()[:, 0], labels[known]
        loss -= float(probabilities[chosen].clamp_min(torch.finfo(torch.float32).tiny).log().sum(dtype=torch.float64))
        probabilities[chosen] -= 1
        out.copy_(probabilities * known[:, None])
    return loss, gradient
