"""Writes the allocation of FLAP (An et al. 2024, https://arxiv.org/abs/2312.11983) as a policy for `ffp prune`.

    python benchmarks/flap.py MODEL DATASET [options]
    optimum-cli ffp prune -m MODEL OUT --policy flap-20.json

It is the paper's default, adaptive over layers and modules (AL-AM), as in the authors' code: a column of an output
projection has the metric `Var(X) * sum(W^2)`, squared in attention. Metrics are standardized over the columns of a
unit and averaged over those of a head. Heads and channels of all layers are kept in the order of this score, down to
the number of parameters of the sparsity. A KV head goes with its query heads. What differs: sizes are whole steps of
the prune (`multiple_of`), every unit keeps one, and the sparsity is met exactly. Statistics are those of the
calibration windows of a prune with the same options.
"""

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.allocation.budget import Budget, sparsity_limit
from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.analysis.criteria import flap
from optimum_ffp.analysis.gram import Statistics, collect_statistics
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.modeling.families import ModelUnit
from optimum_ffp.utils.json import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--sparsity", type=float, default=0.2)
    parser.add_argument("--attention", default="kv-groups", choices=("kv-groups", "query-heads"))
    parser.add_argument("--num-samples", type=int, default=128, help="Calibration windows.")
    parser.add_argument("--seq-len", type=int, help="Tokens per window. Default: as in a prune.")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="Default: flap-20.json, with the sparsity in percent.")
    args = parser.parse_args()

    options = {name: value for name, value in vars(args).items() if name not in ("model", "output")}
    measured = FFPPruner.from_pretrained(args.model, FFPConfig(**options)).measured
    (units,), windows, scores = measured.unit_variants, measured.data.calibration.tokens, []
    states, arguments = measured.layerwise.embed(windows)
    for index, layer in measured.layerwise.iter_layers():
        members = [unit for unit in units if unit.unit.layer == index]
        runner = measured.layerwise.runner(layer, arguments[index], None)
        statistics = collect_statistics(partial(runner.advance, states), members)
        scores += [score(unit, found) for unit, found in zip(members, statistics)]
    policy = allocate([unit.unit for unit in units], scores, args.sparsity)
    output = args.output or Path(f"flap-{100 * args.sparsity:g}.json")
    write_json(output, [row.to_dict() for row in policy.rows])
    kept = {kind: np.mean(policy.retentions[start::2]) for start, kind in enumerate(("attention", "FFN"))}
    print(f"{output}: " + ", ".join(f"{share:.0%} of {kind}" for kind, share in kept.items()) + " kept on average")


def score(unit: ModelUnit, statistics: Statistics) -> np.ndarray:
    """The scores of a unit's groups, most important first, shape `[groups]`.

    Where a group is a query head of each of several KV heads, it is the mean of heads of the same rank.
    """
    metric = flap.score(unit.output.module.weight, statistics, 1)
    metric = metric.square() if unit.unit.kind == "attention" else metric
    standardized = (metric - metric.mean()) / metric.std()
    heads = standardized.view(unit.sections, unit.unit.groups, -1).mean(2)
    return torch.sort(heads, dim=1, descending=True).values.mean(0).double().cpu().numpy()


def allocate(units: Sequence[Unit], scores: Sequence[np.ndarray], sparsity: float) -> PruningPolicy:
    """The policy that keeps the groups with the highest scores, as many as the sparsity allows.

    Args:
        units: The units.
        scores: Scores of the groups of every unit, in descending order, each of shape `[groups]`.
        sparsity: Fraction of the parameters to remove.
    """
    budget = Budget(units, [sparsity_limit(units, sparsity)])
    costs, available = budget.linear()
    owner = np.repeat(np.arange(len(units)), [len(one) for one in scores])
    order = np.argsort(-np.concatenate(scores), kind="stable")
    spent = np.cumsum(costs[owner[order]])
    kept = order[: np.searchsorted(spent, available, side="right")]
    sizes = np.bincount(owner[kept], minlength=len(units))
    # Rounding is corrected in the order of the groups that come next.
    following = [one[min(size, len(one) - 1)] for one, size in zip(scores, sizes)]
    return budget.discretize_and_correct(sizes / budget.groups, np.argsort(following)[::-1])


if __name__ == "__main__":
    with one_line_errors():
        main()
