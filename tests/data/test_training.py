"""Windows to train on: which text they are of, how they are packed, and which tokens have a loss."""

import json
import re
from collections import Counter
from functools import partial

import datasets
import pytest
import torch

from optimum_ffp import FFPError
from optimum_ffp.data import DataRequest, load_windows, training_windows
from optimum_ffp.data.training import PREFIX
from optimum_ffp.data.windows import without_mask
from tests.data.test_encoding import CHATML, THINKING, TURNS, ids_of, with_loss
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


LENGTH = 24


def request(**changes) -> DataRequest:
    return DataRequest(**{"length": LENGTH, "calibration": 0, "search": 3, "test": None, "seed": 0} | changes)


def train(dataset, count: int, tokenizer=None, **options):
    return training_windows(str(dataset), tokenizer or make_tokenizer(), make_tiny_model(), count, request(**options))


def runs_of(windows: torch.Tensor, size: int = 8) -> set[tuple[int, ...]]:
    return {tuple(row) for window in windows.tolist() for row in torch.tensor(window).unfold(0, size, 1).tolist()}


def test_windows_of_a_folder_are_those_of_train_in_a_random_order(data_folder):
    text = ids_of((data_folder / "train.txt").read_text())
    found = train(data_folder, len(text) // LENGTH)
    expected = torch.tensor(text[: len(text) // LENGTH * LENGTH]).view(-1, LENGTH)
    assert sorted(found.tokens.tolist()) == sorted(expected.tolist()) and found.tokens.tolist() != expected.tolist()
    assert found.tokens.dtype == torch.int32 and found.passes == {str(data_folder): 1.0}
    assert torch.equal(train(data_folder, len(found.tokens)).tokens, found.tokens)
    assert not torch.equal(train(data_folder, len(found.tokens), seed=1).tokens, found.tokens)


def test_text_that_is_too_short_is_read_again(data_folder):
    once = len(ids_of((data_folder / "train.txt").read_text())) // LENGTH
    found = train(data_folder, 2 * once + 5)
    assert found.passes[str(data_folder)] == pytest.approx((2 * once + 5) / once)
    counts = [found.tokens.tolist().count(window) for window in train(data_folder, once).tokens.tolist()]
    assert sorted(counts) == [2] * (once - 5) + [3] * 5


@pytest.mark.parametrize("between", ["\n", " "], ids=["lines", "one-line"])
@pytest.mark.parametrize("read", [2**26, 4000])
def test_a_file_gives_no_window_that_is_held_out_or_tested(tmp_path, monkeypatch, read, between):
    """Whether it is read whole for those, or is longer than what is read."""
    monkeypatch.setattr("optimum_ffp.data.sources.CHARACTERS", read)
    file = tmp_path / "text.txt"
    file.write_text(make_text(3000).replace("\n", between))
    used = load_windows(str(file), None, make_tokenizer(), make_tiny_model(), request(search=1000))
    held_out = runs_of(torch.cat([used.search.tokens, used.test.tokens]))
    everything = len(ids_of(file.read_text())) - used.search.tokens.numel() - used.test.tokens.numel()
    windows = train(file, int(0.95 * everything) // LENGTH)
    assert windows.passes == {str(file): pytest.approx(1, abs=0.05)}
    assert not runs_of(windows.tokens) & held_out


def test_beside_a_test_split_alone_nothing_that_is_held_out_is_trained_on(data_folder):
    (data_folder / "validation.txt").unlink()
    held_out = load_windows(str(data_folder), None, make_tokenizer(), make_tiny_model(), request(search=1000)).search
    train_text = runs_of(torch.tensor(ids_of((data_folder / "train.txt").read_text()))[None], LENGTH)
    found = runs_of(train(data_folder, 20).tokens, LENGTH)
    assert found <= train_text and not runs_of(train(data_folder, 20).tokens) & runs_of(held_out.tokens)


@pytest.mark.parametrize("words", [330, 600, 3000])
def test_windows_of_two_lengths_are_left_out_of_one_text(monkeypatch, words):
    """Held-out windows as long as those in training, and longer test windows, of a stream without splits."""
    text = make_text(words)
    rows = datasets.Dataset.from_dict({"text": text.splitlines()}).to_iterable_dataset()
    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: ["train"])
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: rows)
    monkeypatch.setattr("optimum_ffp.data.sources.CHARACTERS", 1200)
    asked = {"search": 100, "test": 100, "test_length": 3 * LENGTH}
    found = load_windows("someone/corpus", None, make_tokenizer(), make_tiny_model(), request(**asked))
    assert found.search.length == LENGTH and found.test.length == 3 * LENGTH and not len(found.calibration)
    windows = train("someone/corpus", words // LENGTH, **asked)
    assert not runs_of(windows.tokens) & (runs_of(found.search.tokens) | runs_of(found.test.tokens))


def test_a_mix_has_its_shares(data_folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(make_text(3000, seed=7))
    found = train(f"{data_folder}:0.75,{other}:0.25", 40)
    runs = runs_of(torch.tensor(ids_of(other.read_text()))[None])
    of_other = sum(bool(runs_of(window[None]) & runs) for window in found.tokens)
    assert of_other == 10 and found.passes.keys() == {str(data_folder), str(other)}


def test_the_model_continues_the_first_tokens_of_other_text(data_folder):
    found = train(f"{data_folder}:0.5,self:0.5", 6)
    assert found.tokens.shape == (6, LENGTH) and found.passes.keys() == {str(data_folder)}
    runs = runs_of(torch.tensor(ids_of((data_folder / "train.txt").read_text()))[None], LENGTH)
    given = {tuple(window[:PREFIX].tolist()) for window in found.tokens if runs_of(window[None], LENGTH) & runs}
    written = [window for window in found.tokens if not runs_of(window[None], LENGTH) & runs]
    # After the start token that a document of the model begins with.
    assert len(given) == len(written) == 3 and {tuple(one[1 : 1 + PREFIX].tolist()) for one in written} == given
    assert {int(window[0]) for window in written} == {make_tokenizer().bos_token_id}


def test_the_model_writes_other_text_than_it_is_tested_on():
    found = train("self", 3).tokens
    assert found.shape == (3, LENGTH)
    used = load_windows("self", None, make_tokenizer(), make_tiny_model(), request(search=1, test=1))
    assert not runs_of(found) & runs_of(torch.cat([used.search.tokens, used.test.tokens]))


def test_a_chat_model_writes_conversations(data_folder):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    found = train(f"{data_folder}:0.5,self:0.5", 6, tokenizer)
    opening = ids_of("<s> user")
    assert sum(window[: len(opening)].tolist() == opening for window in found.tokens) == 3


def test_windows_begin_with_the_start_token(data_folder):
    tokenizer = with_start_token(make_tokenizer())
    assert (train(data_folder, 9, tokenizer).tokens[:, 0] == tokenizer.bos_token_id).all()
    assert not (train(data_folder, 9, tokenizer, start_token="never").tokens[:, 0] == tokenizer.bos_token_id).all()


@pytest.fixture
def chats(tmp_path):
    words = make_text(6000).split()
    rows = [
        [
            {"role": "user", "content": " ".join(words[at : at + 7])},
            {"role": "assistant", "content": " ".join(words[at + 7 : at + 12])},
            {"role": "user", "content": " ".join(words[at + 12 : at + 14])},
            {"role": "assistant", "content": words[at + 14]},
        ]
        for at in range(0, 6000, 15)
    ]
    file = tmp_path / "chats.jsonl"
    file.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    return file


def test_only_answers_have_a_loss(chats):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    found = train(chats, 40, tokenizer, answers_only=True).tokens
    everything = train(chats, 40, tokenizer).tokens
    assert (everything >= 0).all() and torch.equal(torch.where(found < 0, -1 - found, found), everything)
    # Answers of five words and of one, each with what ends its turn, of 27 tokens of a conversation.
    assert (found >= 0).float().mean() == pytest.approx(8 / 27, abs=0.01)
    for window in found.tolist():
        text = " ".join(tokenizer.convert_ids_to_tokens([token if token >= 0 else 2 for token in window]))
        for answer in re.findall(r"(?:w\d+ ?)+", text):
            assert len(answer.split()) in (1, 2, 3, 4, 5)
        assert re.fullmatch(r"((w\d+|<unk>|</s>) ?)+", text)


def test_held_out_windows_are_judged_by_what_is_trained_on(chats, data_folder):
    tokenizer = make_tokenizer()
    tokenizer.chat_template = CHATML
    load = partial(load_windows, tokenizer=tokenizer, model=make_tiny_model())
    options = {"search": 40, "test": 5}
    found, everything = (
        load(str(chats), None, request=request(answers_only=answers, **options)) for answers in (True, False)
    )
    assert (found.search.tokens >= 0).float().mean() == pytest.approx(8 / 27, abs=0.03)
    assert torch.equal(without_mask(found.search.tokens), everything.search.tokens)
    # Perplexity on test windows is that of all tokens, as it is of the pruned model.
    assert torch.equal(found.test.tokens, everything.test.tokens)
    assert found.search.repeated_in(everything.search.tokens) == len(found.search)
    text = load(str(data_folder), None, request=request(answers_only=True, **options))
    assert (text.search.tokens >= 0).all()


def test_an_answer_to_nothing_is_not_trained_on(tmp_path):
    """Templates refuse the empty conversation before it."""
    tokenizer, file = make_tokenizer(), tmp_path / "chats.jsonl"
    tokenizer.chat_template = "{{ messages[0].role }} " + CHATML
    row = [
        {"role": role, "content": word} for role, word in (("assistant", "w1"), ("user", "w2"), ("assistant", "w3"))
    ]
    file.write_text("\n".join([json.dumps({"messages": row})] * 400))
    found = train(file, 10, tokenizer, answers_only=True).tokens
    known = {tokenizer.convert_ids_to_tokens(token) for token in found[found >= 0].tolist()}
    assert "w3" in known and not known & {"w1", "w2"}


def test_answers_that_a_template_hides_have_no_loss(tmp_path, caplog):
    hidden = "{% if not loop.last and message.content == 'w5 w6' %}hidden{% else %}{{ message.content }}{% endif %}"
    template, counts = THINKING.replace("{{ message.content }}", hidden), Counter()
    assert [word for word in with_loss(template, counts) if word != "."] == ["w3", "<unk>", "w8", "</s>"]
    assert counts == {"found": 2, "missed": 1}
    tokenizer, file = make_tokenizer(), tmp_path / "chats.jsonl"
    file.write_text("\n".join([json.dumps({"messages": TURNS})] * 40))
    tokenizer.chat_template = template
    train(file, 10, tokenizer, answers_only=True)
    (line,) = [record.getMessage() for record in caplog.records if "answers have no loss" in record.getMessage()]
    assert line == f"{file}: 33.3 % of the answers have no loss, since the chat template rewrites them"
    tokenizer.chat_template = "{{ messages | length }} {% for m in messages %}<s> {{ m.role }} </s> {% endfor %}"
    with pytest.raises(FFPError, match=r"rewrites every answer, .* by --loss-on all \(loss_on\)"):
        train(file, 10, tokenizer, answers_only=True)


@pytest.mark.parametrize("splits", [["train", "validation", "test"], ["train"]])
def test_no_more_of_a_dataset_of_the_hub_is_read_than_is_needed(monkeypatch, splits):
    read, lines = [], make_text(40_000).splitlines()

    def rows():
        for line in lines:
            read.append(line)
            yield {"text": line}

    def load_dataset(repository, config, split, **options):
        return datasets.IterableDataset.from_generator(rows)

    monkeypatch.setattr(datasets, "get_dataset_split_names", lambda *_, **__: splits)
    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("optimum_ffp.data.sources.CHARACTERS", 10_000)
    found = train("someone/corpus", 20, test=2)
    assert found.tokens.shape == (20, LENGTH) and found.passes["someone/corpus"] == pytest.approx(1, abs=0.5)
    assert len(read) < len(lines)


def test_every_text_is_as_long_as_the_windows_that_are_cut_from_it(data_folder, tmp_path):
    (data_folder / "validation.txt").write_text(make_text(3 * LENGTH))
    (data_folder / "train.txt").write_text("w1")
    load = partial(load_windows, tokenizer=make_tokenizer(), model=make_tiny_model())
    found = load(str(data_folder), None, request=request(test=5, test_length=8 * LENGTH))
    assert found.search.length == LENGTH and found.test.length == 8 * LENGTH
    assert found.repeated == {} and found.warnings(request(test=5)) == []
    (data_folder / "validation.txt").write_text((data_folder / "test.txt").read_text())
    found = load(str(data_folder), None, request=request(test=5, test_length=8 * LENGTH, search=40))
    assert found.repeated["test"] == 5
    (data_folder / "validation.txt").write_text(make_text(3 * LENGTH))
    (tmp_path / "text.txt").write_text(make_text(8 * LENGTH))
    with pytest.raises(FFPError, match="eval_seq_len 192 gives 1 window.*use more text or a smaller eval_seq_len"):
        load(str(tmp_path / "text.txt"), None, request=request(test=5, test_length=8 * LENGTH))
    (data_folder / "test.txt").write_text(make_text(LENGTH))
    with pytest.raises(FFPError, match="less than one window of 192; lower eval_seq_len"):
        load(str(data_folder), None, request=request(test=5, test_length=8 * LENGTH))
    # Text that nothing is reported on needs no test windows.
    (tmp_path / "other.txt").write_text(make_text(800))
    found = load(str(data_folder), str(tmp_path / "other.txt"), request=request(test=1, test_length=2 * LENGTH))
    assert found.test.dataset == str(tmp_path / "other.txt") and len(found.search) == 3


def test_too_little_text_is_refused(tmp_path):
    (tmp_path / "text.txt").write_text(make_text(30))
    with pytest.raises(FFPError, match="less than one window of 24 tokens to train on; lower seq_len"):
        train(tmp_path / "text.txt", 4)


def test_tokens_without_an_embedding_are_refused(data_folder):
    tokenizer = make_tokenizer()
    tokenizer.add_tokens(["new"])
    text = (data_folder / "train.txt").read_text()
    (data_folder / "train.txt").write_text("new " + text)
    with pytest.raises(FFPError, match="has the token 'new', for which the model has no embedding"):
        train(data_folder, len(ids_of(text)) // LENGTH, tokenizer)
