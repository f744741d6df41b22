"""The pictures of a model card."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .result import PruningResult


COLORS = {"attention": "#2f6fb3", "ffn": "#e08a1e", "target": "#7a7a7a", "best": "#2b8a3e"}
FRONT = {"uniform": ("#7a7a7a", "s"), "prior": ("#e08a1e", "^"), "searched": ("#2b8a3e", "o")}


def write_plots(result: PruningResult, folder: str | os.PathLike) -> dict[str, str]:
    """Draws the policy and, if there was one, the search.

    Returns:
        File name of every picture that was drawn, by what it shows.
    """
    from matplotlib.figure import Figure

    drawn = {"policy": "policy.png"}
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    _draw_policy(figure.add_subplot(), result)
    figure.savefig(Path(folder) / drawn["policy"], dpi=150)
    if len(result.log) > 1:
        drawn["search"] = "search.png"
        figure = Figure(figsize=(9, 3.6), layout="constrained")
        _draw_search(figure.add_subplot(), result)
        figure.savefig(Path(folder) / drawn["search"], dpi=150)
    return drawn


def write_front(dense: dict[str, Any], rows: Sequence[dict[str, Any]], windows: str, path: str | os.PathLike) -> None:
    """Draws perplexity against parameters: the Pareto front of a sweep, with its baselines.

    Args:
        dense: `parameters` and `search_perplexity` of the dense model.
        rows: `parameters` and `search_perplexity` (by name in `FRONT`) of every sparsity.
        windows: What the perplexities were measured on.
        path: The picture to write.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    axes = figure.add_subplot()
    for name, (color, marker) in FRONT.items():
        points = [(dense["parameters"], dense["search_perplexity"])]
        points += [(row["parameters"], row["search_perplexity"][name]) for row in rows]
        x, y = zip(*sorted(points))
        axes.plot([value / 1e6 for value in x], y, color=color, marker=marker, markersize=5, label=name)
    axes.annotate(
        "dense",
        (dense["parameters"] / 1e6, dense["search_perplexity"]),
        (-6, 8),
        textcoords="offset points",
        ha="right",
    )
    axes.set(xlabel="parameters of the model [million]", ylabel=f"perplexity ({windows})", title="Size and perplexity")
    axes.grid(alpha=0.25)
    axes.legend(frameon=False)
    figure.savefig(path, dpi=150)


def _draw_policy(axes, result: PruningResult) -> None:
    policy = result.policy
    for offset, kind in ((-0.2, "attention"), (0.2, "ffn")):
        rows = [(unit.layer, 100 * rate) for unit, rate in zip(policy.units, policy.retentions) if unit.kind == kind]
        label = {"attention": "attention (KV groups)", "ffn": "FFN (channels)"}[kind]
        layers = [layer + offset for layer, _ in rows]
        axes.bar(layers, [rate for _, rate in rows], width=0.4, color=COLORS[kind], label=label)
    axes.axhline(100 * (1 - policy.sparsity), color=COLORS["target"], linestyle="--", linewidth=1, label="mean")
    axes.set(xlabel="layer", ylabel="kept [%]", ylim=(0, 105), title=f"Kept at {policy.sparsity:.1%} sparsity")
    axes.margins(x=0.01)
    axes.figure.legend(loc="outside lower center", ncols=3, frameon=False)


def _draw_search(axes, result: PruningResult) -> None:
    # Candidates may have seen different windows, so each is shown beside the dense model on the same ones.
    seen = [entry for entry in result.log if entry["reward"] > 0]
    for final, label, marker in ((False, "candidate", "o"), (True, "finalist", "D")):
        rows = [entry for entry in seen if entry["final"] == final]
        if rows:
            axes.scatter(
                [entry["evaluation"] for entry in rows],
                [1 / entry["reward"] for entry in rows],
                s=14,
                marker=marker,
                color=COLORS["best"] if final else COLORS["attention"],
                alpha=0.7,
                label=label,
            )
    axes.axhline(1, color=COLORS["target"], linestyle="--", linewidth=1, label="dense")
    axes.set(xlabel="candidate evaluation", ylabel="perplexity / dense perplexity", title="Search")
    if seen and min(entry["reward"] for entry in seen) < 0.1:
        axes.set_yscale("log")
    curriculum = axes.twinx()
    curriculum.plot(
        [entry["evaluation"] for entry in result.log],
        [100 * entry["target_sparsity"] for entry in result.log],
        color=COLORS["ffn"],
        linewidth=1.5,
        label="target sparsity",
    )
    curriculum.set(ylabel="target sparsity [%]", ylim=(0, None))
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False)
