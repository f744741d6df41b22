import json
from dataclasses import replace
from types import SimpleNamespace

import datasets
import pytest
import torch

from optimum_ffp.data import DataRequest
from optimum_ffp.data.roles import load_roles
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer


REQUEST = DataRequest(length=16, calibration=8, search=3, test=4, seed=0)


def load(dataset, request=REQUEST):
    return SimpleNamespace(**load_roles(str(dataset), make_tokenizer(), make_tiny_model(), request, tested=True))


def rows_of(*windows):
    return [tuple(row) for part in windows for row in part.tokens.tolist()]


@pytest.mark.parametrize("tested", [True, False])
def test_there_are_no_windows_of_roles_that_are_not_asked_for(data_folder, tested):
    found = load_roles(str(data_folder), make_tokenizer(), make_tiny_model(), replace(REQUEST, search=0), tested)
    assert {role: len(windows) for role, windows in found.items()} == {
        "calibration": 8,
        "search": 0,
        "test": 4 * tested,
    }


@pytest.mark.parametrize("suffix", ["txt", "jsonl", "parquet"])
def test_one_file_is_cut_into_disjoint_parts(tmp_path, suffix):
    path = tmp_path / f"text.{suffix}"
    lines = make_text(900).splitlines()
    if suffix == "txt":
        path.write_text("\n".join(lines))
    elif suffix == "jsonl":
        path.write_text("".join(json.dumps({"text": line}) + "\n" for line in lines))
    else:
        datasets.Dataset.from_dict({"text": lines}).to_parquet(path)
    data = load(path)
    windows = rows_of(data.calibration, data.search, data.test)
    assert len(windows) == len(set(windows)) == 15
    assert "calibration part" in data.calibration.split and "test part" in data.test.split


def test_seed_picks_calibration_windows_and_leaves_test_windows(data_folder):
    first, again = load(data_folder), load(data_folder)
    other = load(data_folder, request=DataRequest(16, 8, 3, 4, seed=1))
    assert torch.equal(first.calibration.tokens, again.calibration.tokens)
    assert not torch.equal(first.calibration.tokens, other.calibration.tokens)
    assert torch.equal(first.test.tokens, other.test.tokens)


def test_all_test_windows_if_no_number_is_given(data_folder):
    assert len(load(data_folder, request=DataRequest(16, 8, 3, None, 0)).test) == 1500 // 16


def test_of_a_text_without_splits_no_more_test_windows_than_a_hundred(tmp_path):
    (tmp_path / "text.txt").write_text(make_text(600 * 16))
    found = load(tmp_path / "text.txt", request=replace(REQUEST, test=None)).test
    assert len(found) == 100
    more = load(tmp_path / "text.txt", request=replace(REQUEST, test=110)).test
    assert len(more) == 110 and torch.equal(more.tokens[:100], found.tokens)


@pytest.mark.parametrize("samples, test", [(8, 2), (2048, None), (1, 800)])
def test_a_text_without_splits_is_divided_alike_for_any_number_of_windows(tmp_path, monkeypatch, samples, test):
    """However many are asked for: what is a test window once is never one to calibrate on."""
    monkeypatch.setattr("optimum_ffp.data.sources.CHARACTERS", 4000)
    (tmp_path / "long.txt").write_text(make_text(3000))
    few = load(tmp_path / "long.txt", request=replace(REQUEST, test=1))
    found = load(tmp_path / "long.txt", request=DataRequest(16, samples, 32, test, seed=0))
    assert torch.equal(found.test.tokens[:1], few.test.tokens)


def test_without_validation_a_part_of_train_is_searched_on(data_folder):
    (data_folder / "validation.txt").unlink()
    data = load(data_folder, request=replace(REQUEST, calibration=1000, search=1000))
    count = 1500 // 16
    for role, windows in (("calibration", count - round(0.2 * count)), ("search", round(0.2 * count))):
        # No part of train is kept for the test.
        assert getattr(data, role).split == f"{role} part of train" and len(getattr(data, role)) == windows
    assert not {*rows_of(data.calibration)} & {*rows_of(data.search)}
    words = make_tokenizer()(make_text(1500, 2), add_special_tokens=False).input_ids
    assert data.test.split == "test" and data.test.tokens.flatten().tolist() == words[:64]
    assert len(load(data_folder, request=replace(REQUEST, test=None)).test) == 1500 // 16


@pytest.mark.parametrize("words", [16 * 13, 16 * 18, 16 * 63, 16 * 63 + 9])
@pytest.mark.parametrize(("length", "test_length"), [(4, 16), (16, 4), (12, 16)])
def test_windows_of_other_lengths_end_before_the_test_windows(tmp_path, words, length, test_length):
    (tmp_path / "text.txt").write_text(" ".join(f"w{number}" for number in range(3, 120)) + " " + make_text(words))
    request = DataRequest(length, 1000, 1000, 1000, seed=0, test_length=test_length)
    data = load(tmp_path / "text.txt", request=request)
    text = make_tokenizer()((tmp_path / "text.txt").read_text(), add_special_tokens=False).input_ids
    tested = len(text) // test_length * test_length - data.test.tokens.numel()
    assert data.test.tokens.flatten().tolist() == text[tested : tested + data.test.tokens.numel()]
    # All that is before them is used, but for what is shorter than a window.
    used = len(data.calibration) + len(data.search)
    assert used == tested // length and len(data.search) == max(1, round(0.2 * (len(text) // length)))
    alone = load(tmp_path / "text.txt", request=replace(request, calibration=0, search=0, length=test_length))
    assert torch.equal(alone.test.tokens, data.test.tokens)


def test_text_that_gives_test_windows_alone_may_be_short(data_folder, tmp_path):
    (tmp_path / "short.txt").write_text(make_text(20, 9))
    data = load(tmp_path / "short.txt", replace(REQUEST, calibration=0, search=0))
    assert len(data.test) == 1 and data.test.split == "test part of short.txt"
    (data_folder / "validation.txt").unlink()
    (data_folder / "train.txt").write_text(make_text(35, 9))
    data = load(data_folder)
    assert [len(part) for part in (data.calibration, data.search, data.test)] == [1, 1, 4]
    (data_folder / "train.txt").write_text(make_text(20, 9))
    with pytest.raises(
        FFPError, match=r"gives 1 window\(s\); calibration and search need one each: use more text or a"
    ):
        load(data_folder)
