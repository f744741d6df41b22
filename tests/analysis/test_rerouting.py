"""Experts are removed by the error that is measured with their logits at minus infinity."""

from functools import partial

import pytest
import torch
from torch.nn import functional

from optimum_ffp.allocation.policy import PruningPolicy
from optimum_ffp.analysis.experts import counted_tokens, order_experts
from optimum_ffp.analysis.measurements import policy_losses
from optimum_ffp.analysis.rerouting import remove_greedily
from optimum_ffp.compression.sorted_model import SortedModel
from optimum_ffp.modeling.families import find_family, find_units
from optimum_ffp.utils.resume import Journal
from tests.helpers import MIXTURES, layerwise_of, make_tiny_model, plan_of


@pytest.mark.parametrize("name", MIXTURES)
@torch.no_grad()
def test_predicted_expert_losses_equal_masked_router_logits(monkeypatch, name):
    model = make_tiny_model(name)
    layer = 1
    (unit,) = (one for one in find_units(model, find_family(model.config)) if one.unit.layer == layer)
    router, experts = (part.module for part in (unit.slices[0], unit.slices[-1]))
    torch.manual_seed(0)
    hidden, fisher = torch.randn(40, 32), torch.rand(32)
    scores, losses = remove_greedily(unit, hidden, fisher)
    assert len(losses) == unit.unit.groups - unit.unit.required
    _, gates, index = router(hidden)
    dense, linear = experts(hidden, index, gates), functional.linear
    for step, loss in enumerate(losses):
        removed = (scores <= step).nonzero()[:, 0]
        # A group of the router loses no second expert before the others have lost one.
        lost = (scores <= step).view(unit.sections, -1).sum(1)
        assert len(removed) == step + 1 and lost.max() - lost.min() <= 1
        if hasattr(router, "e_score_correction_bias"):
            router.e_score_correction_bias[removed] = -torch.inf
        with monkeypatch.context() as patch:
            masked = partial(torch.Tensor.index_fill, dim=1, index=removed, value=-torch.inf)
            patch.setattr(functional, "linear", lambda *inputs, masked=masked: masked(linear(*inputs)))
            _, gates, index = router(hidden)
        expected = ((experts(hidden, index, gates) - dense).square() * fisher).sum(1).mean() / 2
        torch.testing.assert_close(loss, expected.double(), rtol=1e-3, atol=1e-6)


def test_duplicate_expert_is_removed_first(windows):
    model = make_tiny_model("mixtral", num_experts_per_tok=1)
    block = model.model.layers[1].mlp
    with torch.no_grad():
        # The other is the second choice of the tokens of either.
        block.gate.weight[5] = 1.01 * block.gate.weight[2]
        for weights in (block.experts.gate_up_proj, block.experts.down_proj):
            weights[5] = weights[2]
    model.requires_grad_(False)
    units, plan = find_units(model, find_family(model.config)), plan_of(model, expert_criterion="loss")
    orders, _ = order_experts(layerwise_of(model), units, plan, windows, Journal())
    assert int(orders[1][-1]) in (2, 5)


def test_routed_token_counts_and_rare_experts_match_model(windows):
    model = make_tiny_model("qwen2-moe").requires_grad_(False)
    layerwise, units = layerwise_of(model), find_units(model, find_family(model.config))
    orders, rare = order_experts(layerwise, units, plan_of(model), windows, Journal())
    indices = [model(windows, output_router_logits=True).router_logits[layer].topk(2).indices for layer in (0, 1)]
    counts = [index.flatten().bincount(minlength=8) for index in indices]
    assert rare == {
        str(layer): numbers for layer, count in enumerate(counts) if (numbers := (count < 16).nonzero()[:, 0].tolist())
    }
    sorted_model = SortedModel(layerwise, units, orders)
    policy = PruningPolicy(sorted_model.units, (6, 6))
    for change, kept in ((None, 8), ([policy], 6)):
        with counted_tokens(units) as counted:
            policy_losses(sorted_model, change, windows)
        routed = [row.sort(descending=True).values.tolist() for row in counted]
        for row in routed:
            assert sum(row[:kept]) == sum(row) == 2 * windows.numel()
        if change is None:
            assert routed == [count.sort(descending=True).values.tolist() for count in counts]
