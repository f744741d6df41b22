import json
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

from optimum_ffp.checkpoint.plots import write_front, write_plots, write_recovery
from optimum_ffp.utils.record import Record


WINDOWS = {"dataset": "a name with $ " * 9, "split": "test", "windows": 2, "window_length": 24, "start_token": True}
FRONT = [
    {"parameters": parameters, "perplexity/it": perplexity} | limit
    for parameters, perplexity, limit in (
        (9_000_000, float("inf"), {"asked/sparsity": 0.2}),
        (8_000_000, 300.0, {"asked/sparsity": 0.3}),
        (7_000_000, 400.0, {"asked/sparsity": 0.4}),
        (10_000_000, 20.0, {}),
    )
]


def make_record(layers: int) -> dict:
    generator = np.random.default_rng(0)
    units = [
        {"layer": layer, "unit": kind, "group": group, "items": 8, "kept": 4, "retention": generator.random()}
        for layer in range(layers)
        for kind, group in (("attention", "kv_group" if layer % 2 else "query_head"), ("ffn", "channel"))
    ]
    record = json.loads((Path(__file__).parent / "record.json").read_text())
    record["policy"] |= {"sparsity": 0.3, "units": units}
    record["search"] |= {
        "perplexity": {"dense": 20.0, "best": 30.0},
        "baselines": {"uniform": 400.0, "no-search": None},
    }
    return record


def make_log(evaluations: int) -> list[dict]:
    """Evaluations of which one has no finite perplexity, and the last is the best."""
    generator = np.random.default_rng(0)
    log = [
        {
            "evaluation": number,
            "target_sparsity": 0.1 + 0.2 * number / evaluations,
            "samples": 1 + 15 * number // evaluations,
            "perplexity": None if number == 1 else 20.0 + 300 * generator.random(),
            "reward": 0.0 if number == 1 else 1 - generator.random(),
            "final": number > 0.9 * evaluations,
        }
        for number in range(1, evaluations + 1)
    ]
    log[-1] |= {"perplexity": 30.0, "reward": 20.0 / 30.0}
    return log


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """Figures in place of files."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    return drawn


def test_plots_are_written_as_png_files(tmp_path):
    write_plots(Record.from_dict(make_record(2)), make_log(3), tmp_path)
    write_front(FRONT, "sparsity", WINDOWS, tmp_path / "front.png")
    assert {path.name for path in tmp_path.iterdir()} == {"policy.png", "search.png", "front.png"}
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in tmp_path.iterdir())


def test_plots_without_data_are_omitted(tmp_path):
    write_plots(Record.from_dict(make_record(2)), make_log(1), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["policy.png"]


@pytest.mark.slow
@pytest.mark.parametrize("layers, evaluations", [(1, 2), (30, 64), (80, 1000)])
def test_plot_panels_have_data_and_labels_do_not_overlap(figures, tmp_path, layers, evaluations):
    record = make_record(layers)
    write_plots(Record.from_dict(record), make_log(evaluations), tmp_path)
    write_front(FRONT, "sparsity", WINDOWS, tmp_path / "front.png")
    curve = [{"tokens": 1000 * step, "kl": 1.0 / (1 + step), "perplexity": 20.0} for step in range(9)]
    write_recovery(curve, curve[-1], {"windows": 2, "window_length": 24}, tmp_path / "recovery.png")
    assert len(figures) == 4
    for figure in figures:
        figure.canvas.draw()
        assert all(axes.has_data() for axes in figure.axes)
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            low, high = sorted(axis.get_view_interval())
            ticks = zip(axis.get_ticklocs(), axis.get_ticklabels())
            labels = [label for place, label in ticks if low <= place <= high and label.get_text()]
            boxes = [label.get_window_extent() for label in labels if label.get_visible()]
            assert not any(one.overlaps(other) for one, other in combinations(boxes, 2))


def test_policy_plot_stacks_kept_and_removed_groups(figures, tmp_path):
    record = json.loads((Path(__file__).parent / "record.json").read_text())
    write_plots(Record.from_dict(record), [], tmp_path)
    units = record["policy"]["units"]
    for axes, kind, groups in zip(figures[0].axes, ("attention", "ffn"), (4, 48)):
        kept, removed = ([patch.get_height() for patch in bars] for bars in axes.containers)
        assert kept == [unit["kept"] for unit in units if unit["unit"] == kind]
        assert [sum(bars) for bars in zip(kept, removed)] == [groups] * 3


def test_policy_plot_counts_mixed_attention_in_query_heads(figures, tmp_path):
    record = make_record(2)
    for unit, items, kept in zip(record["policy"]["units"], (4, 8, 3, 8), (3, 8, 1, 8)):
        unit |= {"items": items, "kept": kept}
    write_plots(Record.from_dict(record), [], tmp_path)
    query_heads, _, kv_groups, removed = figures[0].axes[0].containers
    # 3 of 4 query heads of each of 3 KV heads, and 1 of 3 KV heads with its 4 query heads.
    assert [query_heads[0].get_height(), kv_groups[0].get_height(), removed[0].get_height()] == [9, 4, 8]
    assert [bars[0].get_hatch() is not None for bars in figures[0].axes[0].containers] == [False, True, False, False]


def test_search_plot_is_relative_to_dense_and_marks_best_policy(figures, tmp_path):
    write_plots(Record.from_dict(make_record(2)), make_log(20), tmp_path)
    axes = figures[1].axes[0]
    candidates, finalists, star, failed = (points.get_offsets().tolist() for points in axes.collections)
    assert star == [[20, 1.5]] and star[0] in finalists and failed == [[1, 1]]
    assert len(candidates) == 17
    assert {line.get_label(): line.get_ydata()[0] for line in axes.lines} == {"uniform": 20.0, "dense": 1}


def test_pareto_plot_has_models_with_finite_perplexity(figures, tmp_path):
    write_front(FRONT, "sparsity", WINDOWS, tmp_path / "front.png")
    axes = figures[0].axes[0]
    assert [*zip(*axes.lines[0].get_data())] == [(10, 20), (8, 300), (7, 400)]
    assert [text.get_text() for text in axes.texts] == ["30 %", "40 %"]
    limits = [dict.fromkeys(("asked/memory", "reached/memory"), 2**30 * size) for size in (3, 2, 1)]
    pruned = [record | limit | {"dense/memory": 2**32} for record, limit in zip(FRONT, limits)]
    write_front([*pruned, FRONT[-1]], "memory", WINDOWS, tmp_path / "memory.png")
    axes = figures[1].axes[0]
    assert [*axes.lines[0].get_xdata()] == [4, 2, 1] and [text.get_text() for text in axes.texts] == ["2GiB", "1GiB"]
