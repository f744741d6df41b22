import re
import subprocess
import sys
from argparse import ArgumentParser
from dataclasses import fields

import pytest

from optimum_ffp import FFPConfig
from optimum_ffp.commands.prune_options import parse_args_ffp_prune
from optimum_ffp.config.fields import Options


@pytest.mark.parametrize(
    ("words", "unread"),
    [
        ("--alpha-start 0.3 --learning-rate 1e-4", "--alpha-start, --learning-rate (used only with --agent ppo)"),
        ("--method no-search --update-samples 2", "--update-samples (used only with --method ffp, random or"),
        ("--method no-search --agent ppo --warm-start x", "--agent, --warm-start (used only with --method ffp)"),
        ("--method uniform --search-steps 9", "--search-steps (used only with --method ffp, random or evolutionary)"),
        ("--preset paper --calibration none --ridge-lambda 1", "--ridge-lambda (used only with a --calibration other"),
        ("--dataset self --text-column x", "--text-column (used only with a --dataset or --eval-dataset other"),
        ("--private --hub-model-id x", "--hub-model-id, --private (used only with --push-to-hub)"),
    ],
)
def test_options_that_nothing_would_read_are_named(run_ffp, words, unread):
    code, output, errors = run_ffp("prune", "-m", "nobody/nothing", *words.split())
    assert code == 2 and output == ""
    assert errors.startswith("error: these options have no effect: ") and unread in errors


def test_a_folder_of_plain_text_has_no_columns(run_ffp, data_folder, tmp_path):
    words = ("-m", "nobody/nothing", "--text-column", "body")
    code, _, errors = run_ffp("prune", *words, "--dataset", str(data_folder))
    assert code == 2 and "these options have no effect: --text-column" in errors
    (data_folder / "train.txt").rename(tmp_path / "train.txt")
    (data_folder / "train.jsonl").write_text('{"body": "w3 w4"}\n')
    _, _, errors = run_ffp("prune", *words, "--dataset", str(data_folder))
    assert "no effect" not in errors


def test_help_shows_defaults_and_opens_with_the_common_options(run_ffp):
    code, output, _ = run_ffp("prune", "--help")
    assert code == 0
    # An option begins a line, its help follows.
    options = dict(re.findall(r"^  (?:-m MODEL, )?--([a-z-]+)(.*?)(?=^  -|^\S|\Z)", output, re.MULTILINE | re.DOTALL))
    for field in fields(Options):
        if field.name in ("fall_back", "relative_outputs"):
            continue
        shown = " ".join(options[field.name.replace("_", "-")].split())
        default = field.default if type(field.default) in (int, str) else ""
        assert f"Default: {default}" in shown, field.name
    assert not re.search(r"--\w+_", output)
    titles = re.findall(r"^([A-Z].*):$", output, re.MULTILINE)
    assert titles[:4] == ["Required arguments", "Common options", "Output", "Data"]
    assert list(options)[:6] == ["model", "output", "sparsity", "dataset", "push-to-hub", "overwrite"]
    assert titles.index("Search") < titles.index("The paper's agent (with --agent ppo)") < titles.index("Calibration")


@pytest.mark.slow
@pytest.mark.parametrize("arguments", [["--help"], ["ffp", "--help"], ["ffp", "prune", "--help"]])
def test_help_does_not_import_torch(arguments):
    program = (
        "import sys; from optimum.commands.optimum_cli import main; sys.argv = ['optimum-cli', *sys.argv[1:]]\n"
        "try: main()\nexcept SystemExit: pass\n"
        "assert 'optimum_ffp' in sys.modules and 'torch' not in sys.modules and 'transformers' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "prune" in done.stdout or "ffp" in done.stdout


def test_every_option_is_on_the_command_line():
    parser = ArgumentParser()
    parse_args_ffp_prune(parser)
    in_files = {"fall_back", "relative_outputs"}
    assert set(FFPConfig.option_names()) - in_files <= {action.dest for action in parser._actions}
