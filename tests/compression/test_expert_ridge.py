"""Experts that stay compensate for those that go, on the tokens that they get."""

from contextlib import contextmanager

import pytest
import torch
from torch.nn.functional import silu

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.compression import expert_ridge
from optimum_ffp.compression.expert_ridge import fit_experts
from optimum_ffp.compression.sorted_model import SortedModel
from optimum_ffp.modeling.families import find_family, find_units
from tests.helpers import MIXTURES, layerwise_of, make_tiny_model, plan_of


@contextmanager
def fitted(name, kept, **changes):
    """The experts of a layer of which `kept` stay, tokens, and the fitted down projections."""
    model = make_tiny_model(name, **changes)
    units = find_units(model, find_family(model.config))
    orders = [torch.arange(one.unit.groups // one.sections)[:, None].expand(-1, one.sections) for one in units]
    sorted_model = SortedModel(layerwise_of(model), units, orders)
    unit = units[-1]
    router, experts = unit.slices[0].module, unit.output.module
    # What an expert computes can be learned by the others.
    experts.gate_up_proj.data += experts.gate_up_proj.data[:1] * 4
    torch.manual_seed(0)
    hidden, scales = torch.randn(4000, 32), torch.rand(4000)
    _, gates, index = router(hidden)
    targets = experts(hidden, index, gates)
    with sorted_model.change(PruningPolicy(sorted_model.units, (kept,) * len(units)))(unit.unit.layer):
        yield router, experts, hidden, targets, scales, fit_experts(unit, hidden, targets, scales, 3000, plan_of())


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_expert_ridge_lowers_training_and_held_out_error(name):
    with fitted(name, 6) as (router, experts, hidden, targets, scales, down):
        _, gates, index = router(hidden)
        squares = []
        for weights in (experts.down_proj.data, down):
            experts.down_proj.data = weights
            squares.append(((experts(hidden, index, gates) - targets) * scales[:, None]).square().sum(1))
    before, after = squares
    assert after[:3000].sum() < before[:3000].sum() and after[3000:].sum() < before[3000:].sum()


@torch.no_grad()
def test_single_expert_equals_ridge_regression_solution(monkeypatch):
    monkeypatch.setattr(expert_ridge, "SWEEPS", 1)
    with fitted("mixtral", 1, num_experts_per_tok=1) as (_, experts, hidden, targets, scales, down):
        gate_up, dense = experts.gate_up_proj[0], experts.down_proj[0]
    gate, up = (hidden[:3000] @ gate_up.T).chunk(2, -1)
    inputs = (silu(gate) * up * scales[:3000, None]).double()
    damping = 0.01 * inputs.square().sum(0).mean()
    residual = targets[:3000] * scales[:3000, None] - inputs @ dense.double().T
    # The penalty as further rows of an ordinary least squares problem.
    rows = torch.cat([inputs, damping.sqrt() * torch.eye(inputs.shape[1])])
    change = torch.linalg.lstsq(rows, torch.cat([residual, torch.zeros(inputs.shape[1], 32)])).solution
    torch.testing.assert_close(down[0], dense + change.T.float(), rtol=1e-3, atol=1e-4)
