"""Ridge regression for mixtures: kept experts compensate for the removed ones, on the tokens that they get."""

from contextlib import nullcontext
from functools import partial

import torch
from torch import nn
from torch.nn.functional import linear

from ..modeling.families import ModelUnit
from ..plan import Plan
from ..utils import processes
from ..utils.cholesky import algebra_device, factorize, ridge_damping
from ..utils.precision import autocast_dtype, computing_in
from ..utils.progress import progress_bar
from .calibration import CalibrationTask


# Number of tokens to fit to, of tokens that pass through the experts at once, and of passes over a layer's experts.
TOKENS, BATCH, SWEEPS = 2**16, 2**10, 2


@torch.no_grad()
def compensated_experts(task: CalibrationTask) -> dict[str, torch.Tensor]:
    """Return the down projections of the experts of all layers by name, fitted to the dense model (`fit_experts`).

    Layers get their inputs from the dense model, and errors count relative to the norm of the layer's output.
    """
    sorted_model, data, weights = task.sorted_model, task.data, {}
    layerwise = sorted_model.layerwise
    units = {unit.unit.layer: unit for unit in sorted_model.model_units}
    names = {module: name for name, module in layerwise.model.named_modules()}
    dtype = autocast_dtype(layerwise.model, task.plan.search_dtype)
    windows, held_out = (one.tokens[processes.share(len(one))] for one in (data.calibration, data.held_out))
    stride = -(-data.calibration.tokens.numel() // TOKENS)
    states, arguments = layerwise.embed(torch.cat([windows, held_out]))
    fitted, samples = windows[:, ::stride].numel(), []

    def sample(experts: nn.Module, arguments: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        # Copies, since views keep all tokens.
        samples.append((arguments[0][::stride].clone(), output[::stride].clone()))

    def fit(
        unit: ModelUnit, hidden: torch.Tensor, targets: torch.Tensor, scales: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        with sorted_model.change(task.policy)(unit.unit.layer), computing_in(layerwise.device, dtype):
            down = fit_experts(unit, hidden, targets, scales, fitted, task.plan)
        return {f"{names[unit.output.module]}.down_proj": down.to("cpu", layerwise.stored_dtype)}

    with progress_bar(len(layerwise.layers), "Ridge regression", "layer") as bar:
        for layer, module in layerwise.iter_layers():
            unit, runner = units.get(layer), layerwise.runner(module, arguments[layer], dtype)
            with unit.output.module.register_forward_hook(sample) if unit else nullcontext():
                runner.advance(states)
            if unit:
                scales = 1 / states[:, ::stride].flatten(0, 1).to(layerwise.device).float().norm(dim=1)
                inputs, outputs = map(torch.cat, zip(*samples))
                samples.clear()
                compute = partial(fit, unit, inputs, outputs, scales)
                weights |= task.journal.mapped(f"calibration-ridge-{layer}", compute)
            bar.update()
    return weights


def fit_experts(
    unit: ModelUnit,
    hidden: torch.Tensor,
    targets: torch.Tensor,
    scales: torch.Tensor,
    fitted: int,
    plan: Plan,
) -> torch.Tensor:
    """Fit the down projections of kept experts to the output of all experts, by block coordinate descent.

    For an expert with gates `g` and activations `h` on its tokens, and the residual `r` there, the change of its down
    projection `W` minimizes `Σ ‖r - g ΔW h‖² + λ ‖ΔW‖²`. It is kept if it lowers the error on held-out tokens.

    Args:
        unit: The experts; those that stay, and their router, are loaded.
        hidden: This process's inputs, those to fit to first, then held-out ones, shape `[tokens, hidden size]`.
        targets: Outputs of the dense model's experts, of the same shape.
        scales: Weight of each token's error, shape `[tokens]`.
        fitted: Number of tokens to fit to.
        plan: λ, `ridge_lambda`.

    Returns:
        The down projections, float32, shape `[experts, hidden size, features]`.
    """
    router, experts = unit.mixture
    _, gates, index = router(hidden)
    # Copies, even of float32.
    residuals, down = (one.to(torch.float32, copy=True) for one in (targets, experts.down_proj))
    for batch, *inputs in zip(*(one.split(BATCH) for one in (residuals, hidden, index, gates))):
        batch -= experts(*inputs)
    residuals *= scales[:, None]
    for expert in [*range(len(down))] * SWEEPS:
        tokens, slots = torch.where(index == expert)
        activations = experts._apply_gate(linear(hidden[tokens], experts.gate_up_proj[expert])).float()
        inputs, before = activations * (gates[tokens, slots].float() * scales[tokens])[:, None], residuals[tokens]
        fits = tokens < fitted
        with computing_in(hidden.device, None):
            gram, cross = (processes.sum_(inputs[fits].T @ rows[fits]) for rows in (inputs, before))
            device = algebra_device(gram.device, len(gram))
            factor = factorize(gram.to(device), ridge_damping(gram, plan.ridge_lambda))
            change = torch.cholesky_solve(cross.to(device).double(), factor).float().to(inputs.device)
            after = before - inputs @ change
        errors = processes.sum_(torch.stack([rows[~fits].square().sum() for rows in (before, after)]))
        if errors[1] < errors[0]:
            residuals[tokens] = after
            down[expert] += change.T
    return down


def fit_bytes(tokens: int, hidden_size: int, itemsize: int) -> int:
    """Return the bytes of the calibration tokens that the experts of a layer are fitted to."""
    return min(TOKENS, tokens) * hidden_size * (2 * itemsize + 8)
