import json
import re
from html.parser import HTMLParser

import pytest

from optimum_ffp.allocation.policy import GROUP_NAMES
from optimum_ffp.checkpoint.card import command_line
from optimum_ffp.checkpoint.html_report import describe_text, format_number, write_report
from optimum_ffp.checkpoint.plots import write_plots
from optimum_ffp.checkpoint.saving import save_checkpoint
from tests.helpers import SETTINGS, make_pruner, prune_all


pytestmark = pytest.mark.slow


VOID = {"img", "meta", "br"}


class Page(HTMLParser):
    """Headings, pictures, links and text of a page, which must be well-formed."""

    def __init__(self, html: str):
        super().__init__()
        self.headings, self.pictures, self.links, self.tags, self.text = [], [], [], set(), ""
        self._open: list[str] = []
        self.feed(html)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        self.tags.add(tag)
        values = dict(attributes)
        assert not any(name.startswith("on") for name in values)
        if tag == "img":
            self.pictures.append(values)
        self.links += [values[name] for name in ("href", "src") if name in values]
        if tag not in VOID:
            self._open.append(tag)

    def handle_endtag(self, tag):
        assert self._open.pop() == tag

    def handle_data(self, data):
        if self._open and self._open[-1] == "h2":
            self.headings.append(data)
        if "style" not in self._open:
            self.text += f"{data} "


def report(result, folder, name="report") -> Page:
    target = folder / name
    target.mkdir()
    return Page(write_report(result, target, write_plots(result, target)).read_text(encoding="utf-8"))


@pytest.fixture
def swept(save_tiny_model, data_folder):
    *_, result = prune_all(make_pruner(save_tiny_model(), data_folder, search_steps=16), [0.2, 0.4])
    return result


def test_report_has_all_that_a_sweep_has_and_needs_nothing_beside_it(swept, tmp_path):
    page = report(swept, tmp_path)
    assert page.headings == [
        *("Results", "Policy", "Search", "Size and perplexity", "Calibration"),
        *("Cost", "Reproduce"),
    ]
    assert len(page.pictures) == 4 and all(picture["alt"] for picture in page.pictures)
    # The base model is a local folder: nothing is linked, and nothing is loaded.
    assert all(link.startswith("data:image/png;base64,") for link in page.links)
    assert "script" not in page.tags and "http" not in page.text


def test_figures_stand_beside_what_they_were_measured_on(swept, tmp_path):
    text = " ".join(report(swept, tmp_path).text.split())
    count, length = SETTINGS["eval_samples"], SETTINGS["seq_len"]
    for name in ("dense", "calibrated"):
        assert f"{swept.tests[0][1][name]:,.3f}" in text
    assert f"data test {count} windows of {length} tokens" in text
    assert f"{swept.search.best_perplexity:,.3f}" in text
    assert f"{100 * swept.policy.sparsity:.2f} %" in text and f"{swept.parameters:,}" in text
    for stage in swept.cost.seconds:
        assert stage in text
    assert command_line(swept) in text
    for unit, size in zip(swept.policy.units, swept.policy.sizes):
        assert f"{size} of {unit.groups} {GROUP_NAMES[unit.group]}" in text
    errors = [[row[name] for row in swept.calibration["layers"]] for name in ("before", "error")]
    before, after = (100 * sum(rows) / len(rows) for rows in errors)
    assert f"{before:.2f} % before and {after:.2f} % after distillation" in text
    before, after = (swept.calibration["last_norm"][name] for name in ("before", "error"))
    assert f"went from {before:.4f} to {after:.4f} nats" in text


def test_report_knows_no_folder_of_the_machine(swept, tmp_path, data_folder):
    target = tmp_path / "saved"
    save_checkpoint(swept, target)
    html = (target / "report.html").read_text(encoding="utf-8")
    assert str(tmp_path) not in html and str(data_folder) not in html
    assert json.loads((target / "ffp_config.json").read_text())["search"]["front"]["pruned"]


def test_what_a_run_does_not_have_has_no_section(save_tiny_model, data_folder, tmp_path):
    folder = save_tiny_model()
    plain = make_pruner(folder, data_folder, method="uniform", calibration="none").prune(0.3)
    page = report(plain, tmp_path, "plain")
    assert page.headings == ["Results", "Policy", "Cost", "Reproduce"] and len(page.pictures) == 1
    ridge = make_pruner(folder, data_folder, calibration="ridge", reward="pruned").prune(0.3)
    page = report(ridge, tmp_path, "ridge")
    assert page.headings == ["Results", "Policy", "Search", "Cost", "Reproduce"]
    assert "pruned, before calibration" in page.text and "λ" not in page.text


def test_names_are_escaped_and_only_hub_ids_are_linked(save_tiny_model, data_folder, tmp_path):
    result = make_pruner(save_tiny_model(), data_folder, method="uniform").prune(0.3)
    result.base_model = "owner/name"
    assert "https://huggingface.co/owner/name" in report(result, tmp_path, "hub").links
    result.base_model = "/models/<script>alert(1)<b>"
    page = report(result, tmp_path, "local")
    assert "script" not in page.tags and not any("huggingface" in link for link in page.links)


def test_figures_in_words():
    assert format_number(1234.5678) == "1,234.568" and format_number(float("inf")) == "not finite"
    windows = {"dataset": "self", "split": "test", "windows": 3, "window_length": 24}
    assert describe_text(windows) == "text sampled from the model itself, test, 3 windows of 24 tokens, no start token"


def test_candidates_without_a_finite_perplexity_are_counted(swept, tmp_path):
    swept.search.non_finite = 2
    assert re.search(r"perplexity of 2 of the candidates is not finite", report(swept, tmp_path).text)
