"""Plots for the model card and the report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from textwrap import wrap
from typing import Any

from ..allocation.policy import GROUP_NAMES
from ..data import describe_size, describe_windows


COLORS = {
    "attention": "#2f6fb3",
    "ffn": "#e08a1e",
    "target": "#7a7a7a",
    "best": "#2b8a3e",
    "windows": "#7b4fa3",
    "failed": "#c0392b",
}
KINDS = {"attention": "attention", "ffn": "FFN"}
HATCHES = {"query_head": "///"}
# The searched policy is often the no-search one, whose larger marker stays visible behind it.
FRONT = {"uniform": ("#7a7a7a", "s", 5), "no-search": ("#e08a1e", "^", 10), "searched": ("#2b8a3e", "o", 5)}
# Inches, wide enough for 80 layers, with 10-point text that is legible at half size.
WIDTH, DPI = 9, 150


def write_plots(record: Mapping[str, Any], log: Sequence[dict[str, Any]], folder: Path) -> None:
    """Plot the policy and, if available, the search, the held-out error and the Pareto front.

    Args:
        record: Content of `ffp_config.json`.
        log: One record per candidate evaluation.
        folder: Folder to write `policy.png`, `search.png`, `calibration.png` and `pareto.png` to.
    """
    policy, search, provenance = record["policy"], record["search"], record["provenance"]
    _draw_policy(policy["units"], policy["sparsity"]).savefig(folder / "policy.png", dpi=DPI)
    if len(log) > 1:
        _draw_search(log, search["perplexity"]["dense"]).savefig(folder / "search.png", dpi=DPI)
    if layers := provenance["held_out"].get("layers"):
        _draw_calibration(layers).savefig(folder / "calibration.png", dpi=DPI)
    if front := search.get("front"):
        point = provenance["parameters"]["pruned"] / 1e6, search["perplexity"]["best"]
        write_front(front, folder / "pareto.png", point)


def write_front(front: Mapping[str, Any], path: Path, point: tuple[float, float | None] | None = None) -> None:
    """Plot the Pareto front of several sparsities: perplexity on the search windows against parameters.

    Args:
        front: Record of `ParetoFront`.
        path: File to write.
        point: Millions of parameters and perplexity of a model to mark.
    """
    dense, rows, figure = front["dense"], front["pruned"], _new_figure(4.6)
    axes, finite = figure.subplots(), []
    origin = dense["parameters"] / 1e6, dense["search_perplexity"]
    for name, (color, marker, size) in FRONT.items():
        values = [(row["parameters"] / 1e6, row["search_perplexity"].get(name)) for row in rows]
        points = [value for value in (*values, origin) if value[1] is not None and math.isfinite(value[1])]
        finite += [perplexity for _, perplexity in points]
        axes.plot(*zip(*sorted(points)), color=color, marker=marker, markersize=size, label=name)
    axes.plot(*origin, color="black", marker="*", markersize=12, linestyle="none", label="dense")
    if point is not None:
        axes.scatter(*point, s=200, facecolors="none", edgecolors="black", label="this model", zorder=3)
    _scale_perplexity_axis(axes, finite)
    axes.set(xlabel="parameters of the model [million]", ylabel="perplexity")
    axes.grid(alpha=0.25)
    # Names may be long, and contain dollar signs, which would be parsed as formulas.
    windows = "\n".join(wrap(f"Perplexity: {describe_windows(front['search_windows'])}", 84))
    axes.set_title(windows, fontsize=9, parse_math=False)
    figure.suptitle("Size and perplexity", fontsize=11)
    figure.legend(loc="outside lower center", ncols=5, frameon=False)
    figure.savefig(path, dpi=DPI)


def write_recovery(curve: Sequence[dict[str, Any]], windows: dict[str, Any], path: Path) -> None:
    """Plot the divergence from the dense model and the perplexity over a recovery.

    Args:
        curve: `tokens`, `kl` and `perplexity` of every evaluation.
        windows: Description of the held-out windows (`Windows.describe`).
        path: File to write.
    """
    figure = _new_figure(4.8)
    panels = figure.subplots(2, sharex=True)
    tokens = [count / 1e3 for count in _column(curve, "tokens")]
    for axes, name, label, color in zip(
        panels, ("kl", "perplexity"), ("divergence\n[nats per token]", "perplexity"), ("attention", "best")
    ):
        axes.plot(tokens, _column(curve, name), marker="o", markersize=4, color=COLORS[color])
        axes.set(ylabel=label)
        axes.grid(alpha=0.25)
        axes.margins(x=0.02)
    panels[-1].set(xlabel="tokens trained on [thousand]")
    figure.suptitle(
        f"Recovery: divergence from the dense model and perplexity on {describe_size(windows)}, held out", fontsize=11
    )
    figure.savefig(path, dpi=DPI)


def _new_figure(height: float):
    # Imported here because it is slow and rarely needed.
    from matplotlib.figure import Figure

    return Figure(figsize=(WIDTH, height), layout="constrained")


def _draw_policy(units: Sequence[dict[str, Any]], sparsity: float):
    figure = _new_figure(4.4)
    panels = figure.subplots(2, sharex=True)
    for axes, (kind, label) in zip(panels, KINDS.items()):
        rows = [unit for unit in units if unit["unit"] == kind]
        groups = _column(rows, "group")
        axes.bar(
            _column(rows, "layer"),
            [100 * row["retention"] for row in rows],
            width=0.75,
            color=COLORS[kind],
            hatch=[HATCHES.get(group, "") for group in groups] if len({*groups}) > 1 else None,
            edgecolor="white",
            linewidth=0,
        )
        axes.axhline(100 * (1 - sparsity), color=COLORS["target"], linestyle="--", linewidth=1)
        axes.set(ylabel="retained [%]", ylim=(0, 105), yticks=range(0, 101, 25))
        axes.set_title(f"{label} ({_name_groups(groups)})", loc="left", fontsize=10)
    _finish_layers(panels)
    figure.suptitle(f"Retention per layer at {sparsity:.1%} sparsity (dashed: overall)", fontsize=11)
    return figure


def _name_groups(groups: Sequence[str]) -> str:
    names = {name: GROUP_NAMES[name] for name in sorted(set(groups))}
    if len(names) > 1:
        names |= {name: f"{names[name]} (hatched)" for name in HATCHES}
    return ", ".join(names.values())


def _draw_search(log: Sequence[dict[str, Any]], dense: float | None):
    figure = _new_figure(6.4)
    perplexity, reward, curriculum = figure.subplots(3, sharex=True, height_ratios=(3, 2, 2))
    finite = [entry for entry in log if entry["perplexity"] is not None]
    for final, label, marker, color in ((False, "candidate", "o", "attention"), (True, "finalist", "D", "best")):
        rows = [entry for entry in finite if entry["final"] == final]
        style = {"s": 16, "marker": marker, "color": COLORS[color], "alpha": 0.75, "linewidths": 0}
        for axes, name in ((perplexity, "perplexity"), (reward, "reward")):
            points = _column(rows, "evaluation"), _column(rows, name)
            axes.scatter(*points, label=label if rows and axes is perplexity else None, **style)
    failed = _column([entry for entry in log if entry["perplexity"] is None], "evaluation")
    if failed:
        reward.scatter(failed, [0] * len(failed), s=20, marker="x", color=COLORS["failed"], label="not finite")
    if dense is not None:
        perplexity.axhline(dense, color=COLORS["target"], linestyle="--", linewidth=1, label="dense")
    _scale_perplexity_axis(perplexity, _column(finite, "perplexity"))
    perplexity.set(ylabel="perplexity")
    reward.set(ylabel="reward\n(dense / perplexity)")

    evaluations, targets = _column(log, "evaluation"), [100 * entry["target_sparsity"] for entry in log]
    window_counts = _column(log, "samples")
    curriculum.step(evaluations, targets, where="mid", color=COLORS["ffn"], label="target sparsity")
    curriculum.set(xlabel="candidate evaluation", ylabel="target\nsparsity [%]", ylim=(0, 1.15 * max(targets)))
    samples = curriculum.twinx()
    samples.step(evaluations, window_counts, where="mid", color=COLORS["windows"], linestyle="--", label="windows")
    samples.set(ylabel="windows", ylim=(0, 1.3 * max(window_counts)))
    _use_integer_ticks(curriculum.xaxis)
    _use_integer_ticks(samples.yaxis, 4)
    for axes in (perplexity, reward, curriculum):
        axes.grid(alpha=0.25)
        axes.margins(x=0.02)
    figure.suptitle("Search", fontsize=11)
    figure.legend(loc="outside lower center", ncols=6, frameon=False)
    return figure


def _draw_calibration(rows: Sequence[dict[str, Any]]):
    figure = _new_figure(4.8)
    axes = figure.subplots()
    for offset, name, label, color in (
        (-0.2, "before", "after ridge regression", COLORS["target"]),
        (0.2, "error", "after distillation", COLORS["best"]),
    ):
        layers = [row["layer"] + offset for row in rows]
        axes.bar(layers, [100 * row[name] for row in rows], width=0.4, color=color, label=label)
    axes.set(ylabel="error [%]", ylim=(0, None))
    _finish_layers([axes])
    figure.suptitle("Error of every distilled layer's output on held-out windows", fontsize=11)
    figure.legend(loc="outside lower center", ncols=2, frameon=False)
    return figure


def _scale_perplexity_axis(axes, perplexities: Sequence[float]) -> None:
    """Use a logarithmic axis if perplexities differ more than tenfold."""
    from matplotlib.ticker import LogFormatter

    if perplexities and max(perplexities) > 10 * min(perplexities):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _column(rows: Sequence[dict[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]


def _finish_layers(panels) -> None:
    for axes in panels:
        axes.grid(axis="y", alpha=0.25)
        axes.set_axisbelow(True)
    panels[-1].set(xlabel="layer")
    panels[-1].margins(x=0.01)
    _use_integer_ticks(panels[-1].xaxis)


def _use_integer_ticks(axis, max_ticks: int = 16) -> None:
    from matplotlib.ticker import MaxNLocator

    axis.set_major_locator(MaxNLocator(nbins=max_ticks, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
