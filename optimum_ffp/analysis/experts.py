"""Order of the experts of a mixture, and how many tokens each of them gets."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from ..allocation.policy import PruningPolicy
from ..compression.sorted_model import SortedModel
from ..config import FFPConfig
from ..engine import LayerwiseModel
from ..engine.layerwise_model import Change, unchanged
from ..modeling.families import ModelUnit
from ..utils import processes
from ..utils.precision import autocast_dtype
from ..utils.progress import progress_bar
from ..utils.resume import Journal
from .rerouting import removal_scores


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
) -> tuple[list[torch.Tensor], dict[str, list[int]]]:
    """Return the experts of every unit from most to least important, with the weights of one layer at a time.

    Args:
        layerwise: The dense model.
        units: Its units, at most one per layer.
        config: The criterion.
        windows: Calibration windows, token ids of shape `[windows, window length]`.
        journal: Saves the scores.

    Returns:
        Orders as for `SortedModel`: the experts of every group of the router, each of shape `[experts, groups]`. And,
        by layer, the experts that get fewer tokens than they have features, too few to judge them by.
    """
    by_layer = {unit.unit.layer: unit for unit in units}

    def measure() -> dict[str, torch.Tensor]:
        dtype, measured = autocast_dtype(layerwise.model, config.search_dtype), {}
        if config.expert_criterion == "loss":
            return removal_scores(layerwise, by_layer, windows[: config.fisher_samples], config.seed, dtype)
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
    orders = [one.argsort(dim=1, descending=True, stable=True).T for one in scores]
    few = {str(layer): measured[f"{layer}.tokens"] < unit.width for layer, unit in by_layer.items()}
    return orders, {layer: one.nonzero()[:, 0].tolist() for layer, one in few.items() if one.any()}


def measure_routing(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    weights: Mapping[str, torch.Tensor] | None,
    windows: torch.Tensor,
    dtype: torch.dtype | None,
) -> list[dict[str, Any]]:
    """Return the share of tokens that every expert gets, before and after the prune, for all layers with experts.

    Args:
        sorted_model: The sorted model.
        policy: Number of experts to keep.
        weights: Weights of the pruned model, by name.
        windows: Token ids, shape `[windows, window length]`. Processes share them.
        dtype: Autocast dtype; `None` for the model's own.

    Returns:
        By layer: its index `layer`; `before` and `after`, shares in descending order.
    """
    units = {unit.unit.layer: unit for unit in sorted_model.model_units}
    before, after = ({layer: torch.zeros(unit.unit.groups) for layer, unit in units.items()} for _ in range(2))

    def counting(change: Change, counts: dict[int, torch.Tensor]) -> Change:
        @contextmanager
        def applied_to(layer: int) -> Iterator[None]:
            def count(router: nn.Module, inputs: Any, output: tuple[torch.Tensor, ...]) -> None:
                counts[layer] += output[2].flatten().cpu().bincount(minlength=len(counts[layer]))

            router = units[layer].slices[0].module if layer in units else nn.Module()
            with change(layer), router.register_forward_hook(count):
                yield

        return applied_to

    changes = [counting(unchanged, before), counting(sorted_model.change(policy, weights), after)]
    sorted_model.layerwise.losses(windows[processes.share(len(windows))], changes, dtype)
    routing = []
    for layer, size in zip(units, policy.sizes):
        shares = [processes.sum_(counts[layer]) / windows.numel() for counts in (before, after)]
        ordered = (one.sort(descending=True).values for one in shares)
        routing.append({"layer": layer} | dict(zip(("before", "after"), (one.tolist() for one in ordered))))
        del routing[-1]["after"][size:]
    return routing
