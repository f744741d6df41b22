import numpy as np

from optimum_ffp.allocation.mappings.greedy import map_scores as greedy
from optimum_ffp.allocation.policy import Unit
from tests.helpers import sparsity_budget


def test_greedy_fills_units_in_order_of_scores():
    units = [Unit(layer, "channel", 100, 10) for layer in range(4)]
    policy = greedy(np.array([0.3, -1.0, 2.0, 0.1]), sparsity_budget(units, 0.5, 0.2))
    # 200 groups stay: 20 everywhere, then 80 to the first, and the last 40 to the second in order.
    assert policy.sizes == (60, 20, 100, 20)


def test_scores_that_saturate_tanh_keep_their_order():
    units = [Unit(layer, "channel", 100, 10) for layer in range(3)]
    policy = greedy(np.array([40.0, 41.0, 42.0]), sparsity_budget(units, 0.4, 0.2))
    assert policy.sizes[2] == 100 and policy.sizes[0] == 20
