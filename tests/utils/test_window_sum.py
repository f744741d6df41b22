from functools import partial

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp.utils.processes import Shares
from optimum_ffp.utils.window_sum import CHUNKS, WindowSum, most_sums, running_sums, shares_of_sum


def along_tree(sums: list[torch.Tensor]) -> torch.Tensor:
    """Adds neighbours until one is left; the last of an odd number waits."""
    while len(sums) > 1:
        pairs = [sums[place : place + 2] for place in range(0, len(sums), 2)]
        sums = [pair[0] + pair[1] if len(pair) == 2 else pair[0] for pair in pairs]
    return sums[0]


@given(st.integers(1, 40), st.one_of(st.none(), st.integers(1, 12)))
def test_chunks_are_added_along_a_tree(windows, chunks):
    rows = torch.randn(windows, 5, generator=torch.Generator().manual_seed(windows))
    shares = Shares(windows, chunks)
    total = WindowSum(shares, partial(torch.zeros, 5))
    kept = 0
    for _, chunk in shares.own_chunks:
        total.start()
        kept = max(kept, len(total._sums) + 1)
        for row in rows[chunk]:
            total.current.add_(row)
    expected = []
    for chunk in shares.chunks:
        expected.append(torch.zeros(5))
        for window in chunk:
            expected[-1] += rows[window]
    assert torch.equal(total.finish(), along_tree(expected))
    assert torch.allclose(along_tree(expected), rows.sum(0), atol=1e-4)
    if len(shares.chunks) <= CHUNKS:
        assert kept <= most_sums(on_cpu=True)


def test_a_sum_of_one_chunk_is_kept_on_an_accelerator():
    assert [len(shares_of_sum(30, torch.device(name)).chunks) for name in ("cpu", "cuda")] == [CHUNKS, 1]
    assert [most_sums(True, count) for count in (1, 2, 4, 8, 16)] == [4, 3, 2, 2, 2]
    assert [most_sums(False, count) for count in (1, 2, 8)] == [1, 2, 2]
    assert [running_sums(True, count) for count in (1, 2, 4, 8, 16)] == [4, 3, 2, 1, 1]
    assert running_sums(False, 8) == 1


def test_at_names_the_process_that_gets_it():
    total = WindowSum(Shares(3), partial(torch.zeros, 2))
    for _ in range(3):
        total.start()
        total.current.add_(1)
    assert total.finish(at=0).tolist() == pytest.approx([3, 3])
