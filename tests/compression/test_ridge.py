import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from optimum_ffp.compression.ridge import PrefixRidge
from tests.helpers import solve_ridge


def problem(seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(24, 24, generator=generator)
    inputs = torch.randn(400, 24, generator=generator) @ mixing
    return torch.randn(10, 24, generator=generator), inputs, inputs.T @ inputs / len(inputs)


@settings(deadline=None)
@given(kept=st.integers(1, 24), seed=st.integers(0, 50), ridge=st.sampled_from([1e-3, 0.01, 1.0]))
def test_prefix_ridge_equals_direct_solution(kept, seed, ridge):
    weight, _, gram = problem(seed=seed)
    expected = solve_ridge(weight, gram, kept, ridge)
    found = PrefixRidge.of(gram, ridge).compensated(weight, kept)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kept", [5, 12])
def test_prefix_ridge_equals_least_squares_on_activations(kept):
    weight, inputs, gram = problem()
    # Eq. 6 as it is printed: for every removed channel, regress its activation on the retained ones.
    ridge = 0.02 * float(gram.diagonal().mean())
    retained, removed = inputs[:, :kept].double(), inputs[:, kept:].double()
    penalty = (ridge * len(inputs)) ** 0.5 * torch.eye(kept, dtype=torch.float64)
    rows = torch.cat([retained, penalty])
    targets = torch.cat([removed, torch.zeros(kept, removed.shape[1], dtype=torch.float64)])
    coefficients = torch.linalg.lstsq(rows, targets).solution
    expected = weight[:, :kept].double() + weight[:, kept:].double() @ coefficients.T
    found = PrefixRidge.of(gram, 0.02).compensated(weight, kept)
    assert torch.allclose(found.double(), expected, rtol=1e-3, atol=1e-3)
