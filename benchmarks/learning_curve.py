"""Learning curves of the paper's agent, beside random search of the same mapping with the same tokens.

    python benchmarks/learning_curve.py MODEL DATASET [--preset paper] [--sparsities 0.2 0.3] [--min-retention 0.2]
        [--steps 1000] [--options learning_rate=1e-3 ...] [--seq-len 256] [--search-samples 4] [--held-out 8]
        [--every 6] [--seed 0] [--save FOLDER] [--output learning-curve.json]

The first search is trained from scratch and later ones start from its agent (policy transfer). Search windows are the
first ones of a larger number, the others are held out: the deterministic action before every `--every`-th update is
evaluated on them at the final sparsity, as is the policy that each search returns. There are as many calibration
tokens as in 32 windows of 2048. Rewards are the paper's, `PPL_dense / PPL`, before calibration. With `--preset
default` it is `--agent ppo` as it is otherwise: it starts from the policy of the loss curves, and is rewarded after
ridge regression. The picture beside `--output` has one panel per sparsity. `--save` writes the pruned models, after
ridge regression, for `optimum-cli ffp evaluate` at another window length.
"""

import argparse
import json
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from compare import describe, read_options
from matplotlib.figure import Figure

from optimum_ffp import FFPConfig, FFPPruner, PruningPolicy
from optimum_ffp.allocation.mapping import uniform
from optimum_ffp.analysis.measurements import policy_losses
from optimum_ffp.checkpoint.result import Found
from optimum_ffp.checkpoint.saving import save_checkpoint
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.hub.naming import without_folders
from optimum_ffp.search.runner import PolicySearch
from optimum_ffp.search.task import finalist_count, finalist_windows
from optimum_ffp.utils.precision import autocast_dtype


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("dataset")
    parser.add_argument("--preset", default="paper", choices=("paper", "default"))
    parser.add_argument("--sparsities", nargs="+", type=float, default=[0.2, 0.3])
    parser.add_argument("--min-retention", type=float, default=0.2)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--options", nargs="*", default=[], metavar="NAME=VALUE")
    parser.add_argument("--seq-len", type=int, default=256)
    parser.add_argument("--search-samples", type=int, default=4)
    parser.add_argument("--held-out", type=int, default=8)
    parser.add_argument("--every", type=int, default=6)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--save", type=Path, help="Folder to write the pruned models to.")
    parser.add_argument("--output", type=Path, default=Path("learning-curve.json"))
    args = parser.parse_args()

    sizes = {
        "seq_len": args.seq_len,
        "num_samples": 32 * 2048 // args.seq_len,
        "search_samples": args.search_samples + args.held_out,
        "eval_samples": 2,
        "search_steps": args.steps,
        "calibration": "ridge",
    }
    others = {"dataset": args.dataset, "agent": "ppo", "min_retention": args.min_retention, "seed": args.seed}
    config = FFPConfig(preset=args.preset, **(sizes | others | read_options(args.options)))
    pruner = FFPPruner.from_pretrained(args.model, config)
    data = pruner.measured.data
    held_out = data.search.tokens[args.search_samples :]
    pruner.measured.data = replace(data, search=data.search.first(args.search_samples))
    judge = Judge(pruner, held_out)

    records, agent = [], None
    for sparsity in args.sparsities:
        trained = pruner.search(sparsity, agent)
        agent = agent or trained.agent
        steps = steps_for(trained.tokens_evaluated, config, args.search_samples)
        drawn = pruner.search(sparsity, config=replace(config, method="random", search_steps=steps))
        records.append(judge.compare(sparsity, {"ppo": trained, "random": drawn}, args.every))
        for name, found in (("ppo", trained), ("random", drawn)):
            result = pruner.finish(found)
            records[-1][name] |= {"prune": describe(result)}
            if args.save:
                save_checkpoint(result, args.save / f"{name}-{100 * sparsity:g}", overwrite=True)
        options = without_folders(config.to_dict())
        args.output.write_text(json.dumps({"options": options, "searches": records}, indent=2) + "\n")
        when = "before calibration" if config.reward == "pruned" else "after ridge regression"
        draw(records, args.output.with_suffix(".png"), when)
        print(table(records[-1]), flush=True)


def steps_for(tokens: int, config: FFPConfig, search_samples: int) -> int:
    """Number of steps of random search that reads at most so many tokens, with those of the finalists."""
    few, steps = min(config.update_samples, search_samples), 1

    def windows(steps: int) -> int:
        finalists = finalist_count(steps)
        return (steps - finalists) * few + finalist_windows(finalists, search_samples)

    while windows(steps + 1) <= tokens // config.seq_len:
        steps += 1
    return steps


class Judge:
    """Evaluates policies on windows that the search does not see.

    Args:
        pruner: The pruner of the searches.
        windows: Token ids of the held-out windows.
    """

    def __init__(self, pruner: FFPPruner, windows: torch.Tensor):
        self.pruner, self.windows = pruner, windows

    @cached_property
    def dense(self) -> float:
        """Mean loss of the dense model, in nats per token."""
        return self._loss(PruningPolicy.dense(self.pruner.measured.units), compensated=False)

    def reward(self, policy: PruningPolicy) -> float:
        """Reward `PPL_dense / PPL` on the held-out windows."""
        compensated = self.pruner.config.reward == "compensated"
        return float(np.exp(self.dense - self._loss(policy, compensated)))

    def _loss(self, policy: PruningPolicy, compensated: bool) -> float:
        measured = self.pruner.measured
        dtype = autocast_dtype(measured.model, self.pruner.config.search_dtype)
        inputs = measured.prepared.sorted_model, [policy], self.windows
        return float(policy_losses(*inputs, compensated=compensated, dtype=dtype).mean())

    def compare(self, sparsity: float, searches: dict[str, Found], every: int) -> dict[str, Any]:
        """The record of one sparsity: held-out rewards of what every search returns, and of the agent as it learns."""
        search = PolicySearch(self.pruner.measured, replace(self.pruner.config, sparsity=sparsity))
        budget, record = search.budget, {"sparsity": sparsity}
        for name, found in searches.items():
            record[name] = {
                "tokens": found.tokens_evaluated,
                "evaluations": found.candidate_evaluations,
                "best_on_search": found.dense_perplexity / found.best_perplexity,
                "held_out": self.reward(found.policy),
                "samples": [[entry["samples"], entry["target_sparsity"], entry["reward"]] for entry in found.log],
            }
        trail = searches["ppo"].scores_by_update
        kept = sorted({*range(0, len(trail), every), len(trail) - 1})
        policies = [search.mapping(trail[update], budget) for update in kept]
        # Most updates change the scores, but not their order.
        rewards = {policy.sizes: self.reward(policy) for policy in policies}
        record["mean_action"] = [[update, rewards[policy.sizes]] for update, policy in zip(kept, policies)]
        record["moved"] = float(np.abs(trail[-1] - trail[0]).mean())
        record["uniform"] = self.reward(uniform(trail[0], budget))
        return record


def draw(records: list[dict[str, Any]], path: Path, when: str) -> None:
    """Draws the rewards of samples and the held-out reward of the deterministic action, by update.

    Args:
        records: The record of every sparsity.
        path: Picture to write.
        when: Whether rewards are those before or after calibration.
    """
    figure = Figure(figsize=(9, 3.8 * len(records)), layout="constrained")
    for axes, record in zip(np.atleast_1d(figure.subplots(len(records), 1)), records):
        samples = np.array([reward for _, _, reward in record["ppo"]["samples"]])
        updates, rewards = zip(*record["mean_action"])
        scale = updates[-1] / len(samples)
        at = np.arange(len(samples)) * scale
        axes.plot(at, samples, ".", markersize=2, color="#9db8d6", label="samples, search windows")
        axes.plot(updates, rewards, color="#2f6fb3", label="mean action, held-out windows")
        axes.axhline(record["random"]["held_out"], color="#e08a1e", label="best of random search, held out")
        axes.axhline(record["uniform"], color="#7a7a7a", ls="--", label="uniform, held out")
        axes.set(title=f"{record['sparsity']:.0%}", xlabel="update", ylabel=f"PPL dense / PPL, {when}")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def table(record: dict[str, Any]) -> str:
    """Rewards on the search windows and on held-out windows, and the perplexity after calibration."""
    lines = ["| | tokens | on search | held out |", "|---|---:|---:|---:|"]
    for name in ("ppo", "random"):
        row = record[name]
        lines.append(f"| {name} | {row['tokens']:,} | {row['best_on_search']:.4f} | {row['held_out']:.4f} |")
    first, last = record["mean_action"][0][1], record["mean_action"][-1][1]
    lines.append(f"| mean action, first and last update | | | {first:.4f} {last:.4f} |")
    lines.append(f"| uniform | | | {record['uniform']:.4f} |")
    return "\n".join(lines) + f"\n\n{record['sparsity']:.0%}; the mean action moved by {record['moved']:.2f}."


if __name__ == "__main__":
    with one_line_errors():
        main()
