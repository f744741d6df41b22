"""Order of the experts of a mixture, by what they contribute to the tokens that are routed to them."""

from collections.abc import Sequence

import torch
from torch import nn

from ..config import FFPConfig
from ..engine import LayerwiseModel
from ..modeling.families import ModelUnit
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from ..utils.resume import Journal


class Reap:
    """A forward pre-hook of all experts of a layer that sums what each contributes: its gate times its output's norm.

    Gates are normalized over the experts of a token. Their mean over the tokens of an expert is its score in REAP
    (router-weighted expert activation pruning).

    Attributes:
        sums: Sum over the tokens of every expert, float64, shape `[experts]`.
        tokens: Number of these tokens, float64, shape `[experts]`.
    """

    def __init__(self, experts: int):
        self.sums, self.tokens = torch.zeros(2, experts, dtype=torch.float64)

    def __call__(self, experts: nn.Module, inputs: tuple[torch.Tensor, torch.Tensor, torch.Tensor]) -> None:
        """Add the tokens of a forward pass.

        Args:
            experts: The module with all experts.
            inputs: Its inputs of shape `[tokens, hidden size]`, and indices and gates of shape `[tokens, top k]`.
        """
        hidden, index, gates = inputs
        # Each routed token alone, so that the outputs aren't summed; without the hook.
        routed, ones = hidden.repeat_interleave(index.shape[1], 0), torch.ones_like(gates).reshape(-1, 1)
        norms = experts.forward(routed, index.reshape(-1, 1), ones).float().norm(dim=-1)
        shares = (gates / gates.sum(-1, keepdim=True)).flatten()
        index = index.flatten().cpu()
        self.sums.index_add_(0, index, (shares * norms).cpu().double())
        self.tokens += torch.bincount(index, minlength=len(self.tokens))

    @property
    def scores(self) -> torch.Tensor:
        """Score of every expert, 0 without tokens, shape `[experts]`."""
        return self.sums / self.tokens.clamp_min(1)


def order_experts(
    layerwise: LayerwiseModel, units: Sequence[ModelUnit], config: FFPConfig, windows: torch.Tensor, journal: Journal
) -> list[torch.Tensor]:
    """Return the experts of every unit from most to least important, with the weights of one layer at a time.

    Args:
        layerwise: The dense model.
        units: Its units, at most one per layer.
        config: The criterion.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        journal: Saves the scores.

    Returns:
        Orders as for `SortedModel`: the experts of every group of the router, each of shape `[experts, groups]`.
    """
    by_layer = {unit.unit.layer: unit for unit in units}

    def measure() -> dict[str, torch.Tensor]:
        dtype, measured = autocast_dtype(layerwise.model, config.search_dtype), {}
        states, arguments = layerwise.embed(windows[processes.share(len(windows))])
        with progress_bar(len(layerwise.layers), "Experts", "layer") as bar:
            for index, layer in layerwise.iter_layers():
                runner = layerwise.runner(layer, arguments[index], dtype)
                if unit := by_layer.get(index):
                    reap = Reap(unit.unit.groups)
                    hook = unit.output.module.register_forward_pre_hook(reap)
                    runner.advance(states, config.batch_size)
                    hook.remove()
                    reap.sums, reap.tokens = map(processes.sum_, (reap.sums, reap.tokens))
                    measured |= {f"{index}.scores": reap.scores, f"{index}.tokens": reap.tokens}
                else:
                    runner.advance(states, config.batch_size)
                bar.update()
        return measured

    measured = layerwise.counter.tensors(journal, "experts", measure)
    scores = (measured[f"{layer}.scores"].view(unit.sections, -1) for layer, unit in by_layer.items())
    return [one.argsort(dim=1, descending=True, stable=True).T for one in scores]
