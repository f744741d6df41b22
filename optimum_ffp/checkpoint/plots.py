"""Plots for the model card and the report."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..allocation.policy import GROUP_NAMES, UnitSize
from ..config.budgets import format_value
from ..data import describe_size, describe_windows
from ..utils.record import Record, SearchRecord


# Colors of Okabe and Ito, which color-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, GRAY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#D9D9D9"
BASELINES = {"uniform": {"color": ORANGE, "linestyle": ":"}, "no-search": {"color": GREEN, "linestyle": "-."}}
# Label of the axis and its unit, by the option that a front is over, where that isn't the number of parameters.
FRONT_AXES = {
    "memory": ("memory of weights and KV cache [GiB]", 2**30),
    "kv_cache": ("KV cache as a fraction of the dense model's", 1),
    "speedup": ("predicted speed as a multiple of the dense model's", 1),
}
# Inches, wide enough for 80 layers, with 10-point text that is legible at half size.
WIDTH, DPI = 7, 200


def write_plots(record: Record, log: Sequence[dict[str, Any]], folder: Path) -> None:
    """Write `policy.png` and, if candidates were evaluated, `search.png` to the folder of a checkpoint."""
    kinds = _kinds(record.policy.units)
    if kinds:
        _draw_policy(kinds, record.policy.sparsity).savefig(folder / "policy.png", dpi=DPI)
    if len(log) > 1:
        _draw_search(log, record.search).savefig(folder / "search.png", dpi=DPI)


def write_front(records: Sequence[Mapping[str, Any]], swept: str, windows: Mapping[str, Any], path: Path) -> None:
    """Plot the Pareto front of a sweep: perplexity of the final models on the first text against what is limited.

    Args:
        records: Flat records of the pruned models, and of the dense model as the last one.
        swept: Option of the budget that differs. Other limits than `FRONT_AXES` are plotted as parameters.
        windows: Description of the test windows of the first text.
        path: File to write.
    """
    figure, (axes,) = _new_figure(3.8)
    *pruned, dense = records
    text = next(name for name in dense if name.startswith("perplexity/"))
    pruned = [record for record in pruned if math.isfinite(record[text])]
    label, unit = FRONT_AXES.get(swept, ("parameters of the model [million]", 1e6))
    sizes = _column([dense, *pruned], "parameters")
    if swept in FRONT_AXES:
        sizes = [records[0][f"dense/{swept}"], *_column(pruned, f"reached/{swept}")]
    sizes = [size / unit for size in sizes]
    perplexities = _column([dense, *pruned], text)
    axes.plot(sizes, perplexities, color=BLUE, marker="o", label="pruned, with the limit that was asked for")
    for asked, *here in zip(_column(pruned, f"asked/{swept}"), sizes[1:], perplexities[1:]):
        value = f"{100 * asked:.3g} %" if swept == "sparsity" else format_value(swept, asked)
        axes.annotate(value, here, xytext=(6, 6), textcoords="offset points")
    style = {"color": "black", "linestyle": "--", "linewidth": 1}
    axes.axhline(perplexities[0], **style)
    axes.plot(sizes[0], perplexities[0], marker="s", label="dense", **style)
    _scale_perplexity_axis(axes, perplexities)
    axes.margins(x=0.08, y=0.12)
    axes.set(xlabel=label, ylabel="test perplexity")
    # Names may contain dollar signs, which would be parsed as formulas.
    axes.set_title(describe_windows(windows), fontsize=9, parse_math=False, wrap=True)
    figure.suptitle("Size and perplexity of the pruned models")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    figure.savefig(path, dpi=DPI)


def write_recovery(curve: Sequence[dict[str, Any]], kept: dict[str, Any], windows: dict[str, Any], path: Path) -> None:
    """Plot the divergence from the teacher and the perplexity on held-out windows over a recovery.

    The evaluation `kept` of the `curve`, that of the saved weights, is marked with a star.
    """
    figure, panels = _new_figure(4.2, panels=2)
    tokens = [count / 1e3 for count in _column(curve, "tokens")]
    for axes, name, label, digits, color in (
        (panels[0], "kl", "divergence\n[nats per token]", 4, BLUE),
        (panels[1], "perplexity", "perplexity", 2, GREEN),
    ):
        axes.plot(tokens, _column(curve, name), marker="o", markersize=4, color=color)
        axes.plot(kept["tokens"] / 1e3, kept[name], marker="*", markersize=14, color=color, clip_on=False)
        axes.set(ylabel=label)
        axes.set_title(f"{curve[0][name]:.{digits}f} → {kept[name]:.{digits}f}", loc="right", fontsize=10)
    panels[1].set(xlabel="tokens trained on [thousand]")
    figure.suptitle(f"Recovery, on {describe_size(windows)} held out")
    figure.savefig(path, dpi=DPI)


def _new_figure(height: float, panels: int = 1, counts: bool = False):
    """Return a figure and its panels, one below the other, with integers on the axis below them if it `counts`."""
    # Imported here because it is slow and rarely needed.
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    figure = Figure(figsize=(WIDTH, height), layout="constrained")
    axes = figure.subplots(panels, sharex=True, squeeze=False)[:, 0]
    for panel in axes:
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(axis="y", alpha=0.3)
        panel.set_axisbelow(True)
    if counts:
        axes[-1].xaxis.set_major_locator(MaxNLocator(nbins=16, integer=True, min_n_ticks=1, steps=(1, 2, 5, 10)))
    return figure, axes


def _kinds(units: Sequence[UnitSize]) -> list[list[UnitSize]]:
    """Return the rows of attention and FFNs. Attention that can't be pruned, a single group per layer, is left out."""
    kinds = ([row for row in units if row.unit == kind] for kind in ("attention", "ffn"))
    return [rows for rows in kinds if any(row.items > 1 for row in rows)]


def _draw_policy(kinds: Sequence[Sequence[UnitSize]], sparsity: float):
    """Draw what every layer keeps, with a panel for attention and one for FFNs."""
    figure, panels = _new_figure(0.9 + 1.6 * len(kinds), panels=len(kinds), counts=True)
    for axes, rows in zip(panels, kinds):
        counts = {row.group: row.items for row in rows}
        # Layers of both kinds are counted in query heads.
        heads = math.prod(counts.values())
        for group in counts:
            layers = [row for row in rows if row.group == group]
            kept = [heads * row.kept / row.items for row in layers]
            style = {"x": [row.layer for row in layers], "width": 0.8}
            axes.bar(height=kept, color=BLUE, label="kept", **style)
            hatched = group == "query_head" and len(counts) > 1
            axes.bar(
                bottom=kept,
                height=[heads - count for count in kept],
                color=GRAY,
                hatch="//////" if hatched else None,
                edgecolor="white",
                linewidth=0,
                label="removed, their KV heads kept" if hatched else "removed",
                **style,
            )
        intervals = next(count for count in (4, 3, 2, 1) if heads % count == 0)
        label = "query heads" if len(counts) > 1 else GROUP_NAMES[rows[0].group]
        axes.set(ylabel=label, yticks=range(0, heads + 1, heads // intervals))
    panels[-1].set(xlabel="layer")
    panels[-1].margins(x=0.01)
    figure.align_ylabels(panels)
    figure.suptitle(f"Heads and channels kept per layer, {100 * sparsity:.3g} % of the blocks removed")
    handles = {label: bars for axes in panels for bars, label in zip(*axes.get_legend_handles_labels())}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_search(log: Sequence[dict[str, Any]], search: SearchRecord):
    """Draw perplexities relative to dense on the same windows, since candidates differ in their windows."""
    figure, (axes,) = _new_figure(4.2, counts=True)
    found = search.perplexity or {}
    dense, best = found["dense"], found["best"]
    baselines = {name: value / dense for name, value in search.baselines.items() if value is not None}
    for name, value in baselines.items():
        axes.axhline(value, label=name.replace("-", " "), **BASELINES[name])
    axes.axhline(1, color="black", linestyle="--", linewidth=1, label="dense")
    # The lines show the baselines, which the log contains too.
    rows = [
        entry
        for entry in log
        if entry["reward"] and not any(math.isclose(1 / entry["reward"], value) for value in baselines.values())
    ]
    target = max(_column(log, "target_sparsity"))
    _draw_candidates(axes, [entry for entry in rows if not entry["final"]], target, "o", "on part of the windows")
    dots = _draw_candidates(axes, [entry for entry in rows if entry["final"]], target, "D", "on all windows")
    chosen = next(entry["evaluation"] for entry in log if entry["final"] and entry["perplexity"] == best)
    axes.scatter(chosen, best / dense, s=260, marker="*", color=ORANGE, edgecolors="black", label="chosen")
    failed = _column([entry for entry in log if entry["perplexity"] is None], "evaluation")
    if failed:
        top = {"transform": axes.get_xaxis_transform(), "clip_on": False}
        axes.scatter(failed, [1] * len(failed), marker="x", color=RED, label="not finite", **top)
    if min(_column(log, "target_sparsity")) < target:
        figure.colorbar(dots, label="target sparsity of the candidate [%]")
    axes.set(xlabel="candidate evaluation", ylabel="perplexity relative to dense")
    _scale_perplexity_axis(axes, [1, *(1 / entry["reward"] for entry in rows), *baselines.values()])
    figure.suptitle(f"Candidates of the search, {100 * target:.3g} % of the blocks removed")
    figure.legend(loc="outside lower center", ncols=3, frameon=False)
    return figure


def _draw_candidates(axes, rows: Sequence[dict[str, Any]], target: float, marker: str, windows: str):
    return axes.scatter(
        _column(rows, "evaluation"),
        [1 / row["reward"] for row in rows],
        c=[100 * row["target_sparsity"] for row in rows],
        vmin=0,
        vmax=100 * target,
        cmap="viridis_r",
        marker=marker,
        s=24,
        alpha=0.8,
        label=f"candidate, {windows}" if rows else None,
    )


def _scale_perplexity_axis(axes, perplexities: Sequence[float]) -> None:
    """Use a logarithmic axis if perplexities differ more than tenfold."""
    from matplotlib.ticker import LogFormatter

    if max(perplexities) > 10 * min(perplexities):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter(LogFormatter())
        axes.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(2, 0.5)))


def _column(rows: Sequence[Mapping[str, Any]], name: str) -> list[Any]:
    return [row[name] for row in rows]
