import gzip
import json

import datasets
import pytest

from optimum_ffp.data import DataRequest, read_splits
from optimum_ffp.data.columns import join_rows
from optimum_ffp.errors import FFPError


REQUEST = DataRequest(length=16, calibration=8, search=3, test=4, seed=0)
SPLITS = ("train", "validation", "test")


def table(text):
    return datasets.Dataset.from_dict({"source": [f"site of {text}"], "text": [text]})


def read(path):
    return read_splits(str(path), REQUEST)


@pytest.mark.parametrize(
    "name", ["ok [1].jsonl", "a*b?.jsonl", "DATA.JSONL", "data.jsonl.gz", "data.json", "mark.jsonl", "ok [1].parquet"]
)
def test_files_of_any_name_and_packing(tmp_path, name):
    path, rows = tmp_path / name, [{"text": "w3 ä"}, {"text": None}, {"other": 1}, {"text": "w4"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith("parquet"):
        datasets.Dataset.from_list([{"text": row.get("text"), "n": 1} for row in rows]).to_parquet(path)
    elif name.endswith("json"):
        path.write_text(json.dumps(rows, indent=1))
    else:
        path.write_text(lines, encoding="utf-8-sig" if name.startswith("mark") else "utf-8")
    assert read(path) == {name: ["w3 ä", "w4"]}


@pytest.mark.parametrize("name", ["DATA.TXT", "data.txt.gz"])
def test_text_files_of_any_name_and_packing(tmp_path, name):
    content = "\ufeffw3 w4\n\nw5".encode()
    (tmp_path / name).write_bytes(gzip.compress(content) if name.endswith("gz") else content)
    assert read(tmp_path / name) == {name: ["w3 w4", "w5"]}


@pytest.mark.parametrize(
    "text",
    ["a b\nc\n\n d\n\n\n\ne\n \nf", "\n\n\na\n", "a", "a\n\n\nb", "def f():\n    return 1\n\n\ndef g():\n    pass\n"],
)
def test_a_text_file_is_read_as_it_is(tmp_path, text):
    (tmp_path / "a.txt").write_text(text)
    (rows,) = read(tmp_path / "a.txt").values()
    assert join_rows(rows, None, "a") == text


def test_a_text_file_without_blank_lines_is_read_in_pieces(tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.data.files.BLOCK", 10)
    (tmp_path / "a.txt").write_text("abcde\n" * 5)
    assert read(tmp_path / "a.txt") == {"a.txt": ["abcde\nabcde", "abcde\nabcde", "abcde\n"]}


@pytest.mark.parametrize("name", ["valid.jsonl", "dev.txt", "val-00000-of-00001.jsonl"])
def test_a_validation_split_by_another_name(tmp_path, name):
    for file in ("train.txt", "test.txt", name):
        (tmp_path / file).write_text(json.dumps({"text": file}) if file.endswith("jsonl") else file)
    assert read(tmp_path) == {"train": ["train.txt"], "validation": [name], "test": ["test.txt"]}


def test_shards_as_the_hub_names_them(tmp_path):
    (tmp_path / "data").mkdir()
    for split in SPLITS:
        for shard in (1, 0):
            table(f"{split} {shard}").to_parquet(tmp_path / "data" / f"{split}-0000{shard}-of-00002.parquet")
    (tmp_path / "README.md").write_text("a card")
    assert read(tmp_path) == {split: [f"{split} 0", f"{split} 1"] for split in SPLITS}


def test_what_save_to_disk_has_written(tmp_path):
    datasets.DatasetDict({split: table(split) for split in SPLITS}).save_to_disk(tmp_path / "saved [1]")
    assert read(tmp_path / "saved [1]") == {split: [split] for split in SPLITS}
    assert read(tmp_path / "saved [1]" / "train") == {"train": ["train"]}
    for other in ("test", "validation"):
        datasets.DatasetDict({split: table(split) for split in ("train", other)}).save_to_disk(tmp_path / other)
    assert read(tmp_path / "test") == {split: [split] for split in ("train", "test")}
    message = "has no split test; it holds dataset_dict.json, train, validation. Name one of its splits, such as"
    with pytest.raises(FFPError, match=message):
        read(tmp_path / "validation")
    named = datasets.DatasetDict({split: table(split) for split in ("train", "valid", "test")})
    named.save_to_disk(tmp_path / "named")
    assert read(tmp_path / "named") == {"train": ["train"], "validation": ["valid"], "test": ["test"]}


def test_train_alone_is_one_text(tmp_path):
    (tmp_path / "train.jsonl").write_text('{"text": "w3"}\n')
    (tmp_path / "notes.txt").write_text("not data")
    assert read(tmp_path) == {"train": ["w3"]}


def test_tables_without_rows(tmp_path):
    table("w3").select([]).to_parquet(tmp_path / "empty.parquet")
    with pytest.raises(FFPError, match="empty.parquet holds no text: it has no rows"):
        read(tmp_path / "empty.parquet")


def test_a_long_file_is_read_as_far_as_it_is_needed(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr("optimum_ffp.data.sources.CHARACTERS", 320)
    (tmp_path / "long.txt").write_text("w3 w4 w5 w6 w7 w8\n\n" * 1000)
    (rows,) = read_splits(
        str(tmp_path / "long.txt"), DataRequest(length=8, calibration=1, search=1, test=1, seed=0)
    ).values()
    assert len(rows) == 320 // 17 + 1
    assert "long.txt is long: its first 320 characters are read" in caplog.text


def test_of_several_files_of_a_split_that_of_its_name_is_read(tmp_path):
    for name in ("train.jsonl", "train.old.jsonl", "train-old.jsonl", "test.en.jsonl", "test.de.jsonl"):
        (tmp_path / name).write_text(json.dumps({"text": name}))
    assert read(tmp_path) == {"train": ["train.jsonl"], "test": ["test.de.jsonl", "test.en.jsonl"]}


def test_missing_shards_are_told(tmp_path):
    for shard in (0, 2):
        table("w3").to_parquet(tmp_path / f"train-0000{shard}-of-00003.parquet")
    with pytest.raises(FFPError, match="has 2 of the 3 shards that train-00000-of-00003.parquet is one of; download"):
        read(tmp_path)
