import shlex
from argparse import ArgumentParser, Namespace
from types import SimpleNamespace

import pytest
import torch

from optimum_ffp import FFPConfig
from optimum_ffp.checkpoint.card import command_line
from optimum_ffp.commands.prune import parse_args_ffp_prune, read_config
from tests.helpers import SETTINGS, make_pruner, make_record, make_tiny_model, make_tokenizer


def read(command: str) -> Namespace:
    """What `ffp prune` makes of a command."""
    words = shlex.split(command)
    assert words[:3] == ["optimum-cli", "ffp", "prune"]
    parser = ArgumentParser()
    parse_args_ffp_prune(parser)
    return parser.parse_args(words[3:])


def command_of(config: FFPConfig, **more) -> str:
    facts = {"base_model": "someone/model", "revision": None, "dtype": "float32", "trust_remote_code": False}
    return command_line(SimpleNamespace(config=config, **facts | {"search": make_record()} | more))


UNUSUAL = {
    "preset": "paper",
    "sparsity": 0.1234567,
    "dataset": "someone/text:english",
    "eval_dataset": "wikitext2",
    "ridge_lambda_relative": False,
    "hidden_sizes": (32, 16),
    "rate_precision": 0.02,
    "search_dtype": "model",
    "eval_samples": 7,
    "reward": "compensated",
    "calibration": "none",
    "seed": 5,
}


@pytest.mark.parametrize(
    "options",
    [
        UNUSUAL,
        {"reward": "pruned"},
        {"preset": "paper", "reward": "compensated"},
        {"method": "uniform", "seed": 1},
    ],
)
def test_command_repeats_the_config(options):
    config = FFPConfig(**options)
    assert read_config(read(command_of(config))).to_dict() == config.to_dict()


def test_command_states_nothing_that_is_the_default():
    assert command_of(FFPConfig(reward="pruned")).endswith("--sparsity 0.2 --reward pruned --seed 0")


def test_command_says_how_the_model_was_loaded_and_what_the_agent_went_on_from():
    search = make_record(warm_start="me/agents@" + "a" * 40)
    facts = {"revision": "b" * 40, "dtype": "bfloat16", "trust_remote_code": True, "search": search}
    args = read(command_of(FFPConfig(search_steps=32, sparsity=0.3), **facts))
    assert (args.model, args.revision, args.dtype) == ("someone/model", "b" * 40, "bfloat16")
    assert args.trust_remote_code and args.warm_start == "me/agents@" + "a" * 40
    assert args.sparsity == [0.3] and args.search_steps == 32
    # The folder of an agent is its own, and not the machine's; without a search none is read.
    assert read(command_of(FFPConfig(), search=make_record(warm_start="/models/mine"))).warm_start == "mine"
    assert "mine" not in command_of(FFPConfig(method="uniform"), search=make_record(warm_start="/models/mine"))


@pytest.mark.slow
def test_provenance_of_a_local_model_whose_agent_was_given_in_python(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder)
    first = pruner.prune(0.2)
    assert first.search.warm_start is None
    second = pruner.prune(0.3, warm_start=first.agent)
    provenance = second.to_dict()["provenance"]
    assert (provenance["revision"], provenance["dtype"]) == (None, "float32")
    assert read(command_line(second)).warm_start == "an agent in memory"


@pytest.mark.slow
def test_dtype_of_a_model_that_was_loaded_by_the_caller(data_folder):
    from optimum_ffp import FFPPruner

    config = FFPConfig(dataset=str(data_folder), method="uniform", **SETTINGS)
    pruner = FFPPruner(make_tiny_model().to(torch.bfloat16), make_tokenizer(), config)
    assert read(command_line(pruner.prune(0.3))).dtype == "bfloat16"
