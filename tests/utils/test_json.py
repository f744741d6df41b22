import json
import math

import pytest

from optimum_ffp.utils.json import to_json


FIGURES = {"loss": [0.1 + 0.2, math.nan], "more": ({"perplexity": math.inf, "tasks": [-math.inf, 3]}, None, "NaN")}


def test_nonfinite_numbers_are_written_as_null():
    expected = {"loss": [0.1 + 0.2, None], "more": [{"perplexity": None, "tasks": [None, 3]}, None, "NaN"]}
    for text in (to_json(FIGURES), to_json(FIGURES, indent=2)):
        assert json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not valid JSON")) == expected
