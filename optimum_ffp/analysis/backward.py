"""Backward passes through a frozen model, for gradients at the outputs of its units."""

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


# Label of positions without a loss.
UNKNOWN = -1


def backward_passes(
    model: PreTrainedModel,
    layers: Iterable[nn.Module],
    windows: torch.Tensor,
    watchers: Mapping[nn.Module, Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], Any]],
    labels_of: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
    dtype: torch.dtype | None = None,
) -> Iterator[float]:
    """Run one forward and one backward pass per window, with the loss summed over its tokens.

    Args:
        model: A causal LM. Its weights are frozen and get no gradients.
        layers: The decoder layers of the model. Each is checkpointed: it stores its input and is recomputed in the
            backward pass.
        windows: Token ids, shape `[windows, window length]`.
        watchers: Forward hooks by module; they may register hooks on the gradient of the module's output.
        labels_of: Maps a window of shape `[window length]`, probabilities of shape `[positions, vocabulary]` and the
            index of the first position to labels of shape `[positions]`, `UNKNOWN` for positions without a label.
        dtype: Autocast dtype; `None` for the model's own.

    Yields:
        The summed loss of every window, in nats, after its backward pass.
    """
    with ExitStack() as stack:
        # The weights are frozen, so the embeddings' output must require gradients.
        embeddings = model.get_input_embeddings()
        stack.callback(embeddings.register_forward_hook(lambda m, i, output: output.requires_grad_()).remove)
        for module, watcher in watchers.items():
            stack.callback(module.register_forward_hook(watcher).remove)
        for layer in layers:
            stack.enter_context(replaced_forward(layer, _recomputed(layer.forward)))
        for window in windows.split(1):
            with torch.enable_grad(), computing_in(model.device, dtype):
                decoded = decode(model, window)
                # The backward pass of the head runs chunk by chunk, before that of the layers.
                ending = decoded.last_hidden_state.detach().requires_grad_()
                loss = 0.0
                for start, logits in logits_in_pieces(model, replace(decoded, last_hidden_state=ending)):
                    loss += _go_back(logits, window[0].to(logits.device), start, labels_of)
                    del logits
            decoded.last_hidden_state.backward(ending.grad)
            del decoded, ending
            yield loss


def _recomputed(forward: Callable[..., Any]) -> Callable[..., Any]:
    """Checkpoint a layer's forward: it stores its input and is recomputed in the backward pass."""
    return partial(checkpoint, forward, use_reentrant=False, preserve_rng_state=False)


def _go_back(
    logits: torch.Tensor,
    window: torch.Tensor,
    start: int,
    labels_of: Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor],
) -> float:
    """Run the backward pass of a chunk of logits and return its summed loss, in nats.

    The gradient of the cross-entropy is given directly: the probabilities, minus one at the label.
    """
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
