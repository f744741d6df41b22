import json
from html.parser import HTMLParser
from pathlib import Path

import pytest

from optimum_ffp.checkpoint.html_report import write_report
from optimum_ffp.utils.record import Record


VOID = {"meta", "img", "br"}


class Checked(HTMLParser):
    """Fails at tags that aren't closed in order; collects headings, pictures and links."""

    def __init__(self, text: str):
        super().__init__()
        self.open, self.sources = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.sources += [value for name, value in attributes if name in ("src", "href")]
        self.open += [tag] * (tag not in VOID)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


@pytest.fixture
def record():
    return json.loads((Path(__file__).parent / "record.json").read_text())


def test_report_is_one_file_with_all_results(record, tmp_path):
    record["files"] = ["policy.png", "search.png", "README.md"]
    for name in record["files"]:
        (tmp_path / name).write_bytes(b"picture")
    record["provenance"]["perplexity"]["calibrated"] = None
    record["dataset"] = "<script>.jsonl"
    write_report(Record.from_dict(record), tmp_path)
    text = (tmp_path / "report.html").read_text()
    assert Checked(text).sources == ["https://huggingface.co/org/tiny", *["data:image/png;base64,cGljdHVyZQ=="] * 2]
    for part in (
        "31,456",
        "11,520",
        "not finite",
        "1.005",
        "24 of 48 channels",
        "policy “uniform”",
        "layers: 22.50 and 0.1600",
        "--config ffp_config.json",
    ):
        assert part in text
    assert "<script>" not in text and "hidden_sizes" in text and "wikitext2" in text


def test_report_omits_sections_without_data(record, tmp_path):
    record["files"] = ["policy.png"]
    (tmp_path / "policy.png").write_bytes(b"picture")
    record["provenance"] |= {"held_out": {}, "given_data": True}
    record["policy"]["units"][0] |= {"group": "all_heads", "items": 1, "kept": 0}
    write_report(Record.from_dict(record), tmp_path)
    text = (tmp_path / "report.html").read_text()
    Checked(text)
    assert not any(f"<h2>{heading}</h2>" in text for heading in ("Search", "Calibration", "Size and perplexity"))
    assert "passed from Python" in text and "0 of 1" in text
