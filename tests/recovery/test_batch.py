"""Sizes of a training."""

from hypothesis import given
from hypothesis import strategies as st

from optimum_ffp import RecoveryConfig
from optimum_ffp.recovery.batch import Batch


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.integers(2, 4096), st.integers(1, 8), st.integers(1, 4))
def test_steps_suffice_for_all_tokens(max_tokens, batch_tokens, length, batch_size, count):
    config = RecoveryConfig(max_tokens=max_tokens, batch_tokens=batch_tokens, batch_size=batch_size)
    batch, at_once = Batch.of(config, length, count), batch_size * count
    assert batch.windows == batch.accumulation * at_once and batch.all_windows == batch.steps * batch.windows
    assert batch.all_windows * length >= max_tokens > (batch.steps - 1) * batch.tokens
    assert abs(batch.tokens - batch_tokens) <= max(length * at_once / 2, length * at_once - batch_tokens)
