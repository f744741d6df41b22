from dataclasses import replace

import datasets
import pytest
import torch
from huggingface_hub import constants

from optimum_ffp.data import DataRequest, check_calibration_tokens, load_windows, read_splits
from optimum_ffp.data.self_generated import sample_from_model
from optimum_ffp.data.sources import stream_splits
from optimum_ffp.errors import FFPError
from tests.helpers import make_text, make_tiny_model, make_tokenizer


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


def test_rows_are_those_of_wikitext(tmp_path):
    (tmp_path / "text.txt").write_text(" \n = Title = \n \n Some words . \n")
    rows = read_splits(str(tmp_path / "text.txt"), REQUEST)["text.txt"]
    assert rows == ["", " = Title = \n", "", " Some words . \n"]


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
    alone, mixed = load(data_folder), load(f"{data_folder}:0.75,self:0.25")
    assert (len(mixed.calibration), len(mixed.search)) == (8, 3)
    for role, written in (("calibration", 2), ("search", 1)):
        known, both = set(rows_of(getattr(alone, role))), rows_of(getattr(mixed, role))
        own = [row for row in both if row not in known]
        # Mixed, so that any number of first windows has some of both.
        assert len(own) == written and own != both[-written:]
        assert all(row[0] == make_tokenizer().bos_token_id for row in own)
        text = len(both) - written
        source = {"calibration": "train", "search": "validation"}[role]
        assert getattr(mixed, role).split == f"{text} of {source}, {written} of text sampled from the model"
        assert getattr(mixed, role).written == written
    assert (alone.written_tokens, mixed.written_tokens) == (0, 3 * REQUEST.length)
    assert torch.equal(mixed.test.tokens, alone.test.tokens) and mixed.test.split == "test"
    again = load(f"{data_folder}:0.75,self:0.25")
    assert torch.equal(again.calibration.tokens, mixed.calibration.tokens)


def test_of_less_text_the_model_writes_less(data_folder):
    data = load(f"{data_folder}:0.75,self:0.25", request=replace(REQUEST, calibration=1000))
    text = len(load(data_folder, request=replace(REQUEST, calibration=1000)).calibration)
    assert len(data.calibration) == text + round(text / 3)


def test_a_share_of_text_that_can_not_be_begun_is_refused(data_folder):
    tokenizer = make_tokenizer()
    tokenizer.bos_token = tokenizer.eos_token = None
    with pytest.raises(FFPError, match="start"):
        load_windows(f"{data_folder}:0.75,self:0.25", None, tokenizer, make_tiny_model(), REQUEST)


@pytest.fixture
def two_texts(data_folder, tmp_path):
    """A folder, and a file of other text."""
    (tmp_path / "other.txt").write_text(make_text(3000, 9))
    return str(data_folder), str(tmp_path / "other.txt")


def shares_of(windows, *texts):
    """Number of windows that are cut from each text, whose words are tokens."""
    words = [" ".join(f"w{token}" for token in row if token > 2) for row in windows.tokens.tolist()]
    return [sum(row in " ".join(text.split()) for row in words) for text in texts]


def test_every_role_has_the_shares_of_a_mix(two_texts):
    folder, file = two_texts
    mix = f"{folder}:0.5,{file}:0.25,self:0.25"
    data, again = load(mix), load(mix)
    texts = [make_text(1500, 0), make_text(3000, 9), make_text(1500, 1)]
    assert shares_of(data.calibration, *texts) == [4, 2, 0] and shares_of(data.search, *texts) == [0, 1, 1]
    assert [len(data.calibration), len(data.search)] == [8, 3]
    assert data.calibration.dataset == mix
    parts = ("4 of train", "2 of calibration part of other.txt", "2 of text sampled from the model")
    assert data.calibration.split == ", ".join(parts)
    # Shuffled, and the same every time; in each role other text.
    assert shares_of(replace(data.calibration, tokens=data.calibration.tokens[:4]), texts[0]) < [4]
    for role in ("calibration", "search"):
        assert torch.equal(getattr(data, role).tokens, getattr(again, role).tokens)
    assert data.repeated == {}
    other = load(mix, request=replace(REQUEST, seed=1))
    assert not torch.equal(data.calibration.tokens, other.calibration.tokens)


def test_each_text_of_a_mix_is_reported_by_itself(two_texts):
    folder, file = two_texts
    data = load(f"{folder}:0.5,{file}:0.25,self:0.25")
    assert [(test.dataset, test.split, len(test)) for test in data.tests] == [
        (folder, "test", 4),
        (file, "test part of other.txt", 4),
    ]
    assert torch.equal(data.test.tokens, load(folder).test.tokens)
    elsewhere = load(folder, f"{file},{folder}")
    assert [test.dataset for test in elsewhere.tests] == [file, folder]
    assert torch.equal(elsewhere.calibration.tokens, load(folder).calibration.tokens)
    assert [test.dataset for test in load("self", request=replace(REQUEST, test=2)).tests] == ["self"]


def test_a_text_that_is_short_keeps_the_ratio(data_folder, tmp_path):
    short = tmp_path / "short.txt"
    short.write_text(make_text(16 * 10, 9))
    request = replace(REQUEST, calibration=40, search=4)
    data = load(f"{data_folder}:0.75,{short}:0.25", request=request)
    # 6 of its 10 windows are for calibration, where 10 were asked for.
    assert shares_of(data.calibration, make_text(1500, 0), short.read_text()) == [18, 6]
    assert len(data.search) == 4
    (line,) = [line for line in data.warnings(request) if "calibration windows" in line]
    assert "(18 of train, 6 of calibration part of short.txt) gives 24 of the 40 calibration windows" in line


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
        (b'{"text": "w3"}\n{"text": "w\n', "broken.jsonl", "broken.jsonl, line 2 is not valid JSON: "),
        (b'{"text": "w3"}\n\n["w3"]\n', "array.jsonl", "line 3 is not a JSON object: found list"),
        (b'{"text": "w3"}\n{"text": "w\\ud800"}\n', "half.jsonl", "line 2 is not valid JSON: .*surrogates"),
        (b'{"text": "w3"}\n{"text": "w\\uD83D"}\n', "upper.jsonl", "line 2 is not valid JSON: .*surrogates"),
        (b'[{"text": "w\\ud83d"}]', "array.json", "array.json is not valid JSON: .*surrogates"),
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


def test_train_is_not_read_where_the_test_split_alone_is_wanted(tmp_path):
    write(tmp_path / "train.jsonl", b'{"text": "w3"}\n{"text": 3}\n')
    write(tmp_path / "test.jsonl", b'{"text": "w3 w4"}\n')
    assert read_splits(str(tmp_path), REQUEST, only=["test"]) == {"train": [], "test": ["w3 w4"]}
    with pytest.raises(FFPError, match="train.jsonl holds neither"):
        read_splits(str(tmp_path), REQUEST)


def test_missing_files_and_splits(tmp_path, data_folder):
    with pytest.raises(FFPError, match="there is no file or folder ~nobody/text.txt"):
        load("~nobody/text.txt")
    with pytest.raises(FFPError, match="there is no file or folder .*nowhere.txt; name a local"):
        load(tmp_path / "nowhere.txt")
    (data_folder / "test.txt").unlink()
    with pytest.raises(FFPError, match="has no test file .* it holds train.txt, validation.txt"):
        load(data_folder)


def test_no_hub_within_reach_names_the_alternatives(monkeypatch):
    def unreachable(*args, **kwargs):
        raise ConnectionError("no route to host")

    monkeypatch.setattr(datasets, "get_dataset_split_names", unreachable)
    for offline, reason in ((False, "no route to host"), (True, "offline mode is on")):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", offline)
        with pytest.raises(FFPError, match=f"'wikitext2' can't be read from the Hub .{reason}.; name a .*, or self$"):
            load("wikitext2")


def test_a_config_that_is_missing_is_asked_for(monkeypatch):
    def without(*args, **kwargs):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample")

    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets, "get_dataset_split_names", without)
    with pytest.raises(FFPError, match=r"\(Please pick one among .*: \['a', 'b'\], as someone/corpus:NAME\); name"):
        load("someone/corpus")


def test_of_a_long_line_no_more_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.data.sources.CHARACTERS", 1000)
    (tmp_path / "line.txt").write_text(make_text(900).replace("\n", " "))
    (row,) = read_splits(str(tmp_path / "line.txt"), REQUEST)["line.txt"]
    assert len(row) == 1001


@pytest.mark.parametrize(
    ("available", "read"),
    [
        (["validation", "test"], ["validation", "test"]),
        (["test"], ["test"]),
        (["train", "validation"], ["train"]),
        (["train", "validation", "dev", "test"], ["train", "validation", "test"]),
        (["en", "test"], ["en", "test"]),
        (["test", "dev"], ["dev", "test"]),
        (["en", "de"], ["en"]),
    ],
)
def test_a_test_split_is_for_the_test_whatever_the_others_are_called(monkeypatch, available, read):
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: available)
    assert [*stream_splits("someone/corpus")] == read


@pytest.mark.parametrize("splits", [["train", "validation", "test"], ["train", "test"], ["train"]])
def test_hub_dataset_is_streamed_by_split(monkeypatch, splits):
    asked = []

    def load_dataset(repository, config, split, streaming, token):
        asked.append((repository, config, split, token))
        lines = make_text(900, splits.index(split)).splitlines()
        return datasets.Dataset.from_dict({"text": lines}).to_iterable_dataset()

    def split_names(*asked, token):
        assert (*asked, token) == ("someone/corpus", "small", "hf_secret")
        return splits

    monkeypatch.setattr(datasets, "get_dataset_split_names", split_names)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    data = load("someone/corpus:small", request=replace(REQUEST, token="hf_secret"))
    assert asked == [("someone/corpus", "small", split, "hf_secret") for split in splits]
    assert len(data.test) == 4 and data.test.split == ("test" if "test" in splits else "test part of train")


def test_text_to_report_on_is_written_alone(data_folder):
    """Neither more than that is written, nor what calibration has seen."""
    mix = f"{data_folder}:0.75,self:0.25"
    assert REQUEST.written(mix, "self") == {"calibration": 2, "search": 1, "test": 4}
    asked = []

    def sample(model, tokenizer, count, *rest):
        asked.append(count)
        return sample_from_model(model, tokenizer, count, *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("optimum_ffp.data.loading.sample_from_model", sample)
        data = load(mix, "self")
    parts = (data.calibration, data.search, data.test)
    assert asked == [2, 1, 4] and [len(part) for part in parts] == [8, 3, 4] and len(set(rows_of(*parts))) == 15
    assert data.test.dataset == "self" and "sampled from the model" in data.test.split


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
