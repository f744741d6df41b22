import json
import re
import subprocess
import sys

import pytest
import torch
from transformers import AutoConfig, LlamaConfig, LlamaForCausalLM

from optimum_ffp import FFPConfig, FFPError, FFPPruner
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.planning.machine import Machine
from optimum_ffp.planning.plan import make_plan
from tests.helpers import (
    CONFIGS,
    EVERY_MODEL,
    ON_CPU,
    SETTINGS,
    make_pruner,
    make_text,
    make_tiny_model,
    make_tokenizer,
)


GIB = 2**30
LLAMA_2_70B = {
    "model_type": "llama",
    "hidden_size": 8192,
    "intermediate_size": 28672,
    "num_hidden_layers": 80,
    "num_attention_heads": 64,
    "num_key_value_heads": 8,
    "vocab_size": 32000,
    "max_position_embeddings": 4096,
    "dtype": "bfloat16",
}


@pytest.fixture(autouse=True)
def speed(monkeypatch):
    """No product and no copy is timed, on devices that may not be there; cards are new ones."""
    monkeypatch.setattr("optimum_ffp.planning.plan.measure_speed", lambda device, dtype: 1e12)
    monkeypatch.setattr("optimum_ffp.planning.plan.measure_copy_speed", lambda device, pinned: 1e10)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)


def planned(name="llama", sparsities=None, machine=None, monkeypatch=None, **options):
    """The plan of a prune of a tiny model."""
    if machine is not None:
        monkeypatch.setattr("optimum_ffp.planning.plan.measure_machine", lambda *_: machine)
    model_type, sizes = CONFIGS[name]
    config = FFPConfig(**{"dataset": "wikitext2"} | SETTINGS | options)
    return make_plan(AutoConfig.for_model(model_type, **sizes), config, sparsities, ON_CPU)


def stages(plan):
    return {stage.name: stage.device | stage.host for stage in plan.memory}


@pytest.mark.parametrize("name", EVERY_MODEL)
def test_units_and_sizes_are_those_of_the_model(name, data_folder):
    plan, model = planned(name), make_tiny_model(name)
    pruner = FFPPruner(model, make_tokenizer(), FFPConfig(dataset=str(data_folder), **SETTINGS))
    ways = tuple(tuple(unit.unit for unit in units) for units in pruner.measured.ways)
    assert plan.ways == ways and plan.parameters == model.num_parameters()
    matrices = sum(4 * unit.output.module.in_features**2 for unit in pruner.measured.ways[0])
    parts = stages(plan)
    assert parts["statistics"]["weights"] == model.get_memory_footprint()
    assert parts["search"]["factors"] == matrices == plan.disk["statistics"]
    assert parts["statistics"]["Gram matrices"] == 4 * matrices / model.config.num_hidden_layers


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"preset": "paper"},
        {"method": "evolutionary"},
        {"method": "uniform", "mapping": "greedy", "criterion": "wanda", "calibration": "none", "reward": "pruned"},
        {"method": "random", "calibration": "ridge"},
    ],
    ids=["default", "paper", "evolutionary", "uniform", "random"],
)
def test_a_prune_keeps_to_its_plan(save_tiny_model, data_folder, tmp_path, options):
    pruner = make_pruner(save_tiny_model(), data_folder, tmp_path / "work", **options)
    plan = make_plan(pruner.model.config, pruner.config, options=ON_CPU)
    result = pruner.prune()
    search = result.search
    # Finalists and baselines that are one policy are evaluated once.
    twice = plan.candidate_evaluations - search.candidate_evaluations
    every = pruner.config.search_samples * pruner.config.seq_len
    assert 0 <= twice <= 3
    found = result.cost.tokens | {"search": result.cost.tokens["search"] + twice * every}
    planned_tokens = plan.tokens | {"evaluation": plan.evaluated * plan.tokens["evaluation"]}
    if options.get("preset") == "paper":
        assert found.pop("search") <= planned_tokens.pop("search")
    if pruner.config.calibration == "distillation":
        # Layers that gain nothing are trained once more.
        assert found["calibration"] >= planned_tokens["calibration"]
        found.pop("calibration"), planned_tokens.pop("calibration")
    assert found == {stage: tokens for stage, tokens in planned_tokens.items() if tokens}
    assert plan.evaluated == len(result.losses)
    assert set(result.cost.peak_bytes) == {stage.name for stage in plan.memory} - {"save"}
    assert ("fisher" in plan.tokens) == ("fisher" in result.cost.seconds)
    written = sum(file.stat().st_size for file in (tmp_path / "work").iterdir())
    assert sum(size for stage, size in plan.disk.items() if stage != "save") < written
    pruner.save_pretrained(tmp_path / "out")
    weights = (tmp_path / "out" / "model.safetensors").stat().st_size
    saved = sum(file.stat().st_size for file in (tmp_path / "out").rglob("*"))
    assert stages(plan)["save"]["pruned model"] == pytest.approx(weights, rel=0.15) and saved < plan.disk["save"]


@pytest.mark.slow
def test_a_sweep_keeps_to_its_plan(save_tiny_model, data_folder):
    pruner = make_pruner(save_tiny_model(), data_folder)
    plan = make_plan(pruner.model.config, pruner.config, [0.2, 0.3], ON_CPU)
    found = [result.search.candidate_evaluations for result in pruner.sweep([0.2, 0.3])]
    assert sum(found) <= plan.candidate_evaluations <= sum(found) + 4
    assert plan.evaluated == 3 and "pruned model before" in stages(plan)["evaluation"]


def test_feasible_sparsities_are_those_that_can_be_met():
    plan = planned(min_retention=0.3, max_retention=0.9, sparsity=0.3)
    low, high = plan.feasible
    assert 0.1 <= low < 0.3 < high <= 0.7
    for sparsity in (low + 1e-6, high - 1e-6):
        assert planned(min_retention=0.3, max_retention=0.9, sparsity=sparsity).feasible == (low, high)
    for sparsity in (low - 0.01, high + 1e-3):
        with pytest.raises(FFPError, match="can't be met"):
            planned(min_retention=0.3, max_retention=0.9, sparsity=sparsity)


def test_only_hidden_states_grow_with_the_number_of_windows():
    few, many = planned(), planned(num_samples=100, search_samples=10, eval_samples=50, search_steps=500)
    grown = [one.name for one, other in zip(few.memory, many.memory) if one != other]
    assert grown == ["fisher", "statistics", "importance", "factorisation", "calibration", "evaluation"]
    for one, other in zip(few.memory, many.memory):
        assert one.device == other.device and {**one.host, "hidden states": 0} == {**other.host, "hidden states": 0}
    # But for calibration, no more of them than a limit.
    endless = planned(search_samples=10**6, eval_samples=None, method="random")
    for name in ("search", "evaluation"):
        assert stages(endless)[name]["hidden states"] <= 2**30
    # A model that writes its own text writes no more than a batch of passages at once.
    few, some, many = (planned(dataset="self", num_samples=count) for count in (1, 2000, 4000))
    caches = [stages(plan)["data"]["KV cache"] for plan in (few, some, many)]
    assert caches[0] < caches[1] == caches[2]


def test_an_update_reads_no_more_windows_than_there_are():
    counts = [planned(update_samples=samples).tokens["search"] for samples in (1, 2, 100)]
    assert counts[0] < counts[1] == counts[2]


def test_a_plan_says_where_there_are_more_channels_than_tokens():
    assert "3 of 6 units have more channels (up to 48) than there are calibration tokens (40)" in (
        planned(num_samples=1, seq_len=40).describe()
    )
    assert "more channels" not in planned(num_samples=2).describe()


def test_a_plan_is_text(data_folder):
    plan = planned(sparsity=0.25)
    text = plan.describe()
    for words in (
        "family                  llama\n",
        "3 x attention of 4 KV groups or 2 query heads per KV head, 3 x ffn of 48 channels",
        "25.00%",
        "at retentions of 0.2 to 1",
        "candidate evaluations   7\n",
        "at most ",
        "it fits",
    ):
        assert words in text
    assert "all of the test text, 2 times" in planned(dataset="me/text", eval_samples=None).describe()
    # A quarter as many tokens as bytes, in whole windows.
    (data_folder / "test.txt").write_text("w5 " * 4000)
    own = planned(dataset=str(data_folder), eval_samples=None)
    assert own.tokens["evaluation"] == 125 * SETTINGS["seq_len"] and "3,000, 2 times" in own.describe()
    # Of a long one no more is read, and compressed files don't show their length.
    with open(data_folder / "test.txt", "w") as file:
        file.truncate(2**28)
    assert planned(dataset=str(data_folder), eval_samples=None).tokens["evaluation"] == pytest.approx(2**24, rel=1e-5)
    (data_folder / "test.txt").rename(data_folder / "test.txt.gz")
    assert planned(dataset=str(data_folder), eval_samples=None).tokens["evaluation"] is None
    assert 200_000 < planned(eval_samples=None).tokens["evaluation"] < 400_000
    # A file and C4 have no test split of their own.
    for dataset in (str(data_folder / "train.txt"), "c4"):
        assert planned(dataset=dataset, eval_samples=None).tokens["evaluation"] == 100 * SETTINGS["seq_len"]
    assert planned(dataset="c4,me/text", eval_samples=None).tokens["evaluation"] is None
    assert "written by the model" in planned(dataset="wikitext2,self").describe() and "written" not in text


def test_a_mix_is_counted_by_its_texts():
    plan = planned(dataset="a:0.5,b:0.25,self:0.25", num_samples=8, search_samples=4, eval_samples=3)
    length = plan.tokens["statistics"] // 8
    assert plan.tokens["data"] == 3 * length and plan.tokens["evaluation"] == 2 * 3 * length
    reported = planned(dataset="a", eval_dataset="a,self", eval_samples=3).tokens
    assert reported["data"] == 3 * length and reported["evaluation"] == 6 * length


def test_what_does_not_fit_is_said_plainly(monkeypatch):
    plan = planned(machine=Machine(torch.device("cpu"), 100 * 2**20), monkeypatch=monkeypatch)
    (line,) = plan.warnings
    assert "memory may not suffice" in line and "0.10 GiB are free" in line and "\n" not in line
    assert plan.describe().endswith(line) and "it fits" not in plan.describe()


def test_matrices_that_leave_the_accelerator_no_room_live_in_host_memory(monkeypatch):
    shape = LlamaConfig(**{name: value for name, value in LLAMA_2_70B.items() if name != "model_type"})
    machine = Machine(torch.device("cuda"), 2000 * GIB, 1000 * GIB)
    monkeypatch.setattr("optimum_ffp.planning.plan.measure_machine", lambda *_: machine)
    beside = make_plan(shape)
    machine = Machine(torch.device("cuda"), 2000 * GIB, 200 * GIB)
    apart = make_plan(shape, options=LoadOptions(offload="none"))
    factors = beside.disk["statistics"]
    # Of 8192 and 28672 columns, in pinned memory, where each takes the next power of two.
    pinned = 80 * (4 * 8192**2 + 2**32)
    for plan, device, host in ((beside, factors, 0), (apart, 0, pinned)):
        search = next(stage for stage in plan.memory if stage.name == "search")
        assert (search.device.get("factors", 0), search.host.get("factors", 0)) == (device, host)
        assert "   memory   device     disk" in plan.describe()
    assert beside.peak_bytes > apart.peak_bytes + factors / 2
    assert beside.warnings == apart.warnings == []


def test_llama_2_7b_fits_a_card_of_24_gibibytes(monkeypatch):
    shape = LlamaConfig(hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, dtype="float16")
    machine = Machine(torch.device("cuda"), 64 * GIB, 24 * GIB)
    monkeypatch.setattr("optimum_ffp.planning.plan.measure_machine", lambda *_: machine)
    plan = make_plan(shape)
    assert plan.warnings == []
    # 6,738,415,616 parameters of two bytes, and a float32 matrix of 4096 and one of 11008 columns in every layer.
    weights, matrices = 2 * 6_738_415_616, 4 * 32 * (4096**2 + 11008**2)
    by_name = {stage.name: stage for stage in plan.memory}
    assert all(weights < plan.device_bytes(stage) < 20 * GIB for stage in plan.memory)
    # Matrices wait in host memory, and all weights of distilled layers, of which 20 % sparsity leaves this much.
    pruned = 2 * 32 * (4 * 4096**2 + 3 * 4096 * 11008) * 0.8
    for name, kept in (("search", 0), ("calibration", pruned)):
        assert matrices + kept < plan.host_bytes(by_name[name]) < 1.3 * (matrices + kept)
    machine = Machine(torch.device("cuda"), 64 * GIB, 16 * GIB)
    (warning,) = make_plan(shape, options=LoadOptions(offload="none")).warnings
    assert "of memory on cuda" in warning and "16.00 GiB are free" in warning


def test_weights_are_offloaded_where_they_do_not_fit(monkeypatch):
    shape = LlamaConfig(hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, dtype="float16")
    for card, host, place in ((24, 64, "none"), (12, 64, "host"), (12, 16, "disk")):
        machine = Machine(torch.device("cuda"), host * GIB, card * GIB)
        monkeypatch.setattr("optimum_ffp.planning.plan.measure_machine", lambda *_, found=machine: found)
        plan = make_plan(shape)
        assert (plan.offload, plan.warnings) == (place, [])
        assert place == "none" or f"--offload {place}" in plan.describe()
        # Without a work folder there is nowhere for what doesn't fit into memory.
        assert make_plan(shape, journal=False).offload == place.replace("disk", "host")


def test_a_model_that_writes_on_a_card_is_not_offloaded(monkeypatch):
    shape = LlamaConfig(hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, dtype="float16")
    machine = Machine(torch.device("cuda"), 64 * GIB, 12 * GIB)
    monkeypatch.setattr("optimum_ffp.planning.plan.measure_machine", lambda *_: machine)
    plan = make_plan(shape, FFPConfig(dataset="self"))
    assert plan.offload == "none" and "of memory on cuda" in plan.warnings[0]
    with pytest.raises(FFPError, match="that the model writes itself needs all weights on the device; choose offload"):
        make_plan(shape, FFPConfig(dataset="self"), options=LoadOptions(offload="host"))


def test_an_offload_that_a_prune_refuses_has_no_plan():
    shape = LlamaConfig(hidden_size=64, intermediate_size=176, num_hidden_layers=2, dtype="float32")
    with pytest.raises(FFPError, match="offload 'host' is for accelerators"):
        make_plan(shape, options=LoadOptions("cpu", offload="host"))
    with pytest.raises(FFPError, match="offload 'disk' reads the weights as they are in the files, in float32"):
        make_plan(shape, options=LoadOptions("cpu", "bfloat16", offload="disk"))


def test_processes_that_wait_for_one_another_are_planned(monkeypatch):
    """Operations are those of the work, seconds those of who does it."""
    shape = LlamaConfig(hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, dtype="bfloat16")
    monkeypatch.setattr("optimum_ffp.planning.plan.compute_dtype", lambda *_: torch.bfloat16)
    config, on_cpu = FFPConfig(dataset="self", eval_samples=8), LoadOptions("cpu", offload="none")
    one, four = (make_plan(shape, config, options=on_cpu, processes=count) for count in (1, 4))
    times = [line for plan in (one, four) for line in plan.describe().splitlines() if line.startswith("time")]
    assert len({re.search(r"[\d,.]+ TFLOP at", line).group() for line in times}) == 1 and len(set(times)) == 2
    # One of them writes the text.
    written = [stages(plan)["data"]["KV cache"] * plan.processes for plan in (one, four)]
    assert written[0] == written[1] > 2**33
    assert one.advice == [] and "1 of the 4 processes" in four.advice[0] and four.advice[0] in four.describe()
    batch = config.replace(distillation_batch=4)
    assert make_plan(shape, batch, options=on_cpu, processes=4).advice == []


def test_cards_that_exchange_tensors_have_buffers_for_it(monkeypatch):
    shape = LlamaConfig(hidden_size=4096, intermediate_size=11008, max_position_embeddings=4096, dtype="bfloat16")
    machine = Machine(torch.device("cuda"), 512 * GIB, 80 * GIB)
    monkeypatch.setattr("optimum_ffp.planning.plan.measure_machine", lambda *_: machine)
    one, four = (make_plan(shape, processes=count) for count in (1, 4))
    assert {stage.device["NCCL"] for stage in one.memory} == {0}
    assert {stage.device["NCCL"] for stage in four.memory} == {GIB} and four.advice == []


def test_windows_longer_than_the_model_knows():
    with pytest.raises(FFPError, match="seq_len 65 is more than the 64 positions"):
        planned(seq_len=65)


def test_windows_are_as_long_as_the_model_knows():
    assert planned(seq_len=None).tokens == planned(seq_len=64).tokens


def test_text_to_report_on_that_the_model_writes_is_counted():
    plan = planned(seq_len=24, eval_dataset="self", eval_samples=3)
    assert plan.tokens["data"] == plan.tokens["evaluation"] == 3 * 24


def test_too_few_tokens_to_calibrate_on_are_refused_before_they_are_read():
    with pytest.raises(FFPError, match="2 calibration tokens are too few for units of 48 channels"):
        planned(num_samples=1, seq_len=2)


@pytest.mark.slow
def test_llama_2_70b_in_ten_seconds_and_two_gibibytes(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(LLAMA_2_70B))
    program = (
        "import re, sys, time; from pathlib import Path; from optimum.commands.optimum_cli import main\n"
        "sys.argv = ['optimum-cli', 'ffp', 'prune', '-m', sys.argv[1], '--plan', '--device', 'cpu']\n"
        # There is neither the disk nor the text for it here.
        "try: main()\nexcept SystemExit as end: assert end.code == 2\n"
        # Not ru_maxrss, which a process takes over from the one that started it.
        "status = Path('/proc/self/status').read_text()\n"
        "print(time.process_time(), re.search(r'VmHWM:\\s+(\\d+) kB', status)[1])"
    )
    done = subprocess.run([sys.executable, "-c", program, tmp_path], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "68,976,648,192 parameters, bfloat16" in done.stdout and "memory may not suffice" in done.stdout
    # Of the processor: what else runs on the machine doesn't count.
    seconds, kibibytes = done.stdout.split()[-2:]
    assert float(seconds) < 10 and int(kibibytes) < 2 * 2**20


MEASURE = """
import json, sys
from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.planning.plan import make_plan
from tests.helpers import ON_CPU
model, data = sys.argv[1:]
sizes = {"num_samples": 2, "fisher_samples": 2, "search_samples": 2, "eval_samples": 2, "seq_len": 1024}
quick = {"search_steps": 5, "criterion": "wanda", "distillation_passes": 1}
pruner = FFPPruner.from_pretrained(model, FFPConfig(dataset=data, **sizes, **quick), device="cpu")
plan = make_plan(pruner.model.config, pruner.config, options=ON_CPU)
print(json.dumps([pruner.prune().cost.peak_bytes, {stage.name: plan.host_bytes(stage) for stage in plan.memory}]))
"""


@pytest.mark.slow
def test_estimates_are_what_is_measured(tmp_path):
    """On a model whose weights, matrices and logits are large beside what Python and torch take."""
    sizes = {"hidden_size": 512, "intermediate_size": 3072, "num_hidden_layers": 3, "num_attention_heads": 8}
    config = LlamaConfig(**sizes, num_key_value_heads=4, vocab_size=8192, max_position_embeddings=1024)
    LlamaForCausalLM(config).save_pretrained(tmp_path / "model")
    make_tokenizer().save_pretrained(tmp_path / "model")
    (tmp_path / "text.txt").write_text(make_text(10_000))
    # A process of its own: what other tests leave behind must not count.
    command = [sys.executable, "-c", MEASURE, tmp_path / "model", tmp_path / "text.txt"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    measured, estimated = json.loads(done.stdout.splitlines()[-1])
    # What Python and torch take is there from the first stage on, and differs by machine.
    grown, expected = ({name: size - sizes["data"] for name, size in sizes.items()} for sizes in (measured, estimated))
    for name in grown.keys() - {"data"}:
        assert 0.6 < expected[name] / grown[name] < 1.6, (name, measured, estimated)
