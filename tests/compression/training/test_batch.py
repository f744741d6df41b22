"""Sizes of a training."""

from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaConfig

from optimum_ffp import RecoveryConfig
from optimum_ffp.compression.training.batch import Batch
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.recovery.plan import make_recovery_plan


MODEL = LlamaConfig(max_position_embeddings=4096)


@given(st.integers(1, 10**7), st.integers(1, 10**6), st.integers(2, 4096), st.integers(1, 8), st.integers(1, 4))
def test_training_steps_cover_requested_tokens(max_tokens, batch_tokens, length, batch_size, count):
    sizes = {"max_tokens": max_tokens, "batch_tokens": batch_tokens, "batch_size": batch_size}
    batch = Batch.of(MODEL, seq_len=length, count=count, **sizes)
    at_once = batch.at_once * count
    # More at once don't make a step longer than it would be.
    assert 1 <= batch.at_once <= batch_size and batch.windows <= max(count, 1.5 * batch_tokens / length)
    assert batch.windows == batch.accumulation * at_once
    assert batch.steps * batch.tokens >= max_tokens > (batch.steps - 1) * batch.tokens
    assert abs(batch.tokens - batch_tokens) <= max(length * at_once / 2, length * at_once - batch_tokens)


def test_window_length_shrinks_with_token_budget():
    def batch_of(model=MODEL, count=1, **options) -> Batch:
        plan = make_recovery_plan(RecoveryConfig(dataset="c4", **options), "pruned", LoadOptions())
        return Batch.of_recovery(plan, model, count)

    for tokens, length in {"2M": 2048, "400k": 2000, "200k": 1000, "50k": 512}.items():
        batch = batch_of(max_tokens=tokens)
        assert batch.length == length and batch.steps >= (200 if length > 512 else 97)
    assert batch_of(count=2, max_tokens="400k").length == 1000
    assert batch_of(max_tokens="50k", seq_len=2048).length == 2048
    assert batch_of(LlamaConfig(max_position_embeddings=64), max_tokens="50k").length == 64
