"""Draw the pictures of `docs/` from the records in `benchmarks/results/`: `python benchmarks/pictures.py`."""

from math import exp
from pathlib import Path
from statistics import mean

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from tables import Pool, Table, fields_of, prune_tokens


DOCS = Path(__file__).parent.parent / "docs"
# Rows of the table of methods in the picture: label, color, marker, and whether weights are trained.
DRAWN = {
    "**the default**: `--method ffp` at 20 %, `no-search` at 30 %": ("optimum-ffp", "#1f5fa8", "o", True),
    "`--method uniform`": ("uniform, layers trained", "#8a4fb0", "s", True),
    "`--method ffp --calibration ridge`": ("optimum-ffp, nothing trained", "#1f5fa8", "o", False),
    "`--method uniform --calibration ridge`": ("uniform, nothing trained", "#8a4fb0", "s", False),
    "FLAP (AL-AM, WIFV, biases; a unit is a KV group)": ("FLAP", "#505050", "^", False),
    "LLM-Pruner (Taylor, `param_first`), FFN alone": ("LLM-Pruner", "#909090", "v", False),
}


def draw(path: Path) -> None:
    """Draw the parameters of final models against their perplexity."""
    rows = Table("methods").cells()
    drawn = {"dense", *DRAWN}
    perplexities = {label: [float(cell) for cell in cells[:2] if cell] for label, cells in rows if label in drawn}
    sizes = {20: 113.3, 30: 102.7}
    figure = Figure(figsize=(8, 4.5), layout="constrained")
    axes = figure.subplots()
    note = {"textcoords": "offset points", "va": "center", "fontsize": 9}
    for label, (name, color, marker, trained) in DRAWN.items():
        (at_20, *at_30), fill = perplexities[label], color if trained else "white"
        axes.plot([*sizes.values()][: 1 + len(at_30)], [at_20, *at_30], marker, ls="-", color=color, mfc=fill, ms=7)
        if at_30:
            axes.annotate(f"{at_20:.2f}", (sizes[20], at_20), (9, 0), color=color, **note)
            axes.annotate(f"{name} {at_30[0]:.2f}", (sizes[30], at_30[0]), (-9, 0), color=color, ha="right", **note)
        else:
            # Beside the figure of another model.
            axes.annotate(f"{at_20:.2f} {name}", (sizes[20], at_20), (44, 0), color=color, **note)
    (dense, _) = perplexities["dense"]
    axes.axhline(dense, color="black", lw=1)
    axes.annotate(f"dense, 134.5M: {dense:.2f}", (92, dense), (6, 8), **note)
    for percent, size in sizes.items():
        axes.text(size, 66, f"{percent} % of the blocks", ha="center", va="top", fontsize=9)
    axes.set(
        yscale="log", xlim=(92, 125), ylim=(18.5, 68), yticks=(ticks := (20, 25, 30, 40, 50, 60)), yticklabels=ticks
    )
    axes.set(xlabel="parameters of the whole model, millions", ylabel="perplexity, WikiText-2")
    axes.set(title="SmolLM2-135M-Instruct; filled: weights trained on the calibration text")
    axes.minorticks_off()
    figure.savefig(path, dpi=130)


# Markers and labels in the picture of tokens, by what was trained, and colors by method.
STAGES = {
    "ridge": ("o", "nothing trained"),
    "layers": ("s", "layers"),
    "model": ("^", "whole model"),
    "layers, model": ("D", "layers, then whole model"),
}
COLORS = {
    "ffp": ("#1f5fa8", "with a search"),
    "no-search": ("#d07b1e", "no search"),
    "uniform": ("#8a4fb0", "uniform"),
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
