import json
import shutil
from argparse import ArgumentParser
from unittest.mock import Mock

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, BertConfig

from optimum_ffp import FFPConfig, FFPModelForCausalLM
from optimum_ffp.checkpoint.gguf import export_gguf
from optimum_ffp.commands.prune import LOAD_OPTIONS, output_folders, parse_args_ffp_prune
from optimum_ffp.hub.upload import name_repository
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.utils.resume import Journal
from tests.helpers import SAMPLE, make_byte_level_tokenizer, make_text, make_tiny_model


SIZES = {"seq-len": 24, "num-samples": 8, "search-samples": 2, "eval-samples": 3}
FAST = ["--device", "cpu", *(word for name, value in SIZES.items() for word in (f"--{name}", str(value)))]


@pytest.fixture
def run(run_ffp):
    def run(*words):
        # A policy that takes no search reads nothing of it.
        searches = [] if {"uniform", "homogeneous"} & {*words} else ["--search-steps", 10]
        return run_ffp("prune", *FAST, *searches, *words)

    return run


@pytest.mark.parametrize("name", ["qwen3", "gemma3"])
def test_layers_that_are_alike_give_a_checkpoint_of_the_dense_class(
    run, run_ffp, name, save_tiny_model, data_folder, tmp_path, windows, caplog
):
    base, out, again = save_tiny_model(name), tmp_path / "out", tmp_path / "again"
    code, output, errors = run("-m", base, out, "--method", "homogeneous", "--dataset", data_folder)
    assert code == 0, errors
    assert f'from_pretrained("{out}")\n' in output and not list(out.glob("*.py"))
    # It is the default of the method, which nobody chose.
    assert "isn't possible" not in caplog.text
    model = AutoModelForCausalLM.from_pretrained(out)
    dense = AutoModelForCausalLM.from_pretrained(base)
    assert type(model) is type(dense) and model.num_parameters() < dense.num_parameters()
    own = FFPModelForCausalLM.from_pretrained(out)
    assert type(own) is type(dense) and torch.equal(own(windows).logits, model(windows).logits)
    card = (out / "README.md").read_text()
    assert f"this is a `{type(dense).__name__}`" in card and "trust" not in card and "modeling" not in card
    assert "the same number in every layer" in card and name_repository(card, "me/it").count('("me/it")') == 3
    parent = FFPModelForCausalLM.from_pretrained(out.parent, subfolder=out.name)
    assert torch.equal(parent(windows).logits, own(windows).logits)
    code, _, errors = run("-m", out, tmp_path / "twice", "--dataset", data_folder)
    assert code == 2 and "is already pruned; prune the dense model that it was made from" in errors
    few = ["--max-tokens", "1k", "--batch-tokens", "96", "--held-out-samples", "4", "--teacher", base, *FAST[:4]]
    code, output, errors = run_ffp("recover", "-m", out, again, *few, "--eval-samples", 3, "--dataset", data_folder)
    assert code == 0, errors
    assert f'from_pretrained("{again}")\n' in output and not list(again.glob("*.py"))
    assert type(AutoModelForCausalLM.from_pretrained(again)) is type(dense)


def test_one_sparsity_into_the_named_folder(run, save_tiny_model, data_folder, tmp_path, windows):
    out = tmp_path / "out"
    code, output, _ = run("-m", save_tiny_model(), out, "--sparsity", 0.3, "--dataset", data_folder, "--seed", 0)
    assert code == 0
    for text in ("parameters", "perplexity, dense", "perplexity, after calibration", "time, search"):
        assert text in output
    assert "3 windows of 24 tokens" in output and f'from_pretrained("{out}", trust_remote_code=True)' in output
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert torch.isfinite(model(windows).logits).all()


@pytest.mark.slow
def test_little_text_and_text_that_is_repeated_are_shown(run, save_tiny_model, data_folder, tmp_path, caplog):
    for split in ("train", "validation", "test"):
        (data_folder / f"{split}.txt").write_text(make_text(150))
    out = tmp_path / "out"
    code, output, _ = run("-m", save_tiny_model(), out, "--dataset", data_folder, "--method", "uniform")
    assert code == 0
    shown = " ".join(output.split())
    assert f"calibrated on {data_folder}, train, only 6 of 8 windows of 24 tokens" in shown
    assert "warning 3 test windows repeat calibration or search text" in shown
    assert "3 of 3 test windows repeat text" in caplog.text
    card = (out / "README.md").read_text()
    assert "2 search windows and 3 test windows repeat" in card and "disjoint" not in card


@pytest.mark.slow
def test_two_sparsities_into_two_folders_the_second_warm_started(run, save_tiny_model, data_folder, tmp_path):
    out = tmp_path / "out"
    code, output, _ = run("-m", save_tiny_model(), out, "--sparsity", 0.2, 0.3, "--dataset", data_folder)
    assert code == 0
    assert f"Pareto front: {out}-ffp-pareto.json, {out}-ffp-pareto.png" in output
    sparsities = [
        json.loads((tmp_path / f"out-ffp-{percent}" / "ffp_config.json").read_text())["policy"]["sparsity"]
        for percent in (20, 30)
    ]
    assert sparsities == [pytest.approx(0.2, abs=0.01), pytest.approx(0.3, abs=0.01)]


@pytest.mark.slow
def test_warm_start_from_a_folder(run, save_tiny_model, data_folder, tmp_path):
    model = save_tiny_model()
    first, second = tmp_path / "first", tmp_path / "second"
    assert run("-m", model, first, "--sparsity", 0.2, "--dataset", data_folder)[0] == 0
    assert run("-m", model, second, "--sparsity", 0.3, "--dataset", data_folder, "--warm-start", first)[0] == 0
    code, _, errors = run("-m", model, tmp_path / "third", "--dataset", data_folder, "--warm-start", tmp_path)
    assert code == 2 and "holds no search/agent.safetensors" in errors


@pytest.mark.slow
def test_default_folder_and_text_from_the_model_itself(run, save_tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, _, _ = run("-m", save_tiny_model(), "--sparsity", 0.25, "--dataset", "self", "--method", "uniform")
    assert code == 0 and (tmp_path / "tiny-llama-ffp-25" / "model.safetensors").is_file()


@pytest.mark.slow
def test_config_file_with_options_that_win(run, save_tiny_model, data_folder, tmp_path):
    options = tmp_path / "options.json"
    options.write_text(json.dumps({"dataset": str(data_folder), "sparsity": 0.4, "seed": 7, "reward": "pruned"}))
    out = tmp_path / "out"
    assert run("-m", save_tiny_model(), out, "--config", options, "--seed", 9)[0] == 0
    config = FFPConfig.from_file(out / "ffp_config.json")
    assert (config.sparsity, config.seed, config.agent) == (0.4, 9, "ppo")


def test_what_a_file_holds_need_not_be_read(run_ffp, save_tiny_model, data_folder, tmp_path):
    FFPConfig(method="uniform", learning_rate=0.5, dataset=str(data_folder), seq_len=24).save_pretrained(tmp_path)
    words = ["prune", "-m", save_tiny_model(), "--plan", "--config", tmp_path / "ffp_config.json"]
    assert run_ffp(*words, "--num-samples", 4)[0] == 0
    assert run_ffp(*words, "--method", "ffp", "--agent", "ppo", "--learning-rate", 1e-3)[0] == 0
    assert run_ffp(*words, "--learning-rate", 1e-3)[0] == 2


@pytest.mark.slow
def test_the_output_by_name(run, save_tiny_model, data_folder, tmp_path):
    out = tmp_path / "out"
    words = ["-m", save_tiny_model(), "--dataset", data_folder, "--method", "uniform", "--sparsity", 0.2]
    for twice in ([out, "--output", out], ["--output", out, out]):
        code, _, errors = run(*twice, *words)
        assert code == 2 and f"OUT is given twice, as {out} and {out}; leave out one" in errors
    code, _, errors = run(*words, "folder")
    assert code == 2 and "'folder' is not a number; an output folder goes before the options" in errors
    assert "--output folder" in errors and errors.count("--") < 10
    assert run(*words, "--output", out)[0] == 0 and (out / "model.safetensors").is_file()


def test_every_sparsity_is_checked(run, save_tiny_model, data_folder):
    code, _, errors = run("-m", save_tiny_model(), "--dataset", data_folder, "--sparsity", 0.2, 30)
    assert code == 2 and "found 30.0; for 30 % give 0.3" in errors


@pytest.mark.slow
def test_underscores_work_as_dashes_do(run, save_tiny_model, data_folder, tmp_path):
    out = tmp_path / "out"
    arguments = ["--method", "uniform", "--ffn_multiple", 4, "--min_retention", 0.3, "--trust_remote_code"]
    assert run("-m", save_tiny_model(), out, "--dataset", data_folder, *arguments)[0] == 0
    assert FFPConfig.from_file(out / "ffp_config.json").ffn_multiple == 4


def corrupt(path, text="{"):
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("unsupported family", "model type 'bert' is not supported; supported are arcee, cohere2, ernie4_5,"),
        ("missing folder", "there is no folder"),
        ("folder without config", "is a folder without config.json"),
        ("no such hub id", "can't be loaded as a causal LM"),
        ("truncated weights", "is not a valid safetensors file"),
        ("missing gguf", "there is no file"),
        ("empty data", "holds no text"),
        ("missing data", "there is no file or folder"),
        ("unreadable data", "broken.jsonl, line 1 is not valid JSON"),
        ("short text", "less than one window of 24"),
        ("sparsity out of reach", "sparsity 0.95 can't be met: with min_retention 0.2 at most 0."),
        ("sparsity of 2", "sparsity must be a number between 0 and 1"),
        ("output exists", "exists; name another folder, or give --overwrite"),
        ("already pruned", "is already pruned; prune the dense model"),
        ("corrupt config", "can't be read as a config"),
        ("unknown option", "FFPConfig has no speed"),
        ("bad dtype", "dtype 'float7' is not known"),
        ("bad device", "device 'warp' can't be used here"),
        ("quantised", "is quantised; prune the model in full precision"),
        ("own code", "brings modelling code of its own"),
    ],
)
def test_wrong_input_ends_in_one_line_and_exit_code_2(run, save_tiny_model, data_folder, tmp_path, case, message):
    model, out, data, more = save_tiny_model(), tmp_path / "out", data_folder, []
    config = json.loads((model / "config.json").read_text())
    match case:
        case "unsupported family":
            BertConfig().save_pretrained(model)
            (model / "model.safetensors").unlink()
        case "missing folder":
            model = tmp_path / "nowhere"
        case "folder without config":
            model = tmp_path
        case "no such hub id":
            model = "nobody/nothing"
        case "truncated weights":
            (model / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
        case "missing gguf":
            model = tmp_path / "model.gguf"
        case "empty data":
            data = corrupt(tmp_path / "empty.txt", "")
        case "missing data":
            data = tmp_path / "nowhere.txt"
        case "unreadable data":
            data = corrupt(tmp_path / "broken.jsonl")
        case "short text":
            data = corrupt(tmp_path / "short.txt", "w5 w6")
        case "sparsity out of reach":
            more = ["--sparsity", 0.95]
        case "sparsity of 2":
            more = ["--sparsity", 2]
        case "output exists":
            out.mkdir()
        case "already pruned":
            assert run("-m", model, tmp_path / "pruned", "--dataset", data, "--method", "uniform")[0] == 0
            model = tmp_path / "pruned"
        case "corrupt config":
            more = ["--config", corrupt(tmp_path / "ffp_config.json")]
        case "unknown option":
            more = ["--config", corrupt(tmp_path / "ffp_config.json", '{"speed": 9}')]
        case "bad dtype":
            more = ["--dtype", "float7"]
        case "bad device":
            more = ["--device", "warp"]
        case "quantised":
            corrupt(model / "config.json", json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}))
        case "own code":
            entry = {"AutoModelForCausalLM": "modeling_other.Other"}
            corrupt(model / "config.json", json.dumps(config | {"auto_map": entry}))
    before = sorted(tmp_path.iterdir())
    code, output, errors = run("-m", model, out, "--dataset", data, *more)
    assert code == 2
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert message in line
    assert "Traceback" not in errors + output
    assert sorted(tmp_path.iterdir()) == before


def test_model_is_required(run):
    code, _, errors = run()
    assert code == 2 and "-m/--model" in errors


def test_load_options_are_those_of_the_command_line():
    assert set(LOAD_OPTIONS) == set(LoadOptions.__dataclass_fields__)


@pytest.mark.slow
def test_gguf_file_is_dequantised(run, tmp_path):
    """What the `gguf` package reads from a file of 8 bits; the real SmolLM2 is in tests/test_smollm2.py."""
    gguf = pytest.importorskip("gguf")
    file, out, text = tmp_path / "model.gguf", tmp_path / "out", tmp_path / "text.txt"
    model = make_tiny_model(vocab_size=320, hidden_size=64, intermediate_size=96)
    export_gguf(model, make_byte_level_tokenizer(), file, "q8_0")
    text.write_text(SAMPLE * 20)
    options = ("--method", "uniform", "--sparsity", 0.3, "--calibration", "ridge")
    assert run("-m", file, out, "--dataset", text, *options)[0] == 0

    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    pruned = load_file(out / "model.safetensors")
    for layer in range(3):
        written = tensors[f"blk.{layer}.ffn_up.weight"]
        restored = torch.from_numpy(gguf.quants.dequantize(written.data, written.tensor_type))
        kept = pruned[f"model.layers.{layer}.mlp.up_proj.weight"]
        # No calibration changes these: every channel that is kept is one of the file, as the file has rounded it.
        assert len(kept) < 96 and torch.equal(kept, restored[torch.cdist(kept, restored).argmin(1)])
        assert not torch.equal(restored, model.model.layers[layer].mlp.up_proj.weight)


def test_a_broken_gguf_file_is_refused(run, data_folder, tmp_path):
    pytest.importorskip("gguf")
    (tmp_path / "broken.gguf").write_bytes(b"GGUF" + b"\0" * 64)
    code, _, errors = run("-m", tmp_path / "broken.gguf", tmp_path / "out", "--dataset", data_folder)
    assert code == 2 and "can't be loaded as a causal LM" in errors


@pytest.mark.slow
def test_pruned_config_keeps_the_base_model_type(run, save_tiny_model, data_folder, tmp_path):
    out = tmp_path / "out"
    assert run("-m", save_tiny_model("opt"), out, "--dataset", data_folder, "--sparsity", 0.3)[0] == 0
    config = AutoConfig.from_pretrained(out)
    assert config.model_type == "opt" and config.is_heterogeneous and config.head_dim == 4


@pytest.mark.slow
def test_interrupted_in_one_line_and_resumed(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    from optimum_ffp.search import evaluator

    command = ["-m", save_tiny_model(), tmp_path / "out", "--sparsity", 0.3, "--dataset", data_folder]
    # A policy that comes back on the same windows is not measured again: enough steps for two others.
    command += ["--search-steps", 40]
    measure, calls = evaluator.measure_size_gradients, []

    def press_ctrl_c(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluator, "measure_size_gradients", press_ctrl_c)
    code, _, errors = run(*command)
    assert code == 130 and "Traceback" not in errors
    assert errors.splitlines()[-1] == "interrupted; run the same command with --resume to continue"
    assert {path.name for path in tmp_path.iterdir()} >= {"out.work"} and not (tmp_path / "out").exists()

    code, _, errors = run(*command)
    assert code == 2 and "contains the state of an earlier run; resume it with --resume" in errors
    code, _, errors = run(*command, "--resume", "--seed", 1)
    assert code == 2 and "config.seed was 0 and is 1" in errors
    code, _, _ = run(*command, "--resume")
    assert code == 0 and (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out.work").exists()


@pytest.mark.slow
def test_overwrite_throws_away_what_was_interrupted(run, save_tiny_model, data_folder, tmp_path):
    Journal.open(tmp_path / "out.work", {}, resume=False).value("x", lambda: 1)
    command = ["-m", save_tiny_model(), f"{tmp_path / 'out'}/", "--dataset", data_folder, "--method", "uniform"]
    # A sweep has saved a first folder before it was killed.
    (tmp_path / "out").mkdir()
    code, _, errors = run(*command)
    assert code == 2 and "resume it with --resume" in errors
    code, _, errors = run(*command, "--overwrite", "--resume")
    assert code == 2 and "belongs to another run" in errors
    assert run(*command, "--overwrite")[0] == 0
    assert {path.name for path in tmp_path.iterdir()} == {"out", "data", "tiny-llama"}
    # There is nothing to resume now, and what is there was saved by another prune.
    code, _, errors = run(*command, "--resume")
    assert code == 2 and "out exists; name another folder" in errors
    code, _, errors = run(*command, "--resume", "--overwrite")
    assert code == 0 and f"there is nothing to resume, {tmp_path / 'out.work'} holds no state" in errors


@pytest.mark.slow
def test_a_resumed_sweep_replaces_its_own_checkpoints_alone(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    command = ["-m", save_tiny_model(), tmp_path / "out", "--dataset", data_folder, "--method", "uniform"]
    with monkeypatch.context() as patch:
        patch.setattr("optimum_ffp.commands.summary.prune_summary", Mock(side_effect=KeyboardInterrupt))
        assert run(*command, "--sparsity", 0.1, 0.2)[0] == 130
    own, other = (tmp_path / f"out-ffp-{percent}" for percent in (10, 30))
    shutil.copytree(own, other)
    code, _, errors = run(*command, "--sparsity", 0.1, 0.3, "--resume")
    assert code == 2 and f"{other} exists; name another folder" in errors
    before = own.stat().st_ino
    assert run(*command, "--sparsity", 0.1, 0.2, "--resume")[0] == 0
    assert own.stat().st_ino != before and not (tmp_path / "out-ffp-10.work").exists()


def refuse_before_loading(run, monkeypatch, *words):
    """The error of a prune that ends before it loads anything."""
    monkeypatch.setattr("optimum_ffp.pruner.load_dense", None)
    code, _, errors = run("--method", "uniform", *words)
    (line,) = [line for line in errors.splitlines() if line.startswith("error: ")]
    assert code == 2
    return line


@pytest.mark.slow
def test_what_is_not_ours_is_neither_replaced_nor_removed(run, save_tiny_model, data_folder, tmp_path, monkeypatch):
    model, out = save_tiny_model(), tmp_path / "out"
    words = ["-m", model, out, "--dataset", data_folder, "--overwrite"]
    (tmp_path / "out.work").mkdir()
    (tmp_path / "out.work" / "thesis.txt").write_text("mine")
    error = refuse_before_loading(run, monkeypatch, *words)
    assert "out.work is not a work folder of optimum-ffp: it contains thesis.txt" in error
    (tmp_path / "out.work").rename(out)
    assert (
        "out is not a checkpoint of optimum-ffp and is never replaced: it contains thesis.txt"
        in refuse_before_loading(run, monkeypatch, *words)
    )
    assert (out / "thesis.txt").read_text() == "mine"
    for place in (model, data_folder, tmp_path):
        error = refuse_before_loading(run, monkeypatch, "-m", model, place, "--dataset", data_folder, "--overwrite")
        assert f"{place} {'contains' if place == tmp_path else 'is an input of this command'}" in error
    (tmp_path / "out-ffp-pareto.png").write_text("mine")
    words = ["-m", model, out, "--dataset", data_folder, "--sparsity", 0.1]
    assert "out-ffp-pareto.png exists; name another" in refuse_before_loading(run, monkeypatch, *words, 0.2)
    error = refuse_before_loading(run, monkeypatch, *words, 0.1000000001)
    assert f"two values of --sparsity have the same folder, {out}-ffp-10; give each once" in error
    assert not list(tmp_path.glob(".*"))


def test_two_runs_into_one_output(run, hold, save_tiny_model, data_folder, tmp_path, monkeypatch):
    words = ["-m", save_tiny_model(), tmp_path / "out", "--dataset", data_folder, "--sparsity", 0.1, 0.2]
    for name in ("out-ffp-10.work", "out-ffp-20", "out-ffp-pareto.json"):
        kill = hold(tmp_path / name)
        assert f"{name} is in use by another run; wait" in refuse_before_loading(run, monkeypatch, *words)
        kill()


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["-m", "."], "here-ffp-20"),
        (["-m", "org/name"], "name-ffp-20"),
        (["-m", "link/"], "link-ffp-20"),
        (["-m", "m", "out/"], "out"),
        (["-m", "m", "out/", "--sparsity", "0.1", "0.25"], "out-ffp-10 out-ffp-25"),
        (["-m", "m", ".", "--sparsity", "0.1", "0.25"], "HERE-ffp-10 HERE-ffp-25"),
    ],
)
def test_names_of_outputs(tmp_path, monkeypatch, words, expected):
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(tmp_path)
    monkeypatch.chdir(here)
    parser = ArgumentParser()
    parse_args_ffp_prune(parser)
    args = parser.parse_args(words)
    assert output_folders(args, args.sparsity or [0.2]) == expected.replace("HERE", str(here)).split()
