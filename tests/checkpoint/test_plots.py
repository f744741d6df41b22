from dataclasses import replace
from itertools import combinations
from types import SimpleNamespace

import numpy as np
import pytest
from matplotlib.figure import Figure

from optimum_ffp.allocation.policy import PruningPolicy, Unit
from optimum_ffp.checkpoint.plots import write_front, write_plots
from tests.helpers import make_record


pytestmark = pytest.mark.slow


def make_units(layers: int) -> tuple[Unit, ...]:
    return tuple(
        Unit(layer, kind, groups, 100) for layer in range(layers) for kind, groups in (("attention", 8), ("ffn", 96))
    )


def make_result(layers: int = 30, evaluations: int = 64, calibrated: bool = True, swept: bool = True):
    """What the plots read of a result, with a candidate that has no finite perplexity."""
    generator, units = np.random.default_rng(0), make_units(layers)
    policy = PruningPolicy(units, tuple(int(generator.integers(1, unit.groups + 1)) for unit in units))
    log = [
        {
            "evaluation": number,
            "target_sparsity": 0.1 + 0.2 * number / evaluations,
            "samples": 1 + 15 * number // evaluations,
            "perplexity": None if number == 3 else 20.0 + 300 * generator.random(),
            "reward": 0.0 if number == 3 else generator.random(),
            "final": number > 0.9 * evaluations,
        }
        for number in range(1, evaluations + 1)
    ]
    fits = [{"layer": layer, "before": generator.random(), "error": generator.random()} for layer in range(layers)]
    dense = {"parameters": 10_000_000, "search_perplexity": 20.0}
    row = {"parameters": 8_000_000, "search_perplexity": {"uniform": 400.0, "no-search": 31.0, "searched": 30.0}}
    return SimpleNamespace(
        policy=policy,
        log=log,
        parameters=8_000_000,
        search=make_record(front={"dense": dense, "pruned": [row]} if swept else None),
        calibration={"layers": fits} if calibrated else {},
    )


@pytest.fixture
def figures(monkeypatch) -> list[Figure]:
    """What is drawn, in place of files."""
    drawn = []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, dpi: drawn.append(figure))
    return drawn


def test_pictures_are_files_by_what_they_show(tmp_path):
    plots = write_plots(make_result(), tmp_path)
    assert plots == {name: f"{name}.png" for name in ("policy", "search", "calibration", "pareto")}
    assert all((tmp_path / file).read_bytes().startswith(b"\x89PNG") for file in plots.values())


def test_what_a_run_does_not_have_is_not_drawn(tmp_path):
    assert write_plots(make_result(evaluations=1, calibrated=False, swept=False), tmp_path) == {"policy": "policy.png"}


@pytest.mark.parametrize("layers, evaluations", [(1, 2), (3, 12), (30, 64), (80, 1000)])
def test_every_panel_shows_something_and_labels_keep_apart(figures, tmp_path, layers, evaluations):
    write_plots(make_result(layers, evaluations), tmp_path)
    assert len(figures) == 4
    for figure in figures:
        figure.canvas.draw()
        assert all(axes.has_data() for axes in figure.axes)
        for axis in (axis for axes in figure.axes for axis in (axes.xaxis, axes.yaxis)):
            labels = [label for label in axis.get_ticklabels() if label.get_text() and label.get_visible()]
            low, high = sorted(axis.get_view_interval())
            shown = [label for tick, label in zip(axis.get_ticklocs(), labels) if low <= tick <= high]
            boxes = [label.get_window_extent() for label in shown]
            assert not any(first.overlaps(second) for first, second in combinations(boxes, 2))


def test_policy_shows_every_unit(figures, tmp_path):
    result = make_result(30)
    write_plots(result, tmp_path)
    shown = [[bar.get_height() for bar in axes.patches] for axes in figures[0].axes]
    for heights, kind in zip(shown, ("attention", "ffn")):
        rates = [rate for unit, rate in zip(result.policy.units, result.policy.retentions) if unit.kind == kind]
        assert heights == pytest.approx([100 * rate for rate in rates])


def test_policy_tells_query_heads_from_kv_groups(figures, tmp_path):
    result = make_result(30)
    units = tuple(
        replace(unit, group="query_head") if unit.kind == "attention" and unit.layer % 3 else unit
        for unit in result.policy.units
    )
    result.policy = PruningPolicy(units, result.policy.sizes)
    write_plots(result, tmp_path)
    attention, ffn = figures[0].axes
    assert [bool(bar.get_hatch()) for bar in attention.patches] == [layer % 3 > 0 for layer in range(30)]
    assert attention.get_title(loc="left") == "attention (KV groups, query heads per KV head (hatched))"
    assert ffn.get_title(loc="left") == "FFN (channels)" and not any(bar.get_hatch() for bar in ffn.patches)


def test_calibration_shows_every_distilled_layer_before_and_after(figures, tmp_path):
    result = make_result(3)
    result.calibration = {"layers": [{"layer": i, "before": 0.1 * i, "error": 0.05 * i} for i in range(3)]}
    write_plots(result, tmp_path)
    heights = [bar.get_height() for bar in figures[2].axes[0].patches]
    assert heights == pytest.approx([0, 10, 20, 0, 5, 10])


def test_front_has_a_line_a_baseline_and_the_dense_model(figures, tmp_path):
    front = make_result().search.front
    write_front(front["dense"], front["pruned"], "words, test", tmp_path / "front.png")
    (axes,) = figures[0].axes
    assert [line.get_label() for line in axes.lines] == ["uniform", "no-search", "searched", "dense"]
    assert axes.lines[2].get_xydata().tolist() == [[8.0, 30.0], [10.0, 20.0]]
    assert axes.get_yscale() == "log"


def test_the_front_names_its_windows_whatever_they_are_called(tmp_path, monkeypatch):
    """A long name is wrapped, and dollar signs are no formula."""
    drawn, save = [], Figure.savefig

    def keep(figure, *arguments, **options):
        drawn.append(figure)
        save(figure, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", keep)
    front, windows = make_result().search.front, f"it's $x_y^^$.txt, {'a text of a long name, ' * 8}no start token"
    write_front(front["dense"], front["pruned"], windows, tmp_path / "front.png")
    ((axes,), (width, height)) = drawn[0].axes, drawn[0].canvas.get_width_height()
    assert axes.get_title().replace("\n", " ") == f"Perplexity: {windows}" and axes.get_ylabel() == "perplexity"
    for text in (axes.title, axes.yaxis.label, axes.xaxis.label, drawn[0]._suptitle):
        box = text.get_window_extent()
        assert 0 <= box.x0 < box.x1 <= width and 0 <= box.y0 < box.y1 <= height
