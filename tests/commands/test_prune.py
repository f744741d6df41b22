"""`optimum-cli ffp prune`, as a user types it."""

import json
import re
import shlex
import signal
from argparse import ArgumentParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM

from optimum_ffp import FFPConfig, FFPModelForCausalLM
from optimum_ffp.commands.prune import FFPPruneCommand, output_folders, read_configs
from optimum_ffp.export import export_gguf
from optimum_ffp.modeling.families import decoder_layers
from tests.helpers import SAMPLE, make_byte_level_tokenizer, make_text, make_tiny_model, read_files


FAST = ["--device", "cpu", "--seq-len", 24, "--num-samples", 8, "--search-samples", 2, "--eval-samples", 3]
FAST += ["--search-steps", 10]
SUMMARY = ["size", "weights", "perplexity", "bits per byte", "calibration", "sample", "saved in", "next step"]
UNIFORM = ("--method", "uniform", "--calibration", "ridge")


@pytest.fixture
def run(run_ffp, data_folder):
    return lambda *words: run_ffp("prune", "--dataset", data_folder, *FAST, *words)


def test_prune_writes_checkpoint_and_prints_summary(run, run_ffp, save_tiny_model, tmp_path, windows):
    out, base = tmp_path / "out", save_tiny_model()
    code, output, errors = run("-m", base, out, "--sparsity", 0.24, "--seed", 5, "--log-level", "debug")
    assert code == 0, errors
    assert re.findall(r"^[a-z ]+?(?=  )", output, re.MULTILINE) == SUMMARY
    # The model is local.
    assert "--base-model" in errors
    for text in ("seconds/search", "peak_bytes/calibration", "perplexity_ratio/./"):
        assert text in errors
    # The command of the last line runs as it is, on the 1500 words of the text, in windows of 24.
    command = shlex.split(output.splitlines()[-1])[2:]
    assert 1460 < int(command[command.index("--max-tokens") + 1]) <= 1500
    assert command[:2] == ["optimum-cli", "ffp"] and run_ffp(*command[2:], "--plan", "--device", "cpu")[0] == 0
    model = AutoModelForCausalLM.from_pretrained(out, trust_remote_code=True)
    assert torch.isfinite(model(windows).logits).all()
    config = FFPConfig.from_file(out / "ffp_config.json")
    assert (config.sparsity, config.seed, config.agent, config.search_steps) == (0.24, 5, "gradient", 10)


@pytest.mark.slow
def test_homogeneous_method_writes_checkpoint_of_dense_class(run, save_tiny_model, tmp_path, windows):
    base, out = save_tiny_model("gemma3"), tmp_path / "out"
    code, _, errors = run("-m", base, out, "--method", "homogeneous")
    assert code == 0, errors
    assert not list(out.glob("*.py"))
    model, dense = (AutoModelForCausalLM.from_pretrained(folder) for folder in (out, base))
    assert type(model) is type(dense) and model.num_parameters() < dense.num_parameters()
    loaded = FFPModelForCausalLM.from_pretrained(out)
    assert type(loaded) is type(dense) and torch.equal(loaded(windows).logits, model(windows).logits)
    code, _, errors = run("-m", out, tmp_path / "twice")
    assert code == 2 and "--base-model" in errors


@pytest.mark.slow
def test_sparsity_sweep_writes_checkpoints_and_pareto_plot(run, save_tiny_model, tmp_path):
    model, out = save_tiny_model(), tmp_path / "out"
    code, output, errors = run("-m", model, out, "--sparsity", 0.2, 0.3, "--json", tmp_path / "out.json")
    assert code == 0, errors
    records = json.loads((tmp_path / "out.json").read_text())
    assert [record["role"] for record in records] == ["pruned", "pruned", "dense"]
    assert all(record["model"] in output and f"{record['parameters']:,}" in output for record in records)
    assert f"Pareto front: {out}-ffp-pareto.png" in output
    assert (tmp_path / "out-ffp-pareto.png").read_bytes().startswith(b"\x89PNG")
    for percent, method in ((20, "ffp"), (30, "no-search")):
        folder = tmp_path / f"out-ffp-{percent}"
        record = json.loads((folder / "ffp_config.json").read_text())
        assert record["policy"]["sparsity"] == pytest.approx(percent / 100, abs=0.01)
        assert record["search"]["method"] == record["method"] == method
        assert ("--method ffp" in (folder / "README.md").read_text()) == (method == "no-search")
    assert run("-m", model, tmp_path / "third", "--warm-start", tmp_path / "out-ffp-20")[0] == 0


@pytest.mark.slow
def test_params_sweep_with_kv_cache_limit(run, save_tiny_model, tmp_path):
    model, out, options = save_tiny_model(), tmp_path / "out", ("--method", "no-search", "--calibration", "ridge")
    code, output, errors = run("-m", model, out, "--params", "22k", "27k", "--kv-cache", 0.75, *options)
    assert code == 0, errors
    for name, limit in (("22k", 22_000), ("27k", 27_000)):
        folder = tmp_path / f"out-ffp-{name}-kv-75"
        assert str(folder) in output
        pruned = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
        assert limit - 200 < pruned.num_parameters() <= limit
        record = json.loads((folder / "ffp_config.json").read_text())
        assert (record["sparsity"], record["params"], record["kv_cache"]) == (None, limit, 0.75)
        limits = {row["option"]: row for row in record["search"]["budget"]}
        assert limits["params"]["reached"] == pruned.num_parameters() and limits["kv_cache"]["reached"] <= 0.75
        assert f"({name} asked for, dense 31.456k); kv_cache" in (folder / "README.md").read_text()
    again = tmp_path / "again"
    assert run("-m", model, again, "--config", folder / "ffp_config.json")[0] == 0
    assert json.loads((again / "ffp_config.json").read_text())["policy"] == record["policy"]
    # Another budget replaces both limits.
    code, output, _ = run("-m", model, "--config", folder / "ffp_config.json", "--memory", "500KiB", "--plan")
    assert code == 0 and "memory 500KiB (dense model" in output and "params" not in output.splitlines()[0]
    code, _, errors = run("-m", model, "--params", "22k", "27k", "--sparsity", 0.1, 0.2)
    assert code == 2 and "only one budget option can have several values" in errors


@pytest.mark.slow
def test_speedup_sweep_measures_times_once(run, save_tiny_model, tmp_path, monkeypatch, caplog):
    timed = []

    def seconds(model, *_):
        timed.append(model)
        return 1e-6 * sum(weight.numel() for layer in decoder_layers(model) for weight in layer.parameters()), 0.01

    monkeypatch.setattr("optimum_ffp.evaluation.latency.time_generation", seconds)
    out, costs = tmp_path / "out", tmp_path / "new" / "costs.json"
    base = ("-m", save_tiny_model(), "--method", "no-search", "--calibration", "ridge")
    asked = (*base, "--speedup", 1.1, 1.2, "--costs", costs)
    code, output, errors = run(*asked, out, "--workload", "8+4x2", "--plan")
    assert code == 0 and "times of 8+4x2 are measured first" in output and not costs.exists() and not timed, errors
    code, output, errors = run(*asked, out, "--workload", "8+4x2")
    assert code == 0, errors
    table, records = json.loads(costs.read_text()), {}
    for speedup in (1.1, 1.2):
        assert f"out-ffp-{speedup}x" in output
        record = records[speedup] = json.loads((tmp_path / f"out-ffp-{speedup}x" / "ffp_config.json").read_text())
        assert record["costs"] == table and table["workload"] == "8+4x2"
        predicted, measured = (record["search"]["budget"][0][name] for name in ("reached", "measured"))
        assert speedup <= predicted < speedup + 0.02 and predicted == pytest.approx(measured, rel=1e-3)
    # The file and the record have what was measured, so that the policy is the same.
    monkeypatch.setattr("optimum_ffp.analysis.measurements.measure_costs", None)
    config = tmp_path / "out-ffp-1.2x" / "ffp_config.json"
    for folder, words in (("again", asked), ("repeated", (*base[:2], "--config", config))):
        code, output, errors = run(*words, tmp_path / folder)
        assert code == 0, errors
    assert re.search(r"speedup 1.20\d+ \(1.2 asked for, dense 1, measured 1.2\d*\)", output)
    for folder in ("again-ffp-1.2x", "repeated"):
        assert json.loads((tmp_path / folder / "ffp_config.json").read_text())["policy"] == records[1.2]["policy"]
    # Most of the time is outside of the blocks.
    costs.write_text(json.dumps(table | {"dense": 10 * table["dense"]}))
    code, output, errors = run(*base, tmp_path / "share", "--sparsity", 0.2, "--costs", costs)
    assert code == 0 and "of the parameters are removed, but only" in caplog.text, errors


@pytest.mark.slow
def test_default_output_folder_and_self_generated_dataset(run, save_tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run("-m", save_tiny_model(), "--sparsity", 0.25, "--dataset", "self", *UNIFORM)[0] == 0
    assert (tmp_path / "tiny-llama-ffp-25" / "model.safetensors").is_file()


def test_policy_file_and_record_reproduce_weights_without_search(run, save_tiny_model, tmp_path, monkeypatch, caplog):
    model, first = save_tiny_model(), tmp_path / "first"
    options = ("--calibration", "ridge", "--seed", 1)
    assert run("-m", model, first, "--sparsity", 0.3, "--method", "random", *options)[0] == 0
    record = json.loads((first / "ffp_config.json").read_text())
    sizes = tmp_path / "sizes-0.3.json"
    sizes.write_text(json.dumps(record["policy"]["units"]))
    monkeypatch.chdir(tmp_path)
    code, output, errors = run("-m", model, "--policy", sizes, *options)
    assert code == 0, errors
    assert "the policy is that of sizes-0.3.json" in output and "--search-steps is ignored" in caplog.text
    out = tmp_path / "tiny-llama-sizes-0.3"
    again = json.loads((out / "ffp_config.json").read_text())
    assert again["policy"] == record["policy"] and again["search"]["candidate_evaluations"] == 0
    assert (out / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()
    assert "the policy is that of sizes-0.3.json" in (out / "README.md").read_text()
    assert str(tmp_path) not in json.dumps(again)
    # The record repeats it, without the file.
    sizes.unlink()
    assert run("-m", model, tmp_path / "third", "--config", out / "ffp_config.json")[0] == 0
    assert (tmp_path / "third" / "model.safetensors").read_bytes() == (first / "model.safetensors").read_bytes()


def test_policy_with_budget_or_method_is_rejected(run, save_tiny_model, tmp_path):
    for more in (("--sparsity", 0.2), ("--method", "uniform")):
        code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", "--policy", tmp_path / "pruned", *more)
        assert code == 2 and "--policy determines the sizes" in errors
    code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", "--policy", tmp_path / "pruned", "--plan")
    assert code == 2 and "error: there is no policy" in errors
    code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", "--method", "given")
    assert code == 2 and "--policy" in errors


def test_options_without_effect_are_warnings(run, save_tiny_model, tmp_path, caplog):
    file = tmp_path / "options.json"
    file.write_text(json.dumps({"sparsity": 0.3, "clip_range": 0.5, "slope_samples": 3}))
    words = ("-m", save_tiny_model(), "--plan", "--config", file)
    code, output, errors = run(*words, "--context", "8k", "--hub-model-id", "it")
    assert code == 0 and "tokens" in output, errors
    # What a file holds need not be read, or known.
    assert "--context is ignored unless --memory or --kv-cache is set" in caplog.text and "clip" not in caplog.text
    assert "--hub-model-id is ignored" in caplog.text
    assert "no option slope_samples" in caplog.text
    caplog.clear()
    assert run(*words, "--context", "8k", "--kv-cache", 0.75)[0] == 0
    assert "--context" not in caplog.text


@pytest.mark.slow
def test_quantized_gguf_file_is_dequantized(run, tmp_path):
    """What the `gguf` package reads from a file of 8 bits; the real SmolLM2 is in tests/test_smollm2.py."""
    gguf = pytest.importorskip("gguf")
    file, out, text = tmp_path / "model.gguf", tmp_path / "out", tmp_path / "text.txt"
    model = make_tiny_model(vocab_size=320, hidden_size=64, intermediate_size=96)
    export_gguf(model, make_byte_level_tokenizer(), file, "q8_0")
    text.write_text(SAMPLE * 20)
    assert run("-m", file, out, "--dataset", text, "--sparsity", 0.3, *UNIFORM)[0] == 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}
    written, pruned = tensors["blk.1.ffn_up.weight"], load_file(out / "model.safetensors")
    restored = torch.from_numpy(gguf.quants.dequantize(written.data, written.tensor_type))
    kept = pruned["model.layers.1.mlp.up_proj.weight"]
    # No calibration changes these: every channel that is kept is one of the file, as the file has rounded it.
    assert len(kept) < 96 and torch.equal(kept, restored[torch.cdist(kept, restored).argmin(1)])
    assert not torch.equal(restored, model.model.layers[1].mlp.up_proj.weight)


def quantize_as_released(folder: Path, method: str) -> dict[str, torch.Tensor]:
    """Turns a checkpoint into one in FP8, with scales of blocks (DeepSeek, Qwen) or of rows (llm-compressor).

    Returns:
        The projections as they are dequantized.
    """
    content, restored = load_file(folder / "model.safetensors"), {}
    for name in [name for name in content if name.endswith("_proj.weight")]:
        weight = content[name]
        rows, columns = (16, 16) if method == "fp8" else (1, weight.shape[1])
        blocks = weight.unfold(0, rows, rows).unfold(1, columns, columns)
        scale = blocks.abs().amax((2, 3)) / 448
        scales = scale.repeat_interleave(rows, 0).repeat_interleave(columns, 1)
        content[name] = (weight / scales).to(torch.float8_e4m3fn)
        content[f"{name}_scale_inv" if method == "fp8" else f"{name}_scale"] = scale
        restored[name] = content[name].float() * scales
    save_file(content, folder / "model.safetensors", {"format": "pt"})
    config = json.loads((folder / "config.json").read_text())
    activations = {"num_bits": 8, "type": "float", "strategy": "token", "dynamic": True, "symmetric": True}
    weights = activations | {"strategy": "channel", "dynamic": False}
    group = {"targets": ["Linear"], "weights": weights, "input_activations": activations}
    config["quantization_config"] = {
        "fp8": {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [16, 16]},
        "compressed-tensors": {
            "quant_method": "compressed-tensors",
            "format": "float-quantized",
            "quantization_status": "compressed",
            "ignore": ["lm_head"],
            "config_groups": {"group_0": group},
        },
    }[method]
    (folder / "config.json").write_text(json.dumps(config))
    return restored


@pytest.mark.slow
@pytest.mark.parametrize("method", ["fp8", "compressed-tensors"])
def test_fp8_checkpoints_are_dequantized(run, save_tiny_model, tmp_path, method):
    if method == "compressed-tensors":
        pytest.importorskip("compressed_tensors")
        pytest.importorskip("transformers", minversion="5.23")
    folder, out = save_tiny_model(), tmp_path / "out"
    restored = quantize_as_released(folder, method)["model.layers.1.mlp.up_proj.weight"]
    code, _, errors = run("-m", folder, out, "--sparsity", 0.3, *UNIFORM)
    assert code == 0 and "dequantized" in errors, errors
    assert not hasattr(AutoConfig.from_pretrained(out), "quantization_config")
    kept = load_file(out / "model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    # No calibration changes these.
    assert len(kept) < len(restored) and torch.equal(kept, restored[torch.cdist(kept, restored).argmin(1)])
    code, _, errors = run("-m", folder, tmp_path / "again", "--sparsity", 0.3, *UNIFORM, "--offload", "disk")
    assert code == 0, errors
    again = load_file(tmp_path / "again/model.safetensors")["model.layers.1.mlp.up_proj.weight"]
    assert torch.equal(again, kept)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_prune_prints_one_line_and_resumes(run, save_tiny_model, tmp_path, monkeypatch, number, expected):
    from optimum_ffp.search import evaluator

    command = ["-m", save_tiny_model(), tmp_path / "out", "--method", "ffp", "--search-steps", 40]
    # Shells ignore Ctrl-C in background jobs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    measure, calls, handler = evaluator.measure_size_gradients, [], signal.getsignal(number)

    def interrupt(*arguments, **options):
        calls.append(arguments)
        if len(calls) == 2:
            signal.raise_signal(number)
        return measure(*arguments, **options)

    monkeypatch.setattr(evaluator, "measure_size_gradients", interrupt)
    code, _, errors = run(*command)
    assert code == expected and "Traceback" not in errors and "--resume" in errors.splitlines()[-1]
    assert signal.getsignal(number) == handler
    assert (tmp_path / "out.work").is_dir() and not (tmp_path / "out").exists()
    for words in ([], ["--resume", "--seed", 1]):
        code, _, errors = run(*command, *words)
        assert code == 2 and ("seed" if words else "--resume") in errors
    assert run(*command, "--resume")[0] == 0
    assert (tmp_path / "out" / "model.safetensors").is_file() and not (tmp_path / "out.work").exists()


@pytest.mark.slow
def test_resume_of_finished_prune_does_nothing(run, save_tiny_model, data_folder, tmp_path):
    command = ["-m", save_tiny_model(), tmp_path / "out", *UNIFORM, "--sparsity", 0.1, 0.2]
    code, summary, _ = run(*command, "--json", tmp_path / "out.json")
    assert code == 0
    files = read_files(tmp_path)
    (tmp_path / "out.json").unlink()
    code, output, _ = run(*command, "--resume", "--batch-size", 2, "--json", tmp_path / "out.json")
    assert code == 0 and "out-ffp-20" in output.splitlines()[0]
    assert output.splitlines()[1:] == summary.splitlines() and read_files(tmp_path) == files
    # A plan uploads nothing.
    assert run(*command, "--resume", "--plan", "--push-to-hub")[0] == 0
    assert run(*command, "--resume", "--seed", 1)[0] == run(*command)[0] == 2
    assert read_files(tmp_path) == files
    (data_folder / "test.txt").write_text(make_text(200, 9))
    assert run(*command, "--resume")[0] == 2


def test_concurrent_prune_into_same_output_is_rejected(run, lock_folder, save_tiny_model, tmp_path):
    lock_folder(tmp_path / "out-ffp-10.work")
    code, _, errors = run("-m", save_tiny_model(), tmp_path / "out", "--sparsity", 0.1, 0.2, *UNIFORM)
    assert code == 2 and "in use" in errors


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
def test_output_folder_names(tmp_path, monkeypatch, words, expected):
    here = tmp_path / "here"
    here.mkdir()
    (here / "link").symlink_to(tmp_path)
    monkeypatch.chdir(here)
    parser = ArgumentParser()
    FFPPruneCommand.parse_args(parser)
    args = parser.parse_args(words)
    names = [config.budget_name for config in read_configs(args)[1]]
    assert output_folders(args, names) == expected.replace("HERE", str(here)).split()
