from dataclasses import replace

import datasets
import pytest
import torch

from optimum_ffp.config.texts import Text, TextMix
from optimum_ffp.data import DataRequest, DataSplits, load_windows
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


SELF = TextMix.parse("self")
REQUEST = DataRequest(SELF, SELF, length=16, calibration=8, search=3, held_out=2, test=4, seed=0)
EVERYTHING = replace(REQUEST, calibration=1000, search=600, held_out=400, test=1000)


def load(dataset, request=REQUEST, reported=None, tokenizer=None):
    texts = TextMix.parse(str(dataset))
    reported = TextMix.parse(str(reported)) if reported else texts.reported
    request = replace(request, texts=texts, reported=reported)
    return load_windows(tokenizer or make_tokenizer(), make_tiny_model(), request)


def rows_of(*windows):
    return [tuple(row) for part in windows for row in part.tokens.tolist()]


def words_of(text):
    return [int(word[1:]) for word in text.split()]


def is_window_of(window, text):
    words = " ".join(map(str, words_of(text)))
    # A window may span two blocks of the text.
    return any(" ".join(map(str, part)) in words for part in (window[:8], window[8:]))


def windows_per_text(windows, *texts):
    """Number of windows that are of each text."""
    return [sum(is_window_of(window, text) for window in windows.tokens.tolist()) for text in texts]


def test_folder_splits_are_used_for_their_roles(data_folder):
    data = load(data_folder)
    assert [len(part) for _, part in data.roles()] == [8, 3, 2, 4]
    assert [part.split for _, part in data.roles()] == ["train", "validation", "validation", "test"]
    assert data.test.tokens.flatten().tolist() == words_of(make_text(1500, 2))[:64]
    for (_, windows), count, seed in zip(data.roles(), (8, 3, 2), (0, 1, 1)):
        assert windows_per_text(windows, make_text(1500, seed)) == [count]
    of_test = {"dataset": str(data_folder), "split": "test", "windows": 4, "window_length": 16, "start_token": False}
    # Words and the spaces before them.
    words = [word for first in range(0, 64, 16) for word in make_text(1500, 2).split()[first + 1 : first + 16]]
    of_test["bytes"] = sum(len(word) + 1 for word in words)
    assert data.test.describe() == of_test | {"sha256": {"./data": Text(str(data_folder)).sha256()}}
    assert len(load(data_folder, replace(REQUEST, test=None)).test) == 1500 // 16


def test_seed_changes_calibration_but_not_test_windows(data_folder):
    first, again, other = load(data_folder), load(data_folder), load(data_folder, replace(REQUEST, seed=1))
    assert torch.equal(first.calibration.tokens, again.calibration.tokens)
    assert not torch.equal(first.calibration.tokens, other.calibration.tokens)
    assert torch.equal(first.test.tokens, other.test.tokens)


def test_few_windows_are_spread_over_long_text(tmp_path):
    # A block is shorter than the run of a word, so that two windows of one block begin with the same word.
    for split in ("train", "validation", "test"):
        (tmp_path / f"{split}.txt").write_text("\n".join(f"w{run}" for run in range(3, 123) for _ in range(40)))
    windows = load(tmp_path, replace(REQUEST, calibration=4)).calibration
    assert len(set(windows.tokens[:, 0].tolist())) == 4


@pytest.mark.parametrize("between", ["\n", " "], ids=["lines", "one-line"])
def test_single_file_is_divided_into_disjoint_roles(tmp_path, between):
    text = " ".join(f"w{number % 125 + 3}" for number in range(0, 7 * 125 * 125, 7)[:3000])
    (tmp_path / "text.txt").write_text(text.replace(" ", between))
    data, few = load(tmp_path / "text.txt", EVERYTHING), load(tmp_path / "text.txt")
    parts = [part for _, part in data.roles()]
    roles = ("calibration", "search", "search", "test")
    assert [part.split for part in parts] == [f"{role} part of text.txt" for role in roles]
    counts = [len(part) for part in parts]
    assert sum(counts) == pytest.approx(3000 // 16, abs=3) and counts == pytest.approx([112, 22, 15, 37], abs=2)
    # The same parts for any number of windows: what is a test window once is never one to calibrate on.
    assert torch.equal(few.test.tokens, data.test.tokens[:4])
    words, begin = words_of(text), 3000 - 16 * counts[3]
    assert data.test.tokens.flatten().tolist() in (words[begin - n : 3000 - n] for n in range(16))


def test_without_validation_split_search_uses_part_of_train(data_folder):
    (data_folder / "validation.txt").unlink()
    data = load(data_folder, EVERYTHING)
    assert [data.calibration.split, data.search.split, data.test.split] == [
        "calibration part of train",
        "search part of train",
        "test",
    ]
    assert [len(data.calibration), len(data.search) + len(data.held_out)] == pytest.approx([75, 18], abs=1)
    assert windows_per_text(data.search, make_text(1500)) == [len(data.search)]


def test_text_without_splits_has_at_most_100_test_windows(tmp_path):
    (tmp_path / "text.txt").write_text(make_text(600 * 16))
    assert len(load(tmp_path / "text.txt", replace(REQUEST, test=None)).test) == 100
    assert len(load(tmp_path / "text.txt", replace(REQUEST, test=110)).test) == 110


@pytest.mark.parametrize("text", ["", "\n\n  \n", "w3 w4 w5", "w3 " * 40])
def test_too_short_text_is_rejected(tmp_path, text):
    (tmp_path / "text.txt").write_text(text)
    with pytest.raises(FFPError, match="no text|one window of 16 tokens"):
        load(tmp_path / "text.txt")


def test_eval_dataset_replaces_only_test_windows(data_folder, tmp_path):
    (tmp_path / "other.txt").write_text(make_text(900, 9))
    data = load(data_folder, reported=f"{tmp_path / 'other.txt'},{data_folder}")
    assert [test.dataset for test in data.tests] == [str(tmp_path / "other.txt"), str(data_folder)]
    alone = load(data_folder)
    assert torch.equal(data.calibration.tokens, alone.calibration.tokens)
    assert torch.equal(data.tests[1].tokens, alone.test.tokens)


def test_mix_has_given_shares_and_test_windows_per_dataset(data_folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(make_text(3000, 9))
    mix = f"{data_folder}:0.5,{other}:0.25,self:0.25"
    data, again = load(mix), load(mix)
    assert windows_per_text(data.calibration, make_text(1500, 0), make_text(3000, 9)) == [4, 2]
    assert windows_per_text(data.search, make_text(1500, 1), make_text(3000, 9)) == [1, 1]
    assert [len(data.calibration), len(data.search), len(data.held_out)] == [8, 3, 3]
    assert data.calibration.dataset == mix
    parts = ("4 of train", "2 of calibration part of other.txt", "2 of sampled")
    assert data.calibration.split == ", ".join(parts)
    assert rows_of(data.calibration, data.search) == rows_of(again.calibration, again.search)
    assert [(test.dataset, test.split, len(test)) for test in data.tests] == [
        (str(data_folder), "test", 4),
        (str(other), "test part of other.txt", 4),
    ]
    assert not torch.equal(load(mix, replace(REQUEST, seed=1)).calibration.tokens, data.calibration.tokens)


def test_self_generated_windows_are_seeded_and_disjoint():
    data, again = load("self"), load("self")
    windows = rows_of(*(part for _, part in data.roles()))
    assert len(set(windows)) == 17 and windows == rows_of(*(part for _, part in again.roles()))
    assert REQUEST.generated == 17


def test_unrequested_roles_have_no_windows(data_folder):
    data = load(data_folder, replace(REQUEST, calibration=0, search=0))
    for splits in (data, DataSplits.from_list(data.to_list())):
        assert [len(windows) for _, windows in splits.roles()] == [0, 0, 2, 4]
    data = load(data_folder, replace(REQUEST, calibration=0, search=0, held_out=0))
    for splits in (data, DataSplits.from_list(data.to_list())):
        assert [len(windows) for _, windows in splits.roles()] == [0, 0, 0, 4]


@pytest.mark.parametrize(("words", "counts"), [(160 * 16, [16, 16]), (60 * 16, [6, 6]), (15 * 16, [1, 2])])
def test_short_text_is_divided_into_search_and_held_out_windows(tmp_path, words, counts):
    (tmp_path / "text.txt").write_text(make_text(words))
    data = load(tmp_path / "text.txt", replace(REQUEST, search=16, held_out=16))
    assert [len(data.search), len(data.held_out)] == pytest.approx(counts, abs=1)
    assert not {*rows_of(data.search)} & {*rows_of(data.held_out)} and len(data.held_out) and len(data.search)


def test_every_role_has_and_records_start_token(data_folder):
    tokenizer = with_start_token(make_tokenizer())
    data = load(data_folder, tokenizer=tokenizer)
    without = load(data_folder, replace(REQUEST, start_token="never"), tokenizer=tokenizer)
    for (_, windows), (_, plain) in zip(data.roles(), without.roles()):
        assert (windows.tokens[:, 0] == 0).all() and windows.describe()["start_token"] and windows.first(2).start_token
        assert (plain.tokens != 0).all() and not plain.start_token


def test_too_few_windows_is_warning_with_counts(tmp_path, caplog):
    (tmp_path / "little.txt").write_text(make_text(180))
    load(tmp_path / "little.txt")
    assert ["6 of 8" in line for line in caplog.messages] == [True, False, False, False]
    caplog.clear()
    load(tmp_path / "little.txt", replace(REQUEST, calibration=1, search=1, held_out=1, test=None))
    assert not caplog.messages


def test_hub_dataset_is_streamed_only_as_needed(monkeypatch):
    read = []

    def rows(split):
        for line in make_text(40_000, len(split)).splitlines():
            read.append(split)
            yield {"text": line}

    class Builder:
        name = "parquet"

        def as_streaming_dataset(self):
            return {
                split: datasets.IterableDataset.from_generator(rows, gen_kwargs={"split": split})
                for split in ("train", "validation", "test")
            }

    def find(repository, config, token):
        assert (repository, config, token) == ("someone/corpus", "small", "hf_secret")
        return Builder()

    monkeypatch.setattr(datasets, "load_dataset_builder", find)
    monkeypatch.setattr("optimum_ffp.data.loading.MAX_TEXT_CHARACTERS", 5_000)
    data = load("someone/corpus:small", replace(REQUEST, token="hf_secret"))
    assert [len(windows) for _, windows in data.roles()] == [8, 3, 2, 4]
    assert all(count < 500 for count in map(read.count, ("train", "validation", "test")))
