import numpy as np
import pytest

from optimum_ffp.allocation.homogeneous import homogeneous_policies
from optimum_ffp.allocation.mappings.curves import CurveMapping
from optimum_ffp.allocation.policy import Unit
from optimum_ffp.errors import FFPError
from optimum_ffp.search.methods.homogeneous import search
from optimum_ffp.search.task import SearchTask
from tests.helpers import plan_of, sparsity_budget


UNITS = tuple(
    unit for layer in range(4) for unit in (Unit(layer, "kv_group", 16, 100), Unit(layer, "channel", 400, 10))
)
POLICIES = homogeneous_policies(sparsity_budget(UNITS, 0.3, 0.1))


class Evaluate:
    """The loss is lowest with so many heads."""

    def __init__(self, best: int):
        self.best, self.seen = best, []
        self.dense_losses = np.full(3, 2.0)

    def __call__(self, policies, windows):
        self.seen += [policy.sizes[0] for policy in policies]
        return np.array([[2.1 + 0.01 * abs(policy.sizes[0] - self.best)] * len(windows) for policy in policies])


def run(best=5, curves=None, candidates=8, **fields):
    evaluate = Evaluate(best)
    task = SearchTask(
        plan=plan_of(method="homogeneous", candidates=candidates, fall_back=False),
        budget=sparsity_budget(UNITS, 0.3, 0.1),
        mapping=None,
        evaluate=evaluate,
        curves=curves,
        **fields,
    )
    return search(task), evaluate.seen


def test_best_of_all_homogeneous_policies_is_chosen():
    result, seen = run(best=5, candidates=20)
    assert sorted(seen) == [policy.sizes[0] for policy in POLICIES] and len(seen) > 8
    assert result.policy.sizes[0] == 5 and result.best_perplexity == pytest.approx(np.exp(2.1))


def test_curves_select_homogeneous_candidates():
    # Attention costs nothing to remove, FFNs much.
    curves = CurveMapping([np.linspace(0.01, 0, 17), np.linspace(5, 0, 401)] * 4)
    result, seen = run(best=5, curves=curves, candidates=3)
    assert seen == [policy.sizes[0] for policy in POLICIES[:3]]
    assert result.policy.sizes[0] == seen[-1]


def test_homogeneous_candidates_without_curves_are_evenly_spread():
    _, seen = run(candidates=3)
    assert seen[0] == POLICIES[0].sizes[0] and seen[-1] == POLICIES[-1].sizes[0] and len(seen) == 3


def test_only_sizes_supported_by_dense_class_are_evaluated():
    _, seen = run(is_homogeneous=lambda policy: policy.sizes[0] % 4 == 0)
    assert set(seen) == {4, 8, 12, 16} & {policy.sizes[0] for policy in POLICIES}
    with pytest.raises(FFPError, match="own class"):
        run(is_homogeneous=lambda policy: False)


def test_homogeneous_result_is_not_replaced_by_baseline():
    better = sparsity_budget(UNITS, 0.3, 0.1).policy(np.array([1, 300] * 4))
    result, _ = run(best=1, baselines={"no-search": better}, candidates=2)
    assert result.policy != better and result.baselines["no-search"] == pytest.approx(np.exp(2.1))
