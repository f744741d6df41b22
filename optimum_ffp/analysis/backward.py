"""Backward passes through a frozen model, for what gradients say about the outputs of its units."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedModel

from ..utils.lm_head import decode, logits_in_pieces, replaced_forward
from ..utils.precision import computing_in


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
            stack.enter_context(replaced_forward(layer, _recomputed(layer.forward)))
        for window in windows.split(1):
            with torch.enable_grad(), computing_in(model.device, dtype):
                decoded = decode(model, window)
                # The head has its own backward pass, piece by piece, before that of the layers.
                ending = decoded.last_hidden_state.detach().requires_grad_()
                loss = 0.0
                for start, logits in logits_in_pieces(model, replace(decoded, last_hidden_state=ending)):
                    loss += _go_back(logits, window[0].to(logits.device), start, labels_of)
                    del logits
            decoded.last_hidden_state.backward(ending.grad)
            del decoded, ending
            yield loss


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Lets a layer keep its input alone and run again in the backward pass."""
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def _go_back(
    logits: torch.Tensor,
    window: torch.Tensor,
    start: int,
    labels_of: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
) -> float:
    """Goes back from the summed loss of a piece, whose gradient is its probabilities, less one at the label."""
    gradient = logits.detach()[0].float().softmax(-1)
    labels = labels_of(window, gradient, start)
    known = labels != UNKNOWN
    chosen = known.nonzero()[:, 0], labels[known]
    likelihoods = gradient[chosen].clamp_min(torch.finfo(torch.float32).tiny)
    gradient[chosen] -= 1
    gradient *= known[:, None]
    with computing_in(logits.device, None):
        logits.backward(gradient[None].to(logits.dtype))
    return -float(likelihoods.log().sum(dtype=torch.float64))
