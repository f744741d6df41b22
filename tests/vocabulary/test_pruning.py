"""Prunes and recoveries that trim the vocabulary, against the dense model and plain transformers."""

import math
from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

from optimum_ffp import FFPConfig, FFPError, FFPRecovery, RecoveryConfig
from tests.helpers import make_pruner, make_tiny_model


TOKENS, ROWS, SIZE = 640, 704, 384
TEXTS = [topics[name] for name in sorted(topics)]
QUICK = {"seq_len": 64, "eval_samples": 2, "search_samples": 4}


def save_dense(folder, name="llama", **options):
    """A tiny model with rows that no token has, and byte-level BPE of 640 tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=TOKENS, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), special_tokens=["<s>", "</s>"]
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>")
    fast.save_pretrained(folder)
    ids = {"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": 1}
    make_tiny_model(name, vocab_size=ROWS, max_position_embeddings=256, **ids, **options).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    path = tmp_path_factory.mktemp("text") / "topics.txt"
    path.write_text("\n\n".join(TEXTS[:40]))
    return path


@pytest.fixture(scope="module")
def dense(tmp_path_factory):
    return save_dense(tmp_path_factory.mktemp("dense"))


def text_of_kept_tokens(result, dense) -> tuple[torch.Tensor, torch.Tensor]:
    """Random kept tokens, by their ids in the pruned and in the dense model."""
    kept = [dense.convert_tokens_to_ids(token) for token in result.tokenizer.convert_ids_to_tokens(range(SIZE))]
    ids = torch.randint(SIZE, (2, 24), generator=torch.Generator().manual_seed(3))
    return ids, torch.tensor(kept)


@pytest.mark.parametrize(("name", "tied"), [("llama", True), ("llama", False), ("mixtral", False)])
def test_vocabulary_alone_leaves_plain_model_with_rows_of_kept_tokens(name, tied, text, tmp_path):
    folder = save_dense(tmp_path / "dense", name, tie_word_embeddings=tied)
    options = {**QUICK, "method": None, "search_steps": None, "calibration": "none"}
    pruner = make_pruner(folder, text, vocabulary=SIZE + 5, **options)
    result = pruner.prune()
    pruner.save_pretrained(tmp_path / "out")
    loaded, before = (AutoModelForCausalLM.from_pretrained(one) for one in (tmp_path / "out", folder))
    assert type(loaded) is type(before) and loaded.config.vocab_size == SIZE == len(result.tokenizer)
    ids, kept = text_of_kept_tokens(result, AutoTokenizer.from_pretrained(folder))
    for get in ("get_input_embeddings", "get_output_embeddings"):
        assert torch.equal(getattr(loaded, get)().weight, getattr(before, get)().weight[kept])
    assert torch.allclose(loaded(ids).logits, before(kept[ids]).logits[..., kept], atol=1e-5)
    assert loaded.config.eos_token_id == loaded.generation_config.eos_token_id == result.tokenizer.eos_token_id
    written = loaded.generate(ids, max_new_tokens=40, do_sample=True, top_k=0, temperature=3.0)
    assert written.max() < SIZE
    removed = (ROWS - SIZE) * loaded.config.hidden_size * (1 if tied else 2)
    assert result.dense_parameters - result.parameters == removed


def test_perplexity_is_of_same_text_per_token_of_dense_model(dense, text, tmp_path):
    result = make_pruner(dense, text, vocabulary=SIZE, **QUICK, method=None, calibration="none").prune()
    tokenizer, total = AutoTokenizer.from_pretrained(dense), 0.0
    windows = result.test.tokens
    for window in windows:
        words = [tokenizer.decode([token]) for token in window.tolist()]
        first, rest = (result.tokenizer("".join(part)).input_ids for part in (words[:1], words[1:]))
        logits = result.model(torch.tensor([first + rest])).logits[0].log_softmax(-1)
        places = range(len(first) - 1, len(first) + len(rest) - 1)
        total -= sum(logits[place, piece].item() for place, piece in zip(places, rest))
    count = windows.numel() - len(windows)
    # Pieces of neighboring tokens may be merged by the tokenizer.
    assert math.log(result.perplexity) == pytest.approx(total / count, rel=0.02)
    assert result.vocabulary["pruned"] == SIZE and 0 < result.vocabulary["split"] < result.vocabulary["longer"]


def test_blocks_and_vocabulary_are_those_of_separate_prunes(dense, text, tmp_path):
    options = {**QUICK, "method": "no-search", "calibration": "ridge"}
    both = make_pruner(dense, text, sparsity=0.3, vocabulary=SIZE, **options).prune()
    blocks = make_pruner(dense, text, sparsity=0.3, **options).prune()
    ids, kept = text_of_kept_tokens(both, AutoTokenizer.from_pretrained(dense))
    assert both.policy == blocks.policy
    assert torch.allclose(both.model(ids).logits, blocks.model(kept[ids]).logits[..., kept], atol=1e-5)
    parameters = make_pruner(dense, text, params=both.parameters, vocabulary=SIZE, **options).prune().parameters
    assert 0 <= both.parameters - parameters < 100


def test_sweep_measures_every_vocabulary(dense, text, tmp_path):
    options = {**QUICK, "method": None, "calibration": "none"}
    pruner = make_pruner(dense, text, tmp_path / "work", vocabulary=512, **options)
    configs = [FFPConfig(dataset=str(text), vocabulary=size, num_samples=8, **options) for size in (512, SIZE)]
    larger, smaller = pruner.sweep(configs)
    assert len(larger.tokenizer) == 512 and len(smaller.tokenizer) == SIZE
    assert larger.losses["dense"] == smaller.losses["dense"]
    assert larger.losses["calibrated"] != smaller.losses["calibrated"]


def test_calibration_text_has_more_dropped_tokens_if_not_counted(dense, text):
    tokenizer, dropped = AutoTokenizer.from_pretrained(dense), []
    options = {**QUICK, "vocabulary": 512, "method": None, "calibration": "none"}
    for counted in (None, str(text)):
        pruner = make_pruner(dense, text, vocabulary_dataset=counted, **options)
        kept = pruner.prune().tokenizer.get_vocab()
        tokens = tokenizer.convert_ids_to_tokens(pruner.measured.data.calibration.tokens.flatten().tolist())
        dropped.append(sum(token not in kept for token in tokens))
    assert dropped[0] > dropped[1] > 0


def test_tokens_that_text_lacks_are_kept_if_dense_model_predicts_them(dense, text, tmp_path):
    (tmp_path / "word.txt").write_text("class " * 4000)
    tokenizer = AutoTokenizer.from_pretrained(dense)
    pruner = make_pruner(dense, tmp_path / "word.txt", vocabulary=512, **QUICK, method=None, calibration="none")
    kept = {*tokenizer.convert_tokens_to_ids([*pruner.prune().tokenizer.get_vocab()])}
    model, windows = AutoModelForCausalLM.from_pretrained(dense), pruner.measured.data.calibration.tokens
    with torch.no_grad():
        predicted = model(windows).logits.softmax(-1).sum((0, 1))
    assert torch.allclose(pruner.measured.predicted_tokens, predicted, rtol=1e-3)
    # Kept tokens may have been needed to merge others, so the least expected may be among them.
    words = [index for index in range(TOKENS) if len(tokenizer.convert_ids_to_tokens(index)) > 1]
    ranks = predicted[words].argsort().argsort().double()
    stays = torch.tensor([index in kept for index in words])
    assert ranks[stays].mean() > 1.5 * ranks[~stays].mean()


def test_training_moves_predictions_toward_dense_model(dense, text, tmp_path):
    pruner = make_pruner(dense, text, vocabulary=SIZE, **QUICK, method=None, calibration="model")
    result = pruner.prune()
    pruner.save_pretrained(tmp_path / "out")
    trimmed, trained = result.calibration["stages"]
    assert (trimmed["stage"], trained["stage"]) == ("vocabulary", "model") and trained["kl"] < trimmed["kl"]
    options = {"dataset": str(text), "max_tokens": 1024, "batch_tokens": 256, "seq_len": 64, "eval_samples": 2}
    config = RecoveryConfig(**options, lora=4, learning_rate=1e-2)
    adapters = FFPRecovery.from_pretrained(tmp_path / "out", config, dense, device="cpu").recover()
    assert adapters.dense_teacher and adapters.kept["kl"] < adapters.curve[0]["kl"]
    config = RecoveryConfig(**options)
    recovery = FFPRecovery.from_pretrained(tmp_path / "out", config, dense, device="cpu")
    record = recovery.recover()
    recovery.save_pretrained(tmp_path / "recovered")
    assert record.dense_teacher and record.kept["kl"] < record.curve[0]["kl"]
    assert record.curve[0]["kl"] == pytest.approx(trained["kl"], rel=0.2)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "recovered")
    assert loaded.config.vocab_size == SIZE
    # Rows of the kept tokens were trained too.
    before = result.model.get_input_embeddings().weight
    assert not torch.equal(loaded.get_input_embeddings().weight, before)


def test_pruned_model_keeps_its_vocabulary_when_pruned_further(dense, text, tmp_path):
    options = {**QUICK, "method": "no-search", "calibration": "none"}
    first = make_pruner(dense, text, vocabulary=SIZE, sparsity=0.2, **options)
    first.prune()
    first.save_pretrained(tmp_path / "once")
    again = {"base_model": str(dense), **options}
    second = make_pruner(tmp_path / "once", text, sparsity=0.4, **again).prune()
    assert second.tokenizer.get_vocab() == first.result.tokenizer.get_vocab()
    ids, kept = text_of_kept_tokens(second, AutoTokenizer.from_pretrained(dense))
    blocks = make_pruner(dense, text, sparsity=0.4, **options).prune()
    if second.policy.sizes == blocks.policy.sizes:
        assert torch.allclose(second.model(ids).logits, blocks.model(kept[ids]).logits[..., kept], atol=1e-5)
    smaller = make_pruner(tmp_path / "once", text, vocabulary=SIZE - 64, **again).prune()
    assert smaller.policy.sparsity == first.result.policy.sparsity
    assert smaller.tokenizer.get_vocab().keys() < second.tokenizer.get_vocab().keys()


def test_auto_compares_vocabularies_under_budget(dense, text, monkeypatch, caplog):
    dense_size = AutoModelForCausalLM.from_pretrained(dense).num_parameters()
    asked, losses = round(0.9 * dense_size), iter([3.0, 1.0, 2.0, 4.0, 5.0])
    monkeypatch.setattr("optimum_ffp.search.vocabulary.window_losses", lambda *_, **__: torch.tensor(next(losses)))
    options = {**QUICK, "method": "no-search", "calibration": "none"}
    pruner = make_pruner(dense, text, params=asked, vocabulary="auto", **options)
    sizes = [plan.vocabulary for plan in pruner.measured.plan.alternatives]
    result = pruner.prune()
    assert len(result.tokenizer) == sizes[1] and result.parameters <= asked
    budget = {row["option"]: row for row in result.search.budget}
    assert budget["params"]["reached"] == result.parameters and budget["params"]["dense"] == dense_size


def test_errors_say_what_a_vocabulary_needs(dense, text, save_tiny_model, data_folder):
    for options, words in [
        ({"vocabulary": ROWS}, "704 tokens"),
        ({"vocabulary": "auto"}, "params or memory"),
        ({"vocabulary": "12x"}, "64k"),
    ]:
        with pytest.raises(FFPError, match=words):
            make_pruner(dense, text, **QUICK, **options)
    with pytest.raises(FFPError, match="WordLevel"):
        make_pruner(save_tiny_model("llama"), data_folder, vocabulary=64, method=None).prune()
