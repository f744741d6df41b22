import pytest
from huggingface_hub import constants

from optimum_ffp.hub.license import read_license


def write_card(folder, **fields):
    lines = [f"{name}: {value}" for name, value in fields.items()]
    (folder / "README.md").write_text("\n".join(["---", *lines, "---", "# A model"]))
    return folder


def test_license_is_read_from_model_card(tmp_path):
    assert read_license(write_card(tmp_path, license="mit", language="en")) == {"license": "mit"}
    named = {"license": "other", "license_name": "tiny", "license_link": "https://example.org/LICENSE"}
    assert read_license(write_card(tmp_path, **named)) == named
    # A file beside a local card.
    assert read_license(write_card(tmp_path, license="other", license_link="LICENSE")) == {"license": "other"}


@pytest.mark.parametrize("content", [None, "", "---\nlicense: [\n---\n", "# No metadata", "---\nlicense: 3\n---\n"])
def test_missing_or_malformed_model_card_has_no_license(tmp_path, content, monkeypatch):
    if content is not None:
        (tmp_path / "README.md").write_text(content)
    assert read_license(tmp_path) == {}
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert read_license("someone/model", cache_dir=tmp_path) == {}
