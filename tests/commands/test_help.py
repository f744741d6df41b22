"""What `--help` says, and how fast."""

import re
from importlib.metadata import version

import pytest

from optimum_ffp import EvaluationConfig, FFPConfig, RecoveryConfig
from optimum_ffp.commands import export, push, quantize
from tests.helpers import run_python


COMMANDS = {
    "prune": FFPConfig,
    "recover": RecoveryConfig,
    "evaluate": EvaluationConfig,
    "quantize": quantize.Options,
    "export": export.Options,
    "push": push.Options,
}


@pytest.mark.parametrize("command", COMMANDS)
def test_help_shows_grouped_options_with_defaults(run_ffp, command):
    code, output, _ = run_ffp(command, "--help")
    assert code == 0 and "examples:" in output and "143" in output
    options = dict(re.findall(r"^ {1,4}(?:-m MODEL, )?--([a-z0-9-]+)(.*?)(?=^ {1,4}-|^\S|\Z)", output, re.M | re.S))
    for field in COMMANDS[command].all_fields():
        name = field.name.replace("_", "-")
        assert (name in options) == (field.metadata["group"] is not None)
        assert name not in options or "Default: " in " ".join(options[name].split())


def test_number_of_command_line_options_is_bounded(run_ffp):
    counts = {name: len(re.findall(r"^ {1,4}-", run_ffp(name, "--help")[1], re.MULTILINE)) for name in COMMANDS}
    assert counts["prune"] <= 55 and counts["quantize"] <= 10 and sum(counts.values()) < 135, counts


def test_version_option_prints_package_version(run_ffp):
    assert run_ffp("--version")[:2] == (0, f"optimum-ffp {version('optimum-ffp')}\n")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["ffp", "--help"], ["ffp", "prune", "--help"]])
def test_help_does_not_import_torch(arguments):
    program = (
        "import sys; from optimum.commands.optimum_cli import main; sys.argv = ['optimum-cli', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'optimum_ffp' in sys.modules and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    run_python("-c", program, *arguments)
