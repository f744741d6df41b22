"""Checkpoints of a training: the optimiser, schedule and random state come back, from safetensors and JSON."""

import json

import pytest
import torch
from torch.optim import AdamW
from torch.optim.lr_scheduler import LambdaLR

from optimum_ffp import FFPError
from optimum_ffp.recovery import training_state


def make_optimiser(width: int = 3) -> tuple[list[torch.nn.Parameter], AdamW, LambdaLR]:
    torch.manual_seed(0)
    weights = [torch.nn.Parameter(torch.randn(4, width)), torch.nn.Parameter(torch.randn(width))]
    groups = [{"params": weights[:1], "weight_decay": 0.1}, {"params": weights[1:], "weight_decay": 0.0}]
    optimiser = AdamW(groups, lr=0.1, betas=(0.9, 0.95))
    return weights, optimiser, LambdaLR(optimiser, lambda step: 1 / (1 + step))


def advance(weights, optimiser, schedule, steps: int) -> None:
    for _ in range(steps):
        for weight in weights:
            weight.grad = weight.detach() ** 2 + torch.rand(weight.shape)
        optimiser.step()
        schedule.step()


def save(folder, optimiser, schedule) -> None:
    training_state.save_optimiser(optimiser, folder)
    training_state.save_schedule(schedule, folder)
    training_state.save_random_state(folder, 0)


def test_a_training_goes_on_as_if_it_had_not_ended(tmp_path):
    weights, optimiser, schedule = make_optimiser()
    advance(weights, optimiser, schedule, 3)
    save(tmp_path, optimiser, schedule)
    kept = [weight.detach().clone() for weight in weights]
    advance(weights, optimiser, schedule, 4)

    others, optimiser, schedule = make_optimiser()
    for other, weight in zip(others, kept):
        other.data.copy_(weight)
    training_state.load_optimiser(optimiser, tmp_path)
    training_state.load_schedule(schedule, tmp_path)
    training_state.load_random_state(tmp_path, 0)
    advance(others, optimiser, schedule, 4)
    assert all(torch.equal(one, other) for one, other in zip(weights, others))
    assert {path.suffix for path in tmp_path.iterdir()} == {".json", ".safetensors"}


def test_the_state_of_another_training_is_refused(tmp_path):
    weights, optimiser, schedule = make_optimiser()
    advance(weights, optimiser, schedule, 1)
    save(tmp_path, optimiser, schedule)
    other = AdamW([torch.nn.Parameter(torch.zeros(2))])
    with pytest.raises(FFPError, match="holds the state of another training"):
        training_state.load_optimiser(other, tmp_path)


def test_a_process_without_a_saved_random_state_keeps_its_own(tmp_path):
    before = torch.get_rng_state()
    training_state.load_random_state(tmp_path, 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("text", [None, "", "{", "[]"])
def test_a_checkpoint_without_its_last_file_is_not_complete(tmp_path, text):
    if text is not None:
        (tmp_path / "trainer_state.json").write_text(text)
    assert not training_state.is_complete(tmp_path)
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 3}))
    assert training_state.is_complete(tmp_path)
