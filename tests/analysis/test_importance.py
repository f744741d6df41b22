import pytest
import torch

from optimum_ffp.analysis.criteria import flap, obs, wanda
from optimum_ffp.analysis.criteria.obs import DAMPING, _compact
from optimum_ffp.analysis.gram import Statistics
from optimum_ffp.analysis.importance import order_groups, root
from tests.helpers import solve_ridge


def test_wanda_sums_weight_times_input_norm():
    weight = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.5, 0.0, -1.0, 1.0]])
    inputs = torch.tensor([[1.0, 0.0, 2.0, 1.0], [1.0, 3.0, 0.0, 1.0]])
    found = Statistics(inputs.T @ inputs, inputs.mean(0))
    columns = weight.abs().sum(0) * inputs.norm(dim=0)
    assert torch.allclose(wanda.score(weight, found, 1), columns)
    assert torch.allclose(wanda.score(weight, found, 2), torch.stack([columns[:2].sum(), columns[2:].sum()]))
    assert order_groups(wanda.score, weight, found, 1).tolist() == torch.argsort(-columns, stable=True).tolist()


def test_sections_are_ordered_independently():
    weight, found, _ = random_problem(24)
    scores = wanda.score(weight, found, 4).view(2, 3)
    order = order_groups(wanda.score, weight, found, 8, sections=2)
    # Three groups of eight columns, four in each section.
    assert order.shape == (3, 2)
    for section in range(2):
        assert order[:, section].tolist() == scores[section].argsort(descending=True).tolist()
    assert order.tolist() != order.flip(1).tolist()


def random_problem(features: int = 16):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(300, features, generator=generator) @ torch.randn(features, features, generator=generator)
    return (
        torch.randn(6, features, generator=generator),
        Statistics(inputs.T @ inputs / 300, inputs.mean(0)),
        inputs,
    )


def test_flap_is_weight_norm_times_input_variance():
    weight, found, inputs = random_problem()
    expected = weight.square().sum(0) * inputs.var(0, correction=0)
    assert torch.allclose(flap.score(weight, found, 1), expected, rtol=1e-3)
    assert torch.allclose(flap.score(weight, found, 4), expected.view(-1, 4).sum(1), rtol=1e-3)


@pytest.mark.parametrize("block", [1, 4])
def test_obs_removes_group_with_lowest_ridge_regression_loss(block):
    weight, found, _ = random_problem()
    groups = 16 // block
    order = order_groups(obs.score, weight, found, block).tolist()
    assert sorted(order) == list(range(groups))

    def loss(removed):
        # What Eq. 6 leaves when these groups are gone, solved as it stands.
        gone = [group * block + column for group in removed for column in range(block)]
        kept = [column for column in range(16) if column not in gone]
        index = torch.tensor(kept + gone)
        moved = found.gram[index][:, index]
        repaired = torch.zeros_like(weight)
        repaired[:, : len(kept)] = solve_ridge(weight[:, index], moved, len(kept), DAMPING)
        # obs keeps the damping of the whole matrix, as the factor of all prefixes does.
        damped = moved + DAMPING * moved.diagonal().mean() * torch.eye(16)
        change = repaired - weight[:, index]
        return float((change @ damped * change).sum())

    removed = []
    for group in reversed(order[1:]):
        best = min((loss([*removed, other]), other) for other in range(groups) if other not in removed)[1]
        assert group == best
        removed.append(group)


def test_fisher_obs_does_not_depend_on_matrix_square_root():
    weight, found, _ = random_problem()
    factor = torch.randn(4, 6, generator=torch.Generator().manual_seed(1))
    # Of rank 4, as a matrix of few gradients is.
    fisher = factor.T @ factor
    assert torch.allclose(root(fisher).T @ root(fisher), fisher, atol=1e-5)
    values, vectors = torch.linalg.eigh(fisher)
    symmetric = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    expected = order_groups(obs.score, symmetric @ weight, found, 1)
    assert torch.equal(order_groups(obs.score, weight, found, 1, fisher), expected)
    assert not torch.equal(order_groups(obs.score, weight, found, 1), expected)


def test_matrix_is_compacted_in_place():
    # More rows than are copied at a time.
    matrix = torch.randn(2100, 2100, generator=torch.Generator().manual_seed(0))
    kept = torch.randperm(2100, generator=torch.Generator().manual_seed(1))[:1900].sort().values
    expected, start = matrix[kept][:, kept], matrix.data_ptr()
    found = _compact(matrix, kept)
    assert torch.equal(found, expected) and found.data_ptr() == start
