from itertools import count

import pytest
import torch

from optimum_ffp.evaluation import latency, measure_speed
from tests.helpers import make_tiny_model


def test_speed_interleaves_models_and_skips_warmup_round(monkeypatch):
    turns = iter([(99, 99), (99, 99), (1, 4), (2, 1), (8, 2), (2, 1), (4, 1), (5, 8)])
    calls = []

    def time_generation(model, prompt, new_tokens):
        assert int(prompt.max()) < 64
        calls.append((model, tuple(prompt.shape), new_tokens))
        return next(turns)

    monkeypatch.setattr(latency, "time_generation", time_generation)
    models = {"a": make_tiny_model(), "b": make_tiny_model(vocab_size=64)}
    speeds = measure_speed(models, 12, 8, batch_size=2, repeats=3)
    assert calls == [(models["a"], (2, 12), 8), (models["b"], (2, 12), 8)] * 4
    assert (speeds["a"]["prefill"], speeds["a"]["decode"]) == (2 * 12 / 4, 2 * 8 / 2)
    assert (speeds["b"]["prefill"], speeds["b"]["decode"]) == (2 * 12 / 2, 2 * 8 / 1)


@pytest.mark.parametrize(("requested", "measured"), [((512, 32), (31, 32)), ((512, 500), (1, 62)), ((8, 4), (8, 4))])
def test_speed_lengths_are_limited_to_max_positions(requested, measured):
    speed = measure_speed({"a": make_tiny_model("opt")}, *requested, repeats=1)["a"]
    assert (speed["prompt_tokens"], speed["new_tokens"]) == measured
    assert speed["prefill"] > 0 and speed["decode"] > 0


def test_prefill_and_decode_times_split_at_first_token(monkeypatch):
    clock = count()
    monkeypatch.setattr(latency.time, "perf_counter", lambda: next(clock))
    model = make_tiny_model()
    # Whatever the model says, its end token included, it goes on to the last token.
    model.generation_config.eos_token_id = list(range(128))
    assert latency.time_generation(model, torch.zeros(2, 5, dtype=torch.long), 7) == (1, 7)
