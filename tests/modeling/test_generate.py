"""The code that checkpoints carry is checked in, and must be what its templates give."""

import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from optimum_ffp.modeling import generate
from optimum_ffp.modeling.families import FAMILIES, Family
from tests.modeling.families.test_custom_family import STARCODER2


# Mixtures have none.
DENSE = [family for family in FAMILIES.values() if family.classes]


@pytest.mark.parametrize("family", [*DENSE, STARCODER2], ids=lambda family: family.model_type)
def test_generated_modeling_code_is_up_to_date(family):
    path = Path(find_spec(family.modeling or f"optimum_ffp.modeling.{family.modeling_module}").origin)
    if path.read_text(encoding="utf-8") != generate.render(family):
        pytest.fail(f"{path.name} isn't what its template gives; run: make style", pytrace=False)


def test_generate_command_writes_file_of_custom_family(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["generate", "starcoder2", "--folder", str(tmp_path)])
    generate.main()
    (path,) = tmp_path.iterdir()
    assert path.name == "modeling_ffp_starcoder2.py" and path.read_text() == generate.render(STARCODER2)


def test_family_of_unknown_classes_raises_key_error():
    with pytest.raises(KeyError, match="nosuchmodel"):
        generate.render(Family("nosuchmodel"))
