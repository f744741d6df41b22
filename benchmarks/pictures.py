"""Draw the pictures of `docs/` from the records in `benchmarks/results/`: `python benchmarks/pictures.py`."""

from math import exp
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tables import Pool, Table, fields_of, prune_tokens


DOCS = Path(__file__).parent.parent / "docs"
BLUE, PURPLE, DARK, LIGHT = "#1f5fa8", "#8a4fb0", "#505050", "#a0a0a0"
# Panels of the picture of sizes by table, and its rows: name, color and marker.
PANELS = {
    "headline": (
        "trained on the calibration text, test windows 82-148",
        {
            "**optimum-ffp**, the default": ("optimum-ffp, default", BLUE, "o"),
            "**optimum-ffp**, `--preset fast`": ("optimum-ffp, fast", BLUE, "D"),
            "FLAP's allocation, trained like `fast`": ("FLAP's allocation, fast", DARK, "^"),
            "uniform, trained like `fast`": ("uniform, fast", PURPLE, "s"),
        },
    ),
    "methods": (
        "nothing trained, test windows 1-10",
        {
            "`--method ffp --calibration ridge`": ("optimum-ffp", BLUE, "o"),
            "`--method uniform --calibration ridge`": ("uniform", PURPLE, "s"),
            "FLAP (AL-AM, WIFV, biases; a unit is a KV group)": ("FLAP", LIGHT, "^"),
            "LLM-Pruner (Taylor, `param_first`), FFN alone": ("LLM-Pruner", LIGHT, "v"),
        },
    ),
}
SIZES = {"20 %": 113.3, "30 %": 102.7}


def draw(path: Path) -> None:
    """Draw the parameters of final models against their perplexity."""
    figure = Figure(figsize=(10, 4.5), layout="constrained")
    note = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for axes, (table, (title, drawn)) in zip(figure.subplots(1, 2), PANELS.items()):
        rows = {label: [float(cell) for cell in cells[:2]] for label, cells in Table(table).cells() if label in drawn}
        for label, (name, color, marker) in drawn.items():
            axes.plot([*SIZES.values()], rows[label], marker, ls="-", color=color, ms=7)
            at_20, at_30 = rows[label]
            axes.annotate(f"{at_20:.2f}", (SIZES["20 %"], at_20), (9, 0), color=color, **note)
            axes.annotate(f"{name} {at_30:.2f}", (SIZES["30 %"], at_30), (-9, 0), color=color, ha="right", **note)
        dense = next(float(cells[0]) for label, cells in Table(table).cells() if label.startswith("dense"))
        axes.axhline(dense, color="black", lw=1)
        axes.annotate(f"dense, 134.5M: {dense:.2f}", (90, dense), (6, 8), **note)
        ticks = [tick for tick in (20, 25, 30, 35, 40, 50, 60) if dense <= tick < 1.1 * max(map(max, rows.values()))]
        axes.set(yscale="log", xlim=(90, 118), ylim=(0.95 * dense, None), yticks=ticks, yticklabels=ticks, title=title)
        axes.set(
            xticks=[*SIZES.values()], xticklabels=[f"{size}M\n{share} of the blocks" for share, size in SIZES.items()]
        )
        axes.minorticks_off()
    figure.supylabel("perplexity, WikiText-2", fontsize=10)
    figure.suptitle("SmolLM2-135M-Instruct: parameters of the whole model and perplexity")
    figure.savefig(path, dpi=130)


# Markers and labels in the picture of tokens, by what was trained, and colors by method.
STAGES = {
    "ridge": ("o", "nothing trained"),
    "layers": ("s", "layers"),
    "model": ("^", "whole model"),
    "layers, model": ("D", "layers, then whole model"),
}
COLORS = {
    "ffp": (BLUE, "with a search"),
    "no-search": ("#d07b1e", "no search"),
    "uniform": (PURPLE, "uniform"),
}


# Records of today's presets, and of the default with other options.
PRUNES = ("smollm2-default-model-*", "smollm2-fast", "smollm2-best*", "smollm2-frontier-*")
# And of earlier defaults.
PRUNES += ("smollm2-default", "smollm2-uniform-distilled", "smollm2-uniform", "smollm2-less-text")


def trained(record: dict) -> str:
    """Return what a prune trained, a key of `STAGES`."""
    calibration = record["calibration"]
    return "layers, model" if calibration == "model" and record["distillation_passes"] != 0 else calibration


def draw_frontier(path: Path) -> None:
    """Draw the tokens of prunes against the perplexity of their results, and the lowest with so many tokens."""
    pool = Pool(PRUNES)
    (_, unpruned, _), *rows = Table("presets").rows
    prunes = [fields_of(prune) for _, prune, *_ in rows]
    names = {id(pool.find(prune)): prune.get("preset") for prune in prunes}
    dense = exp(mean(pool.losses(fields_of(unpruned), 1, 10)))
    figure = Figure(figsize=(10, 5.5), layout="constrained")
    for axes, percent in zip(figure.subplots(1, 2), (20, 30)):
        points = []
        for record in pool.records:
            if (record["asked"], record["seed"]) == (percent / 100, 0) and record["method"] in COLORS:
                spent = prune_tokens(record) / 1e6
                points.append((spent, exp(mean(record["losses"]["calibrated"][0][:10]))))
                axes.plot(*points[-1], STAGES[trained(record)][0], color=COLORS[record["method"]][0], ms=7)
                if name := names.get(id(record)):
                    # The default is close to the left of `best`.
                    side, offset = ("left", 6) if name == "best" else ("right", -6)
                    note = {"textcoords": "offset points", "ha": side, "va": "top", "fontsize": 9}
                    axes.annotate(f"{name} {points[-1][1]:.2f}", points[-1], (offset, -4), **note)
        lowest = [(x, min(value for spent, value in points if spent <= x)) for x, _ in sorted(points)]
        axes.plot(*zip(*lowest), drawstyle="steps-post", color="#909090", lw=1, zorder=1)
        axes.axhline(dense, color="black", lw=1)
        axes.text(9.5, dense, f"dense {dense:.2f}", ha="right", va="bottom", fontsize=9)
        axes.set(xscale="log", xlim=(0.2, 10), xticks=(ticks := (0.25, 0.5, 1, 2, 4, 8)), xticklabels=ticks)
        axes.minorticks_off()
        axes.grid(color="#e8e8e8")
        axes.set_axisbelow(True)
        axes.set(title=f"{percent} % of the blocks", xlabel="tokens of the prune, millions", ylabel="perplexity")
    handles = [Line2D([], [], color="black", marker=marker, ls="", label=label) for marker, label in STAGES.values()]
    handles += [Line2D([], [], color=color, marker="o", ls="", label=label) for color, label in COLORS.values()]
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), fontsize=8, frameon=False)
    figure.suptitle("SmolLM2-135M-Instruct, WikiText-2, test windows 1-10")
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    draw(DOCS / "size-perplexity.png")
    draw_frontier(DOCS / "tokens-perplexity.png")
