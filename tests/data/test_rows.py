"""What is read of files, folders and tables, and how conversations become text."""

import gzip
import json

import datasets
import pytest

from optimum_ffp.config.texts import Text
from optimum_ffp.data import check_text
from optimum_ffp.data.rows import read_pieces
from optimum_ffp.errors import FFPError
from tests.helpers import make_tokenizer


SPLITS = ("train", "validation", "test")
TEMPLATE = "{% for m in messages %}{{ m.role }} {{ m.content }} {% endfor %}"
CHAT = [{"role": "user", "content": "w3"}, {"role": "assistant", "content": "w4"}]
RENDERED = "user w3 assistant w4 "


def read(path, column=None, template=TEMPLATE):
    tokenizer, text = make_tokenizer(), Text(str(path))
    tokenizer.chat_template = template
    return {split: "".join(read_pieces(rows, text, tokenizer, column)) for split, rows in text.open().items()}


def write_rows(folder, *rows, name="data.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def table(text):
    return datasets.Dataset.from_dict({"source": [f"site of {text}"], "text": [text]})


@pytest.mark.parametrize(
    "name", ["ok [1].jsonl", "a*b?.jsonl", "DATA.JSONL", "data.jsonl.gz", "data.json", "x.parquet"]
)
def test_files_of_any_name_and_compression_are_read(tmp_path, name):
    path, rows = tmp_path / name, [{"text": "w3 ä"}, {"text": None}, {"other": 1}, {"text": "w4"}]
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if name.endswith("gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif name.endswith("parquet"):
        datasets.Dataset.from_list([{"text": row.get("text"), "n": 1} for row in rows]).to_parquet(path)
    else:
        path.write_text(json.dumps(rows, indent=1) if name.endswith("json") else lines)
    assert read(path) == {name: "w3 ä\n\nw4\n\n"}


@pytest.mark.parametrize("name", ["DATA.TXT", "data.txt.gz"])
@pytest.mark.parametrize(
    "text", ["a b\nc\n\n d\n\n\n\ne\n \nf", "\n\n\na\n", "a", "def f():\n    return 1\n\n\nx = 1\n"]
)
def test_text_file_is_read_verbatim(tmp_path, name, text):
    (tmp_path / name).write_bytes(gzip.compress(text.encode()) if name.endswith("gz") else text.encode())
    assert read(tmp_path / name) == {name: text}


def test_wikitext_file_is_read_as_rows(tmp_path):
    (tmp_path / "text.txt").write_text(" \n = Title = \n \n Some words . \n")
    rows = ["", " = Title = \n", "", " Some words . \n"]
    assert read(tmp_path / "text.txt") == {"text.txt": "\n\n".join(rows) + "\n\n"}


@pytest.mark.parametrize("name", ["valid.txt", "dev.txt", "val-00000-of-00001.txt"])
def test_folder_splits_are_found_by_file_name(tmp_path, name):
    for file in ("train.txt", "test.txt", name):
        (tmp_path / file).write_text(file)
    (tmp_path / "README.md").write_text("a card")
    assert read(tmp_path) == {"train": "train.txt", "validation": name, "test": "test.txt"}
    (tmp_path / name).unlink()
    assert read(tmp_path) == {"train": "train.txt", "test": "test.txt"}


def test_parquet_shards_are_read_in_order(tmp_path):
    (tmp_path / "data").mkdir()
    for split in SPLITS:
        for shard in (1, 0):
            table(f"{split} {shard}").to_parquet(tmp_path / "data" / f"{split}-0000{shard}-of-00002.parquet")
    assert read(tmp_path) == {split: f"{split} 0\n\n{split} 1\n\n" for split in SPLITS}


def test_folder_of_save_to_disk_is_read(tmp_path):
    datasets.DatasetDict({split: table(split) for split in SPLITS}).save_to_disk(tmp_path / "saved [1]")
    assert read(tmp_path / "saved [1]") == {split: f"{split}\n\n" for split in SPLITS}
    assert read(tmp_path / "saved [1]" / "train") == {"train": "train\n\n"}


def test_local_files_are_not_copied_into_datasets_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    read(write_rows(tmp_path, {"text": "w3"}))
    assert not list(tmp_path.rglob("*.arrow"))


@pytest.mark.parametrize(
    ("available", "opened"),
    [
        (["validation", "test"], ["validation", "test"]),
        (["test"], ["test"]),
        (["train", "validation"], ["train"]),
        (["train", "validation", "dev", "test"], ["train", "validation", "test"]),
        (["test", "dev"], ["dev", "test"]),
        (["en", "de"], ["en"]),
    ],
)
def test_test_split_is_recognized_among_other_splits(tmp_path, available, opened):
    datasets.DatasetDict({split: table(split) for split in available}).save_to_disk(tmp_path)
    assert [*read(tmp_path)] == opened


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"id": "a", "text": "w3", "messages": CHAT}, "w3"),
        ({"source": "site", "messages": CHAT}, RENDERED),
        ({"conversations": [{"from": "human", "value": "w3"}, {"from": "gpt", "value": "w4"}]}, RENDERED),
        ({"text": 7, "source": "site", "content": "w3"}, "w3"),
        ({"prompt": "w3 ", "completion": "w4", "text": "w5"}, "w5"),
        ({"prompt": "w3 ", "completion": "w4"}, "w3 w4"),
        ({"prompt": CHAT[:1], "completion": CHAT[1:]}, RENDERED),
    ],
)
def test_known_column_names_are_read(tmp_path, row, expected):
    assert read(write_rows(tmp_path, row)) == {"data.jsonl": f"{expected}\n\n"}


def test_text_column_can_be_named(tmp_path):
    path = write_rows(tmp_path, {"text": "w3", "body": "w4", "chat": CHAT, "id": 7})
    assert read(path, "body") == {"data.jsonl": "w4\n\n"}
    assert read(path, "chat") == {"data.jsonl": f"{RENDERED}\n\n"}
    for name in ("boddy", "id"):
        with pytest.raises(FFPError, match=f"'{name}'"):
            check_text(Text(str(path)), name)


@pytest.mark.parametrize("row", [{"id": "a"}, {"a": "x", "b": "y"}, {"prompt": "x"}])
def test_unknown_columns_require_text_column(tmp_path, row):
    with pytest.raises(FFPError, match=f"columns {', '.join(row)}, .*--text-column"):
        check_text(Text(str(write_rows(tmp_path, row))))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"source": "site", "messages": []}, "'messages' .* list"),
        ({"text": 3}, "'text' .* int"),
        ({"text": None}, "'text' .* null"),
    ],
)
def test_known_column_without_text_is_rejected(tmp_path, row, message):
    with pytest.raises(FFPError, match=message):
        check_text(Text(str(write_rows(tmp_path, row))))


@pytest.mark.parametrize(
    ("template", "message"), [(None, "template"), ("{{ raise_exception('roles must alternate') }}", "alternate")]
)
def test_conversations_without_working_template_are_rejected(tmp_path, template, message):
    path = write_rows(tmp_path, {"messages": CHAT})
    check_text(Text(str(path)))
    with pytest.raises(FFPError, match=message):
        read(path, template=template)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("empty.txt", b"", "no text"),
        ("empty.jsonl", b"", "no text"),
        ("binary.txt", b"\xff\xfe\x00\x01" * 40, "UTF-8"),
        ("utf16.jsonl", '{"text": "w3"}'.encode("utf-16"), "can't be read"),
        ("broken.jsonl", b'{"text": "w3"}\n{"text": "w\n', "can't be read"),
        ("number.jsonl", b'{"text": "w3"}\n{"text": 3}\n', "row 2"),
        ("broken.parquet", b"PAR1 nonsense", "can't be read"),
        ("broken.txt.gz", b"nonsense", "can't be read"),
        ("data.csv", b"text", "convert"),
        (None, None, "no file or folder"),
    ],
)
def test_malformed_files_are_one_line_errors(tmp_path, name, content, message):
    path = tmp_path / (name or "nowhere.txt")
    if name:
        path.write_bytes(content)
    with pytest.raises(FFPError, match=message) as caught:
        read(path)
    assert "\n" not in str(caught.value)


def test_folder_without_files_is_rejected(tmp_path):
    with pytest.raises(FFPError, match="can't be read"):
        Text(str(tmp_path)).open()


def test_hub_dataset_error_is_one_line(monkeypatch):
    def fail(*args, **options):
        raise ValueError("Config name is missing.\nPlease pick one among the available configs: ['a', 'b']\nExample")

    monkeypatch.setattr(datasets, "load_dataset_builder", fail)
    for offline, message in ((False, r"\['a', 'b'\], as someone/corpus:NAME"), (True, "offline")):
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", offline)
        with pytest.raises(FFPError, match=message):
            Text("someone/corpus").open()
