from hashlib import sha256

import pytest

from optimum_ffp import FFPConfig
from optimum_ffp.config.texts import Text, TextMix
from optimum_ffp.errors import FFPError


@pytest.mark.parametrize(
    ("dataset", "shares"),
    [
        ("wikitext2", {"wikitext2": 1}),
        ("owner/text:english", {"owner/text:english": 1}),
        ("wikitext2:0.5,c4:.3,self:0.2", {"wikitext2": 0.5, "c4": 0.3, "self": 0.2}),
        ("owner/text:english:0.75, D:\\data\\my.txt:0.25", {"owner/text:english": 0.75, "D:\\data\\my.txt": 0.25}),
        ("wikitext2,c4", {"wikitext2": 0.5, "c4": 0.5}),
        ("a:0.33,b:0.33,c:0.33", {"a": 1 / 3, "b": 1 / 3, "c": 1 / 3}),
    ],
)
def test_dataset_mixes_round_trip(dataset, shares):
    mix = TextMix.parse(dataset)
    assert {text.name: text.share for text in mix} == pytest.approx(shares)
    again = TextMix.parse(str(mix))
    assert {text.name: text.share for text in again} == pytest.approx(shares, abs=1e-6)


@pytest.mark.parametrize(
    ("dataset", "message"),
    [
        ("wikitext2:0.5,c4", "share"),
        ("wikitext2:1,c4:0", "share"),
        ("wikitext2:0.5,c4:0.3", "share"),
        ("wikitext2:50,c4:50", "share"),
        ("wikitext2:0.5", "share"),
        ("wikitext2,,c4", "once"),
        ("c4:0.5,c4:0.5", "once"),
    ],
)
def test_invalid_dataset_mixes_are_rejected(dataset, message):
    with pytest.raises(FFPError, match=message):
        TextMix.parse(dataset)


def test_existing_path_with_comma_is_one_dataset(tmp_path):
    path = tmp_path / "a,b:0.5"
    path.touch()
    assert TextMix.parse(str(path)).names == [str(path)]


def test_dataset_mix_may_be_longer_than_max_file_name():
    names = [f"part-{number:02d}-of-my-conversations.jsonl" for number in range(20)]
    assert FFPConfig(dataset=",".join(names)).texts.names == names


def test_home_folder_of_unknown_user_is_plain_path():
    text = TextMix.parse("~no-such-user/text.txt").texts[0]
    assert text.is_local
    with pytest.raises(FFPError, match="no file or folder ~no-such-user"):
        text.open()


def test_existing_path_is_saved_as_local_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("c4", "owner/text", "self"):
        (tmp_path / name).mkdir(parents=True)
    config = FFPConfig(dataset="c4:0.5,self:0.25,wikitext2:0.25", eval_dataset="owner/text")
    assert (config.dataset, config.eval_dataset) == ("./c4:0.5,self:0.25,wikitext2:0.25", "./owner/text")
    assert [text.hub_dataset and text.hub_dataset[0] for text in config.texts] == [None, None, "Salesforce/wikitext"]
    # In another directory, as where the card is rendered.
    monkeypatch.chdir("/")
    assert [text.is_local for text in (*config.texts, *config.reported)] == [True, False, False, True]


def test_local_datasets_are_hashed_with_sha256(tmp_path):
    (tmp_path / "b.txt").write_text("w4")
    (tmp_path / "a.txt").write_text("w3")
    (tmp_path / ".hidden").write_text("w5")
    # As of `sha256sum a.txt` and `sha256sum * | sha256sum`.
    assert Text(str(tmp_path / "a.txt")).sha256() == sha256(b"w3").hexdigest()[:12]
    lines = f"{sha256(b'w3').hexdigest()}  a.txt\n{sha256(b'w4').hexdigest()}  b.txt\n"
    assert Text(str(tmp_path)).sha256() == sha256(lines.encode()).hexdigest()[:12]


def test_published_dataset_names_hide_local_folders(tmp_path):
    mix = TextMix.parse("/data/my.txt:0.5,owner/text:english:0.3,self:0.2")
    assert mix.published == "my.txt:0.5,owner/text:english:0.3,self:0.2"
    assert (
        mix.describe() == "50 % /data/my.txt (local), 30 % owner/text:english, 20 % text sampled from the model itself"
    )
    assert mix.includes_self and mix.reported.names == ["/data/my.txt", "owner/text:english"]
    assert TextMix.parse("self").reported.names == ["self"]
    assert TextMix.parse(f"{tmp_path},data/my.txt,../c4").published == f"./{tmp_path.name},data/my.txt,./c4"
    same_name = TextMix.parse("/data/en/text.txt,/data/de/text.txt").published
    assert same_name == "text.txt,text.txt-2" and len(TextMix.parse(same_name).texts) == 2


@pytest.mark.parametrize(
    ("name", "dataset"),
    [
        ("wikitext2", ("Salesforce/wikitext", "wikitext-2-raw-v1")),
        ("c4:de", ("allenai/c4", "de")),
        ("someone/corpus", ("someone/corpus", None)),
        ("data/my.txt", None),
        ("/data/corpus", None),
        ("./c4", None),
        ("self", None),
    ],
)
def test_hub_datasets_are_distinguished_from_local_paths(name, dataset):
    assert Text(name).hub_dataset == dataset


@pytest.mark.parametrize(
    ("total", "shares", "counts"),
    [
        (128, [0.9, 0.1], [115, 13]),
        (10, [0.5, 0.3, 0.2], [5, 3, 2]),
        (10, [1 / 3] * 3, [4, 3, 3]),
        (3, [0.98, 0.01, 0.01], [1, 1, 1]),
        (8, [0.98, 0.02], [7, 1]),
        (0, [0.5, 0.5], [0, 0]),
    ],
)
def test_windows_are_divided_by_dataset_shares(total, shares, counts):
    mix = TextMix(tuple(Text(str(number), share) for number, share in enumerate(shares)))
    assert list(mix.divide(total).values()) == counts
