from dataclasses import replace

import pytest
import torch

from optimum_ffp.data import DataRequest, Windows, load_windows
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


REQUEST = DataRequest(length=16, calibration=8, search=3, test=4, seed=0)


def test_little_text_is_said_with_both_numbers(tmp_path):
    path = tmp_path / "little.txt"
    path.write_text(make_text(80))
    data = load_windows(str(path), None, make_tokenizer(), make_tiny_model(), REQUEST)
    (calibration, *rest) = data.warnings(REQUEST)
    assert "(calibration part of little.txt) gives 3 of the 8 calibration windows of 16 tokens" in calibration
    assert len(rest) == 2
    assert data.warnings(replace(REQUEST, calibration=3, search=1, test=None)) == []
    # Of a recovery.
    assert "of the 3 held-out windows of 16 tokens" in data.warnings(replace(REQUEST, calibration=0))[0]


@pytest.mark.parametrize("make", [make_tokenizer, lambda: with_start_token(make_tokenizer())], ids=["plain", "start"])
@pytest.mark.parametrize("moved", [0, 5])
def test_text_that_is_repeated_is_found_wherever_it_begins(tmp_path, make, moved):
    words = make_text(1600).split()
    for split, part in {"train": words, "validation": make_text(900, 1).split(), "test": words[moved:]}.items():
        (tmp_path / f"{split}.txt").write_text(" ".join(part))
    # Two runs of 64 tokens, of which both must be found.
    request = DataRequest(length=130, calibration=12, search=3, test=4, seed=0)
    data = load_windows(str(tmp_path), None, make(), make_tiny_model(), request)
    assert data.repeated == {"test": 4}
    assert any("4 of 4 test windows repeat text" in line for line in data.warnings(request))


def test_repetitions_are_counted_in_every_text(tmp_path):
    (tmp_path / "a.txt").write_text(make_text(400))
    (tmp_path / "b.txt").write_text(make_text(400, 1) + make_text(400)[: len(make_text(400)) // 2])
    paths = f"{tmp_path / 'a.txt'},{tmp_path / 'b.txt'}"
    data = load_windows(paths, None, make_tokenizer(), make_tiny_model(), REQUEST)
    repeated = [test.repeating(data.calibration, data.search) for test in data.tests]
    assert repeated[0] == 0 and data.repeated.get("test", 0) == sum(repeated)


@pytest.mark.parametrize("offset", [0, 5, 31])
@pytest.mark.parametrize(("length", "trained_length"), [(32, 16), (65, 128), (160, 96), (512, 129), (512, 2048)])
@pytest.mark.parametrize("start_token", [True, False])
def test_windows_are_found_in_text_to_train_on(offset, length, trained_length, start_token):
    tokens = torch.randint(2, 1000, (40, length), generator=torch.Generator().manual_seed(0))
    # Half of them wholly, a third of others, at any offset and without a loss in places.
    text = torch.cat([torch.full((offset,), 1), tokens[:20].flatten(), *(row[: length // 3] for row in tokens[20:])])
    text = torch.cat([text, torch.randint(2, 1000, (2 * trained_length,))])
    start = [torch.zeros(len(text) // trained_length, 1, dtype=torch.int64)] if start_token else []
    trained = text[: len(text) // trained_length * trained_length].view(-1, trained_length)
    trained = torch.cat([*start, trained], 1).int()
    trained[::2, 5:] = -1 - trained[::2, 5:]
    if start_token:
        tokens = torch.cat([torch.zeros(40, 1, dtype=torch.int64), tokens], 1)
    windows = Windows(tokens, "text", "test", start_token)
    assert windows.repeated_in(trained) == windows.first(20).repeated_in(trained) == 20


def test_a_rule_that_many_texts_have_is_no_repetition():
    tokens = torch.randint(2, 1000, (8, 512), generator=torch.Generator().manual_seed(0))
    tokens[:, 100:180] = 1
    trained = torch.full((2, 512), 1)
    assert Windows(tokens, "text", "test").repeated_in(trained) == 0
