"""Backward passes through a frozen model, for gradients at the outputs of its units."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from traceback import clear_frames
from typing import Any

import torch
from torch import nn

from ..utils.lm_head import chunked_logits
from ..utils.precision import computing_in
from ..utils.progress import progress_bar
from .layer_runner import LayerRunner
from .layerwise_model import Change, LayerwiseModel, unchanged


# Label of positions without a loss.
UNKNOWN = -1

# Maps a window of shape `[window length]`, probabilities of shape `[positions, vocabulary]` and the index of the first
# position to labels of shape `[positions]`, `UNKNOWN` for positions without a label.
Labels = Callable[[torch.Tensor, torch.Tensor, int], torch.Tensor]
# Maps the index of a layer to forward hooks by module, which may register hooks on the gradient of the output.
Watchers = Callable[[int], Mapping[nn.Module, Callable[[nn.Module, tuple[torch.Tensor, ...], torch.Tensor], Any]]]


def backward_passes(
    layerwise: LayerwiseModel,
    windows: torch.Tensor,
    watchers: Watchers,
    labels_of: Labels,
    change: Change = unchanged,
    dtype: torch.dtype | None = None,
    on_layer: Callable[[int], Any] = lambda layer: None,
    description: str | None = None,
) -> list[float]:
    """Run one forward and one backward pass per window, and return the loss summed over its tokens, in nats.

    Inputs of layers are saved, and every layer runs again in the backward pass, with the forward hooks.

    Args:
        layerwise: A causal LM. Its weights are frozen and get no gradients.
        windows: Token ids, shape `[windows, window length]`. Hooks see them in order.
        watchers: Forward hooks by module, for the index of a layer.
        labels_of: Labels of a piece of a window.
        change: Change of the layers.
        dtype: Autocast dtype; `None` for the model's own.
        on_layer: Called with the index of every layer, last layer first, once all windows have passed it.
        description: Description of the progress bar, which counts layers in both directions; no bar if `None`.
    """
    losses: list[float] = []
    if not len(windows):
        for index in reversed(range(len(layerwise.layers))):
            on_layer(index)
        return losses
    copies = len(layerwise.layers) + 2
    chunks = windows.split(layerwise.chunk_size(windows, copies))
    with progress_bar(2 * len(layerwise.layers) * len(chunks), description, "layer") as bar:
        for chunk in chunks:
            states, arguments = layerwise.embed(chunk, copies=copies)
            inputs = []
            for index, layer in layerwise.iter_layers():
                inputs.append(states.clone())
                with change(index):
                    layerwise.runner(layer, arguments[index], dtype).advance(states)
                bar.update()
            # The states after the last layer are replaced by their gradients.
            with layerwise.cast_outer_weights(), free_graphs():
                for state, window in zip(states.split(1), chunk):
                    losses.append(_backward_head(layerwise, state, window, labels_of, dtype))
            for index, layer in layerwise.iter_layers(backwards=True):
                with change(index), ExitStack() as hooks, free_graphs():
                    for module, watcher in watchers(index).items():
                        hooks.callback(module.register_forward_hook(watcher).remove)
                    runner = layerwise.runner(layer, arguments[index], dtype)
                    for hidden, gradient in zip(inputs.pop().split(1), states.split(1)):
                        _backward_layer(runner, hidden, gradient)
                bar.update()
                if len(losses) == len(windows):
                    on_layer(index)
    return losses


@contextmanager
def free_graphs() -> Iterator[None]:
    """Free autograd graphs after an error: they would keep weights alive that are replaced afterwards."""
    try:
        yield
    except BaseException as error:
        clear_frames(error.__traceback__)
        raise


def _backward_layer(runner: LayerRunner, hidden: torch.Tensor, gradient: torch.Tensor) -> None:
    """Replace the gradient at the output of a layer with that at its input, for one window."""
    hidden = hidden.detach().to(runner.device, runner.weight_dtype).requires_grad_()
    with torch.enable_grad():
        output = runner.output(hidden)
    (input_gradient,) = torch.autograd.grad(output, hidden, gradient.to(output))
    gradient.copy_(input_gradient)


def _backward_head(
    layerwise: LayerwiseModel, state: torch.Tensor, window: torch.Tensor, labels_of: Labels, dtype: torch.dtype | None
) -> float:
    """Replace the states after the last layer with their gradient, for one window, and return its loss."""
    model, likelihoods = layerwise.model, []
    hidden = state.detach().to(layerwise.device).requires_grad_()
    with torch.enable_grad(), computing_in(layerwise.device, dtype):
        decoded = layerwise.decoded(hidden)
        # The backward pass of the head runs piece by piece, before that of the last norm.
        head_input = decoded.last_hidden_state.detach().requires_grad_()
        for start, logits in chunked_logits(model, replace(decoded, last_hidden_state=head_input)):
            likelihoods.append(_backward_piece(logits, window.to(logits.device), start, labels_of))
            del logits
    (input_gradient,) = torch.autograd.grad(decoded.last_hidden_state, hidden, head_input.grad)
    state.copy_(input_gradient)
    # One transfer per window, since each synchronizes.
    return -float(torch.cat(likelihoods).cpu().double().sum())


def _backward_piece(logits: torch.Tensor, window: torch.Tensor, start: int, labels_of: Labels) -> torch.Tensor:
    """Run the backward pass of a piece of logits and return the log-likelihood of its labels, 0 without a label.

    The gradient of the cross-entropy is known in closed form: the probabilities, minus one at the label.
    """
    gradient = logits.detach()[0].float().softmax(-1)
    labels = labels_of(window, gradient, start)
    known = labels != UNKNOWN
    chosen = torch.arange(len(labels), device=labels.device), labels.clamp_min(0)
    likelihoods = gradient[chosen].clamp_min(torch.finfo(torch.float32).tiny)
    gradient[chosen] -= 1
    gradient *= known[:, None]
    with computing_in(logits.device, None):
        logits.backward(gradient[None].to(logits.dtype))
    return likelihoods.log() * known
