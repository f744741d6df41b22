"""Turns a dense llama into a mixture of experts, to measure the pruning of experts on a model that fits a laptop.

    python benchmarks/make_moe.py MODEL DATASET OUT [options]

OUT is a plain `mixtral` checkpoint. The channels of every FFN are divided into experts of equal size by balanced
k-means of how their shares in a token's output vary over tokens (MoEfication, Zhang et al., 2022, clusters weights).
The router starts as a linear regression of the norms of the experts' outputs. Then every layer is trained to reproduce
the output of the dense layer, and the whole model to reproduce the dense model's predictions, by the trainers of a
prune. `--layers` keeps the first layers alone, for a trial.

Mixtral's gates of the chosen experts add up to 1. The dense FFN is the sum of all experts, so down projections are
multiplied by the number of chosen experts, and logits start close to each other: with all experts chosen, the mixture
is then nearly the dense model.

The record has perplexities on windows of the validation split that no stage reads, the number of tokens read, in
forward passes of which a backward pass counts as two, and the share of tokens that is routed to each expert, by layer.
"""

import argparse
import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.functional import normalize
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.compression.training.layer import LayerwiseTraining
from optimum_ffp.compression.training.whole_model import train_model
from optimum_ffp.data import DataSplits
from optimum_ffp.engine import LayerwiseModel
from optimum_ffp.evaluation import to_perplexity, window_losses
from optimum_ffp.hub.naming import without_folders
from optimum_ffp.modeling.families import find_family
from optimum_ffp.plan import Plan
from optimum_ffp.utils.json import write_json


# Tokens of which channels are clustered, tokens of the regression, and the number of iterations of k-means.
CLUSTERED_TOKENS, ROUTED_TOKENS, ITERATIONS = 2048, 8192, 10
# Standard deviation of the first logits.
LOGIT_SIZE = 0.1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("out", type=Path)
    parser.add_argument("--experts", type=int, default=8)
    parser.add_argument("--top-k", type=int, default=4)
    parser.add_argument("--num-samples", type=int, default=64)
    parser.add_argument("--seq-len", type=int, default=2048)
    parser.add_argument("--layer-passes", type=int, default=1)
    parser.add_argument("--model-passes", type=int, default=1)
    parser.add_argument("--layers", type=int)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path("moe.json"))
    args = parser.parse_args()

    config = FFPConfig(
        dataset=args.dataset,
        num_samples=args.num_samples,
        seq_len=args.seq_len,
        search_samples=8,
        eval_samples=1,
        distillation_passes=args.layer_passes,
        model_passes=args.model_passes or 1,
        calibration="model",
        seed=args.seed,
    )
    pruner = FFPPruner.from_pretrained(args.model, config, device="cpu")
    teacher, data = pruner.model, pruner.measured.data
    if args.layers:
        teacher.config.num_hidden_layers = args.layers
        teacher.model.layers = teacher.model.layers[: args.layers]
    layerwise = LayerwiseModel(teacher, find_family(teacher.config))
    student = empty_mixture(teacher, args.experts, args.top_k)
    measure = partial(perplexity, windows=data.search.tokens)
    options = pruner.measured.plan.options["calibration"]
    sizes = {"experts": args.experts, "top_k": args.top_k, "layers": args.layers}
    record: dict[str, Any] = {"options": without_folders(pruner.measured.plan.to_dict()) | sizes}
    trained = train_layers(layerwise, student, data, pruner.measured.plan)
    record |= {"dense": measure(teacher), "start": measure(student)}
    student.model.layers = trained
    record["layers"], tokens = measure(student), layerwise.counter.tokens
    if args.model_passes:
        trained = train_model(
            student,
            teacher,
            data,
            pruner.measured.plan,
            options.training(args.seed),
            passes=options.model_passes,
            parts=options.parts(pruner.measured.plan.seq_len),
            learning_rate=options.learning_rate,
        )
        student, tokens = trained.model, tokens + trained.tokens
        record["model"] = measure(student)
    record |= {"tokens": round(tokens), "shares": shares(student, data.search.tokens)}
    student.save_pretrained(args.out)
    pruner.tokenizer.save_pretrained(args.out)
    write_json(args.output, record)
    figures = [f"{name} {record[name]:.2f}" for name in ("dense", "start", "layers", "model") if name in record]
    flat = [share for layer in record["shares"] for share in layer]
    print(f"perplexity: {', '.join(figures)}; {record['tokens']:,} tokens read")
    print(f"{100 * min(flat):.0f} to {100 * max(flat):.0f} % of the tokens of a layer are routed to an expert")


def perplexity(model: PreTrainedModel, windows: torch.Tensor) -> float:
    return to_perplexity(float(window_losses(model, windows).mean()))


def empty_mixture(dense: PreTrainedModel, experts: int, top_k: int) -> MixtralForCausalLM:
    """The mixture with everything that it shares with the dense model; its experts and routers are random."""
    names = MixtralConfig().to_dict().keys() - {"model_type", "architectures", "transformers_version"}
    options = {name: value for name, value in dense.config.to_dict().items() if name in names}
    options |= {
        "intermediate_size": dense.config.intermediate_size // experts,
        "num_local_experts": experts,
        "num_experts_per_tok": top_k,
    }
    config = MixtralConfig(**options)
    config._attn_implementation = dense.config._attn_implementation
    config._experts_implementation = "eager"
    student = MixtralForCausalLM(config).to(dense.dtype).eval().requires_grad_(False)
    state = {name: tensor.clone() for name, tensor in dense.state_dict().items() if ".mlp." not in name}
    student.load_state_dict(state, strict=False)
    student.tie_weights()
    student.generation_config = dense.generation_config
    return student


@torch.no_grad()
def train_layers(
    layerwise: LayerwiseModel, student: MixtralForCausalLM, data: DataSplits, plan: Plan
) -> nn.ModuleList:
    """Divides every FFN into experts, in place, and returns trained copies of the layers."""
    options, trained = plan.options["calibration"], nn.ModuleList()
    training = LayerwiseTraining(
        layerwise,
        data,
        plan,
        passes=options.distillation_passes,
        learning_rate=options.distillation_rate,
        parts=options.parts(plan.seq_len),
    )
    stride = max(1, training.dense.states[0][..., 0].numel() // ROUTED_TOKENS)
    for index, (layer, mixture) in enumerate(zip(layerwise.layers, student.model.layers)):
        with sampled_inputs(layer.mlp, stride) as hidden:
            training.dense.advance(layer, index)
        split_ffn(layer.mlp, mixture.mlp, torch.cat(hidden).float())
        trained.append(copy.deepcopy(mixture))
        fit = training.fit_layer(trained[index], index)
        print(f"layer {index}: error {fit.before:.4f} -> {fit.after:.4f}", flush=True)
        trained[index].load_state_dict(fit.weights)
        training.trained.advance(trained[index], index)
    return trained


@contextmanager
def sampled_inputs(module: nn.Module, stride: int) -> Iterator[list[torch.Tensor]]:
    """Records every `stride`-th token that a module reads."""
    hidden: list[torch.Tensor] = []
    hook = module.register_forward_pre_hook(lambda _, args: hidden.append(args[0].flatten(0, 1)[::stride]))
    yield hidden
    hook.remove()


def split_ffn(dense: nn.Module, mixture: nn.Module, hidden: torch.Tensor) -> None:
    """Divides the channels of an FFN among experts of equal size.

    Args:
        dense: The FFN.
        mixture: The block to write to.
        hidden: Inputs of the FFN, shape `[tokens, hidden size]`.
    """
    down, experts = dense.down_proj.weight, mixture.gate.num_experts
    activations = dense.act_fn(dense.gate_proj(hidden)) * dense.up_proj(hidden)
    # The share of every channel in a token's output, relative to its mean, so that experts are needed about as often.
    sizes = normalize(activations[:: len(activations) // CLUSTERED_TOKENS + 1].abs() * down.norm(dim=0), p=1)
    members = balanced_clusters((sizes - sizes.mean(0)).T, experts)
    for expert, channels in enumerate(members):
        gate_up = dense.gate_proj.weight[channels], dense.up_proj.weight[channels]
        mixture.experts.gate_up_proj[expert] = torch.cat(gate_up)
        mixture.experts.down_proj[expert] = mixture.gate.top_k * down[:, channels]
    norms = torch.stack([(activations[:, channels] @ down[:, channels].T).norm(dim=1) for channels in members], 1)
    weight = torch.linalg.lstsq(hidden, norms / norms.mean(1, keepdim=True) - 1).solution
    mixture.gate.weight.copy_(LOGIT_SIZE * weight.T / (hidden @ weight).std())


def balanced_clusters(rows: torch.Tensor, count: int) -> torch.Tensor:
    """Returns the indices of the rows of every cluster, shape `[clusters, rows per cluster]`, by spherical k-means."""
    rows, size = normalize(rows), len(rows) // count
    centers = rows[::size]
    for _ in range(ITERATIONS):
        # Every cluster has as many places as it gets rows.
        similarity = (rows @ normalize(centers).T).repeat_interleave(size, 1)
        _, places = linear_sum_assignment(similarity, maximize=True)
        members = torch.from_numpy(places).argsort().view(count, size)
        centers = rows[members].mean(1)
    return members


@torch.no_grad()
def shares(student: PreTrainedModel, windows: torch.Tensor) -> list[list[float]]:
    """Returns the share of tokens that is routed to each expert, by layer."""
    counts = torch.zeros(len(student.model.layers), student.config.num_local_experts)

    def count(
        gate: nn.Module, inputs: tuple[torch.Tensor], output: tuple[torch.Tensor, ...], row: torch.Tensor
    ) -> None:
        row += output[2].flatten().bincount(minlength=gate.num_experts)

    for row, layer in zip(counts, student.model.layers):
        layer.mlp.gate.register_forward_hook(partial(count, row=row))
    student(windows[:1])
    return (counts / windows.shape[1]).tolist()


if __name__ == "__main__":
    with one_line_errors():
        main()
