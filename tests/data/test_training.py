"""Windows to train on: which text they are of."""

import pytest
import torch

from optimum_ffp import FFPError
from optimum_ffp.config.texts import TextMix
from optimum_ffp.data import DataRequest, load_windows, training_windows
from tests.helpers import make_text, make_tiny_model, make_tokenizer, with_start_token


LENGTH = 24


def request(dataset, **changes):
    texts = TextMix.parse(str(dataset))
    counts = {"calibration": 0, "search": 3, "held_out": 2, "test": None}
    return DataRequest(texts, texts.reported, **{"length": LENGTH, "seed": 0} | counts | changes)


def train(dataset, count, tokenizer=None, **options):
    return training_windows(tokenizer or make_tokenizer(), make_tiny_model(), request(dataset, **options), count)


def load(dataset, **options):
    return load_windows(make_tokenizer(), make_tiny_model(), request(dataset, **options))


def ids_of(text):
    return make_tokenizer()(text, add_special_tokens=False).input_ids


def ngrams_of(windows, size=8):
    return {tuple(row) for window in windows.tolist() for row in torch.tensor(window).unfold(0, size, 1).tolist()}


def test_training_windows_are_shuffled_train_split(data_folder):
    text = ids_of((data_folder / "train.txt").read_text())
    found, passes = train(data_folder, len(text) // LENGTH)
    expected = torch.tensor(text[: len(text) // LENGTH * LENGTH]).view(-1, LENGTH)
    assert sorted(found.tolist()) == sorted(expected.tolist()) and found.tolist() != expected.tolist()
    assert found.dtype == torch.int32 and passes == {str(data_folder): 1.0}
    assert torch.equal(train(data_folder, len(found))[0], found)
    assert not torch.equal(train(data_folder, len(found), seed=1)[0], found)


def test_short_text_is_repeated_evenly(data_folder):
    once = len(ids_of((data_folder / "train.txt").read_text())) // LENGTH
    found, passes = train(data_folder, 2 * once + 5)
    assert passes[str(data_folder)] == pytest.approx((2 * once + 5) / once)
    counts = [found.tolist().count(window) for window in train(data_folder, once)[0].tolist()]
    assert sorted(counts) == [2] * (once - 5) + [3] * 5


@pytest.mark.parametrize(("divided", "between"), [(2**25, "\n"), (2**25, " "), (4000, "\n")])
def test_training_windows_of_file_exclude_held_out_and_test_text(tmp_path, monkeypatch, divided, between):
    """Whether all of it is divided, or it is longer than what is."""
    monkeypatch.setattr("optimum_ffp.data.loading.MAX_TEXT_CHARACTERS", divided)
    file = tmp_path / "text.txt"
    file.write_text(make_text(3000).replace("\n", between))
    used = load(file, search=1000)
    everything = 3000 - used.search.tokens.numel() - used.test.tokens.numel()
    windows, passes = train(file, int(0.95 * everything) // LENGTH)
    assert passes == {str(file): pytest.approx(1, abs=0.05)}
    assert not ngrams_of(windows) & ngrams_of(torch.cat([used.search.tokens, used.test.tokens]))


def test_without_validation_split_training_excludes_held_out_text(data_folder):
    (data_folder / "validation.txt").unlink()
    train_text = ngrams_of(torch.tensor(ids_of((data_folder / "train.txt").read_text()))[None], LENGTH)
    found, _ = train(data_folder, 20)
    held_out = load(data_folder, search=1000).search.tokens
    assert ngrams_of(found, LENGTH) <= train_text and not ngrams_of(found) & ngrams_of(held_out)


def test_training_mix_has_given_shares_and_generated_text(data_folder, tmp_path):
    other = tmp_path / "other.txt"
    other.write_text(make_text(3000, seed=7))
    found, passes = train(f"{data_folder}:0.5,{other}:0.25,self:0.25", 40)
    texts = [ngrams_of(torch.tensor(ids_of(file.read_text()))[None]) for file in (data_folder / "train.txt", other)]
    assert [sum(bool(ngrams_of(window[None]) & runs) for window in found) for runs in texts] == [20, 10]
    assert passes.keys() == {str(data_folder), str(other)}
    assert found.shape == (40, LENGTH) and len({*map(tuple, found.tolist())}) == 40


def test_generated_training_text_differs_from_test_text():
    used = load("self", search=1, test=1)
    assert not ngrams_of(train("self", 3)[0]) & ngrams_of(torch.cat([used.search.tokens, used.test.tokens]))


def test_training_windows_begin_with_start_token(data_folder):
    tokenizer = with_start_token(make_tokenizer())
    assert (train(data_folder, 9, tokenizer)[0][:, 0] == tokenizer.bos_token_id).all()
    assert (train(data_folder, 9, tokenizer, start_token="never")[0] != tokenizer.bos_token_id).all()


def test_too_short_training_text_is_rejected(tmp_path):
    (tmp_path / "text.txt").write_text(make_text(30))
    with pytest.raises(FFPError, match="to train on"):
        train(tmp_path / "text.txt", 4)
