import json
from dataclasses import replace

import datasets
import pytest
import torch
from huggingface_hub import constants

from optimum_ffp.data import DataRequest, check_calibration_tokens, load_windows, read_splits
from optimum_ffp.data.self_generated import sample_from_model
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


REQUEST = DataRequest(length=16, calibration=8, search=3, test=4, seed=0)


def load(dataset, eval_dataset=None, request=REQUEST):
    return load_windows(str(dataset), eval_dataset and str(eval_dataset), make_tokenizer(), make_tiny_model(), request)


def rows_of(*windows):
    return [tuple(row) for part in windows for row in part.tokens.tolist()]


def test_folder_calibrates_on_train_searches_on_validation_reports_on_test(data_folder):
    data = load(data_folder)
    assert [len(part) for part in (data.calibration, data.search, data.test)] == [8, 3, 4]
    assert [part.split for part in (data.calibration, data.search, data.test)] == ["train", "validation", "test"]
    first = make_tokenizer()(make_text(1500, 2), add_special_tokens=False).input_ids
    assert data.test.tokens.flatten().tolist() == first[:64]
    of_test = {"dataset": str(data_folder), "split": "test", "windows": 4, "window_length": 16, "start_token": False}
    assert data.test.describe() == of_test


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


def test_rows_are_those_of_wikitext(tmp_path):
    (tmp_path / "text.txt").write_text(" \n = Title = \n \n Some words . \n")
    rows = read_splits(str(tmp_path / "text.txt"), REQUEST)["text.txt"]
    assert rows == ["", " = Title = \n", "", " Some words . \n"]


def test_seed_picks_calibration_windows_and_leaves_test_windows(data_folder):
    first, again = load(data_folder), load(data_folder)
    other = load(data_folder, request=DataRequest(16, 8, 3, 4, seed=1))
    assert torch.equal(first.calibration.tokens, again.calibration.tokens)
    assert not torch.equal(first.calibration.tokens, other.calibration.tokens)
    assert torch.equal(first.test.tokens, other.test.tokens)


def test_all_test_windows_if_no_number_is_given(data_folder):
    assert len(load(data_folder, request=DataRequest(16, 8, 3, None, 0)).test) == 1500 // 16


def test_eval_dataset_replaces_the_test_windows(data_folder, tmp_path):
    path = tmp_path / "other.txt"
    path.write_text(make_text(900, 9))
    data = load(data_folder, path)
    assert data.test.dataset == str(path) and data.calibration.dataset == str(data_folder)


def test_text_sampled_from_the_model_is_seeded_and_disjoint():
    data, again = load("self"), load("self")
    windows = rows_of(data.calibration, data.search, data.test)
    assert len(set(windows)) == 15 and windows == rows_of(again.calibration, again.search, again.test)
    assert "sampled from the model" in data.test.split


def test_the_model_writes_its_share_of_calibration_and_search_windows(data_folder):
    alone, mixed = load(data_folder), load(data_folder, request=replace(REQUEST, self_share=0.25))
    assert (len(mixed.calibration), len(mixed.search)) == (8, 3)
    for role, written in (("calibration", 2), ("search", 1)):
        text, both = set(rows_of(getattr(alone, role))), rows_of(getattr(mixed, role))
        own = [row for row in both if row not in text]
        # Mixed, so that any number of first windows has some of both.
        assert len(own) == written and own != both[-written:]
        assert all(row[0] == make_tokenizer().bos_token_id for row in own)
        assert getattr(mixed, role).split.endswith(f" and {written} sampled from the model")
    assert torch.equal(mixed.test.tokens, alone.test.tokens) and mixed.test.split == "test"
    again = load(data_folder, request=replace(REQUEST, self_share=0.25))
    assert torch.equal(again.calibration.tokens, mixed.calibration.tokens)


def test_of_less_text_the_model_writes_less(data_folder):
    data = load(data_folder, request=replace(REQUEST, calibration=1000, self_share=0.25))
    text = len(load(data_folder, request=replace(REQUEST, calibration=1000)).calibration)
    assert len(data.calibration) == text + round(text / 3)


def test_a_share_of_text_that_can_not_be_begun_is_refused(data_folder):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    request = replace(REQUEST, self_share=0.25)
    with pytest.raises(FFPError, match="neither a start nor an end token to sample text from.*leave self_share at 0"):
        load_windows(str(data_folder), None, tokenizer, make_tiny_model(), request)


def write(path, content):
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(
    ("content", "name", "message"),
    [
        (b"", "empty.txt", "holds no text"),
        (b"\n\n  \n", "blank.txt", "holds no text"),
        (b"\xff\xfe\x00\x01" * 40, "binary.txt", "can't be read: UnicodeDecodeError"),
        (b"w3 w4 w5", "short.txt", "less than one window of 16; lower seq_len"),
        (b"w3 " * 20, "two.txt", "gives 1 window"),
        (b'{"text": "w3"}\n{"text": "w\n', "broken.jsonl", "broken.jsonl, line 2 is no JSON: "),
        (b'{"text": "w3"}\n\n["w3"]\n', "array.jsonl", "line 3 is no JSON object: found list"),
        (b'{"text": "w3"}\n{"text": "w\\ud800"}\n', "half.jsonl", "line 2 is no JSON: .*surrogates"),
        (
            b'{"text": "w3"}\n{"text": 3}\n',
            "number.jsonl",
            "number.jsonl holds neither .* in row 2",
        ),
        (b"", "empty.jsonl", "holds no text: it has no rows"),
        (b'[{"text": "w3"}, 4]', "entry.json", "entry 2: found int"),
        (b"PAR1 nonsense", "broken.parquet", "can't be read"),
        (b"nonsense", "broken.txt.gz", "broken.txt.gz can't be read: BadGzipFile"),
        (b"text", "data.csv", "convert it"),
    ],
)
def test_broken_files_end_in_one_line(tmp_path, content, name, message):
    with pytest.raises(FFPError, match=message) as caught:
        load(write(tmp_path / name, content))
    assert "\n" not in str(caught.value)


def test_missing_files_and_splits(tmp_path, data_folder):
    with pytest.raises(FFPError, match="there is no file or folder .*nowhere.txt; name a local"):
        load(tmp_path / "nowhere.txt")
    (data_folder / "validation.txt").unlink()
    with pytest.raises(FFPError, match="has no validation file .* it holds test.txt, train.txt"):
        load(data_folder)


def test_no_hub_within_reach_names_the_alternatives(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    for offline, reason in ((False, "no route to host"), (True, "offline mode is on")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(FFPError, match=f"'wikitext2' can't be read from the Hub .{reason}.; name a .*, or self$"):
            load("wikitext2")


@pytest.mark.parametrize("splits", [["train", "validation", "test"], ["train"]])
def test_hub_dataset_is_streamed_by_split(monkeypatch, splits):
    asked = []

    def load_dataset(repository, config, split, streaming):
        asked.append((repository, config, split))
        lines = make_text(900, splits.index(split)).splitlines()
        return datasets.Dataset.from_dict({"text": lines}).to_iterable_dataset()

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda repository, config: splits)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load("someone/corpus:small")
    assert asked == [("someone/corpus", "small", split) for split in splits]
    assert len(data.test) == 4 and data.test.split == ("test" if len(splits) == 3 else "test part of train")


def test_text_to_report_on_is_written_alone(data_folder):
    """Neither more than that is written, nor what calibration has seen."""
    request = replace(REQUEST, self_share=0.25)
    assert request.written(str(data_folder), "self") == {"calibration": 2, "search": 1, "test": 4}
    asked = []

    def sample(model, tokenizer, count, *rest):
        asked.append(count)
        return sample_from_model(model, tokenizer, count, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_ffp.data.windows.sample_from_model", sample)
        data = load(data_folder, "self", request)
    assert asked == [7] and [len(part) for part in vars(data).values()] == [8, 3, 4]
    assert len(set(rows_of(*vars(data).values()))) == 15
    assert data.test.dataset == "self" and "sampled from the model" in data.test.split


def test_little_text_is_said_with_both_numbers(tmp_path):
    data = load(write(tmp_path / "little.txt", make_text(80).encode()))
    (calibration, *rest) = data.warnings(REQUEST)
    assert "(calibration part of little.txt) gives 3 of the 8 calibration windows of 16 tokens" in calibration
    assert len(rest) == 2
    assert data.warnings(replace(REQUEST, calibration=3, search=1, test=None)) == []


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


def test_too_few_tokens_to_calibrate_on():
    check_calibration_tokens(96, 1536)
    with pytest.raises(FFPError, match="95 calibration tokens are too few .* 1,536 channels: at least 96 .*give more"):
        check_calibration_tokens(95, 1536)


def test_a_special_token_that_the_model_does_not_know(tmp_path):
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    (tmp_path / "text.txt").write_text(make_text(1500) + "w5 <pad> w6\n")
    with pytest.raises(FFPError, match=r"text.txt.* has the token '<pad>', for which the model has no embedding"):
        load_windows(str(tmp_path / "text.txt"), None, tokenizer, make_tiny_model(), REQUEST)
