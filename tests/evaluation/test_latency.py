from itertools import count
from types import SimpleNamespace

import pytest
import torch

from optimum_ffp.evaluation import Speed, latency, measure_speed
from tests.helpers import make_tiny_model


def test_models_take_turns_and_the_first_round_is_not_counted(monkeypatch):
    turns = iter([(99, 99), (99, 99), (1, 4), (2, 1), (8, 2), (2, 1), (4, 1), (5, 8)])
    seen, ticks = [], []

    def time_generation(model, prompt, new_tokens):
        seen.append((model, tuple(prompt.shape), new_tokens))
        return next(turns)

    monkeypatch.setattr(latency, "time_generation", time_generation)
    models = {"a": make_tiny_model(), "b": make_tiny_model(vocab_size=64)}
    speeds = measure_speed(models, 12, 8, batch_size=2, repeats=3, on_measured=ticks.append)
    assert seen == [(models["a"], (2, 12), 8), (models["b"], (2, 12), 8)] * 4
    assert sum(ticks) == 8
    assert speeds == {"a": Speed(2 * 12 / 4, 2 * 8 / 2, 12, 8, 2, 3), "b": Speed(2 * 12 / 2, 2 * 8 / 1, 12, 8, 2, 3)}


def test_prompt_is_of_tokens_that_all_models_know(monkeypatch):
    prompts = []
    monkeypatch.setattr(latency, "time_generation", lambda model, prompt, new: prompts.append(prompt) or (1, 1))
    measure_speed({"a": make_tiny_model(), "b": make_tiny_model(vocab_size=9)}, 30, 4, repeats=1)
    assert all(torch.equal(prompt, prompts[0]) for prompt in prompts) and 0 <= prompts[0].min() <= prompts[0].max() < 9


@pytest.mark.parametrize(("asked", "measured"), [((512, 32), (31, 32)), ((512, 500), (1, 62)), ((8, 4), (8, 4))])
def test_lengths_fit_into_the_positions_of_the_model(asked, measured):
    speed = measure_speed({"a": make_tiny_model("opt")}, *asked, repeats=1)["a"]
    assert (speed.prompt_tokens, speed.new_tokens) == measured
    assert speed.prefill > 0 and speed.decode > 0


def test_a_model_without_a_limit(monkeypatch):
    monkeypatch.setattr(latency, "time_generation", lambda *arguments: (1, 1))
    embeddings = SimpleNamespace(num_embeddings=10)
    model = SimpleNamespace(config=SimpleNamespace(), get_input_embeddings=lambda: embeddings)
    assert measure_speed({"a": model}, 512, 32)["a"].prompt_tokens == 512


def test_prefill_ends_with_the_first_token_and_decoding_with_the_last(monkeypatch):
    clock = count()
    monkeypatch.setattr(latency, "_clock", lambda device: next(clock))
    model = make_tiny_model()
    # Whatever the model says, its end token included, it goes on to the last token.
    model.generation_config.eos_token_id = list(range(128))
    assert latency.time_generation(model, torch.zeros(2, 5, dtype=torch.long), 7) == (1, 7)
