import pytest
import torch

from optimum_ffp.analysis.criteria import obs
from optimum_ffp.analysis.fisher import loss_curve
from optimum_ffp.analysis.gram import Statistics
from optimum_ffp.analysis.importance import order_groups
from optimum_ffp.compression.ridge import PrefixRidge
from optimum_ffp.errors import FFPError
from optimum_ffp.utils.cholesky import check_finite, factorize, ridge_damping


def gram_of_rank(rank: int, features: int = 24) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(400, rank, generator=generator) @ torch.randn(rank, features, generator=generator)
    return inputs.T @ inputs / 400


def test_positive_definite_matrix_gets_only_requested_damping():
    gram = gram_of_rank(24).double()
    damping = ridge_damping(gram, 0.01)
    assert damping == 0.01 * float(gram.diagonal().mean())
    before = gram.clone()
    factor = factorize(gram, damping)
    assert torch.equal(gram, before)
    assert torch.equal(factor, torch.linalg.cholesky(gram + damping * torch.eye(24, dtype=torch.float64)))


@pytest.mark.parametrize("features", [24, 1100])
def test_factor_with_order_equals_factor_of_permuted_matrix(features):
    # More rows than are copied at a time.
    gram = gram_of_rank(features, features)
    order = torch.randperm(features, generator=torch.Generator().manual_seed(2))
    factor, expected = factorize(gram, 0.1, order), factorize(gram[order][:, order], 0.1)
    assert torch.equal(factor, expected)
    assert torch.equal(PrefixRidge.of(gram, order=order).factor, PrefixRidge.of(gram[order][:, order]).factor)


@pytest.mark.parametrize("rank", [0, 5])
def test_singular_matrix_is_factorized_without_damping(rank):
    weight, gram = torch.randn(10, 24, generator=torch.Generator().manual_seed(1)), gram_of_rank(rank)
    ridge = PrefixRidge.of(gram, ridge_lambda=0)
    found = ridge.compensated(weight, 12)
    # Twelve columns are all that five dimensions need; of no input there is nothing to repair.
    assert torch.allclose(found @ gram[:12], weight @ gram, atol=1e-2)
    assert torch.equal(found, weight[:, :12]) == (rank == 0)
    assert loss_curve(weight, ridge, torch.eye(10), 1)[12] < 1e-3
    statistics = Statistics(gram, torch.zeros(24))
    for block in (1, 4):
        assert sorted(order_groups(obs.score, weight, statistics, block).tolist()) == list(range(24 // block))


def test_indefinite_matrix_gets_extra_damping():
    gram = gram_of_rank(5).double() - 1e-3 * torch.eye(24, dtype=torch.float64)
    factor = factorize(gram, 1e-6)
    added = factor @ factor.T - gram
    used = float(added.diagonal().mean())
    assert 1e-3 < used < 1e-1 and torch.isfinite(factor).all()
    assert torch.allclose(added, used * torch.eye(24, dtype=torch.float64))


def test_nonfinite_matrix_is_rejected():
    with pytest.raises(FFPError, match="not finite"):
        factorize(torch.full((3, 3), torch.nan, dtype=torch.float64), 0.1)
    check_finite(torch.zeros(3), "nothing")
    with pytest.raises(FFPError, match="what layer 1 reads is not finite: .*--dtype float32"):
        check_finite(torch.tensor([1.0, torch.inf]), "what layer 1 reads")
