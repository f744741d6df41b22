"""Learning curves of the paper's agent, beside random search of the same mapping with the same tokens.

    python benchmarks/learning_curve.py MODEL DATASET [options]

The first search is trained from scratch and later ones start from its agent (policy transfer). Search windows are the
first of a larger number, and the others are held out: the deterministic action before every `--every`-th update is
evaluated on them at the final sparsity, as is the policy that each search returns. There are as many calibration
tokens as in 32 windows of 2048. Rewards are the paper's, `PPL_dense / PPL`, before calibration. With `--preset
default` it is `--agent ppo` as it is otherwise: it starts from the policy of the loss curves, and is rewarded after
ridge regression. The picture beside `--output` has one panel per sparsity. `--save` writes the pruned models, after
ridge regression, for `optimum-cli ffp evaluate` at another window length.
"""

import argparse
from dataclasses import replace
from functools import partialmethod
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from compare import describe, read_options
from matplotlib.figure import Figure
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from tables import markdown

from optimum_ffp import FFPConfig, FFPPruner, PruningPolicy
from optimum_ffp.allocation.mapping import uniform
from optimum_ffp.analysis.measurements import policy_losses
from optimum_ffp.checkpoint.result import SearchResult
from optimum_ffp.checkpoint.saving import save_checkpoint
from optimum_ffp.commands.errors import one_line_errors
from optimum_ffp.hub.naming import without_folders
from optimum_ffp.plan import Plan
from optimum_ffp.search.runner import PolicySearch
from optimum_ffp.search.task import finalist_count, halving
from optimum_ffp.utils.json import write_json
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

    options = {
        "dataset": args.dataset,
        "agent": "ppo",
        "min_retention": args.min_retention,
        "seed": args.seed,
        "seq_len": args.seq_len,
        "num_samples": 32 * 2048 // args.seq_len,
        "search_samples": args.search_samples + args.held_out,
        "eval_samples": 2,
        "search_steps": args.steps,
        "calibration": "ridge",
    }
    config = FFPConfig(preset=args.preset, **(options | read_options(args.options)))
    pruner = FFPPruner.from_pretrained(args.model, config)
    data = pruner.measured.data
    held_out = data.search.tokens[args.search_samples :]
    pruner.measured.data = replace(data, search=data.search.first(args.search_samples))

    records, agent = [], None
    for sparsity in args.sparsities:
        recorder = Recorder(sparsity)
        with patch.object(PPO, "learn", partialmethod(PPO.learn, callback=recorder)):
            trained = pruner.search(agent, sparsity=sparsity)
        # After the last update.
        recorder.record()
        agent = agent or trained.agent
        steps = steps_for(trained.tokens_evaluated, trained.plan, args.search_samples)
        drawn = pruner.search(sparsity=sparsity, method="random", search_steps=steps)
        searches = {"ppo": trained, "random": drawn}
        record = {"options": without_folders(trained.plan.to_dict()), "sparsity": sparsity}
        found = measure(pruner, trained.plan, searches, recorder.scores, held_out, args.every)
        records.append(record | found)
        for name, search in searches.items():
            result = pruner.finish(search)
            records[-1][name]["prune"] = describe(result)
            if args.save:
                save_checkpoint(result, args.save / f"{name}-{100 * sparsity:g}", overwrite=True)
        write_json(args.output, records)
        draw(records, args.output.with_suffix(".png"))
        print(table(records[-1]), flush=True)


class Recorder(BaseCallback):
    """Keeps the agent's action without noise at a sparsity, before every update."""

    def __init__(self, sparsity: float):
        super().__init__()
        self.sparsity, self.scores = sparsity, []

    def record(self) -> None:
        scores, _ = self.model.predict(np.array([self.sparsity], dtype=np.float32), deterministic=True)
        self.scores.append(scores)

    def _on_rollout_start(self) -> None:
        self.record()

    def _on_step(self) -> bool:
        return True


def steps_for(tokens: int, plan: Plan, search_samples: int) -> int:
    """Number of steps of random search that reads at most so many tokens, with those of the finalists."""
    few, steps = min(plan.update_samples, search_samples), 1

    def windows(steps: int) -> int:
        finalists = finalist_count(steps)
        return (steps - finalists) * few + sum(count * size for count, size in halving(finalists, search_samples))

    while windows(steps + 1) <= tokens // plan.seq_len:
        steps += 1
    return steps


def measure(
    pruner: FFPPruner,
    plan: Plan,
    searches: dict[str, SearchResult],
    scores: list[np.ndarray],
    held_out: torch.Tensor,
    every: int,
) -> dict[str, Any]:
    """Held-out rewards of what every search returns, of the uniform policy, and of the agent as it learns.

    Args:
        pruner: The pruner of the searches.
        plan: Options of the searches.
        searches: Their results by name.
        scores: The agent's action without noise before every update.
        held_out: Token ids of windows that the searches don't see.
        every: Number of updates between two that are measured.
    """
    search = PolicySearch(pruner.measured, plan)
    updates = sorted({*range(0, len(scores), every), len(scores) - 1})
    mean_actions = [search.mapping(scores[update], search.budget) for update in updates]
    equal = uniform(search.budget)
    policies = [PruningPolicy.dense(pruner.measured.units), equal, *(found.policy for found in searches.values())]
    # Most updates change the scores, but not their order.
    policies = [*dict.fromkeys([*policies, *mean_actions])]
    losses = policy_losses(
        pruner.measured.prepared.sorted_model,
        policies,
        held_out,
        compensated=plan.reward == "compensated",
        dtype=autocast_dtype(pruner.model, plan.search_dtype),
    ).mean(1)
    rewards = dict(zip(policies, np.exp(losses[0] - losses).tolist()))
    return {
        name: {
            "tokens": found.tokens_evaluated,
            "evaluations": len(found.log),
            "best_on_search": found.dense_perplexity / found.best_perplexity,
            "held_out": rewards[found.policy],
            "samples": [[entry["samples"], entry["target_sparsity"], entry["reward"]] for entry in found.log],
        }
        for name, found in searches.items()
    } | {
        "mean_action": [[update, rewards[policy]] for update, policy in zip(updates, mean_actions)],
        "moved": float(np.abs(scores[-1] - scores[0]).mean()),
        "uniform": rewards[equal],
    }


def draw(records: list[dict[str, Any]], path: Path) -> None:
    """Draws the rewards of samples and the held-out reward of the mean action by update, one panel per sparsity."""
    when = "before calibration" if records[0]["options"]["reward"] == "pruned" else "after ridge regression"
    figure = Figure(figsize=(9, 3.8 * len(records)), layout="constrained")
    for axes, record in zip(np.atleast_1d(figure.subplots(len(records), 1)), records):
        samples = [reward for _, _, reward in record["ppo"]["samples"]]
        updates, rewards = zip(*record["mean_action"])
        at = np.arange(len(samples)) * updates[-1] / len(samples)
        axes.plot(at, samples, ".", markersize=2, color="#9db8d6", label="samples, search windows")
        axes.plot(updates, rewards, color="#2f6fb3", label="mean action, held-out windows")
        axes.axhline(record["random"]["held_out"], color="#e08a1e", label="best of random search, held out")
        axes.axhline(record["uniform"], color="#7a7a7a", ls="--", label="uniform, held out")
        axes.set(title=f"{record['sparsity']:.0%}", xlabel="update", ylabel=f"PPL dense / PPL, {when}")
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=130)


def table(record: dict[str, Any]) -> str:
    """Rewards on the search windows and on held-out windows."""
    rows = [
        [name, f"{found['tokens']:,}", f"{found['best_on_search']:.4f}", f"{found['held_out']:.4f}"]
        for name, found in ((name, record[name]) for name in ("ppo", "random"))
    ]
    (_, first), *_, (_, last) = record["mean_action"]
    rows += [["mean action, first and last update", "", "", f"{first:.4f} {last:.4f}"]]
    rows += [["uniform", "", "", f"{record['uniform']:.4f}"]]
    note = f"{record['sparsity']:.0%}; the mean action moved by {record['moved']:.2f}."
    return f"{markdown(['', 'tokens', 'on search', 'held out'], rows)}\n\n{note}"


if __name__ == "__main__":
    with one_line_errors():
        main()
