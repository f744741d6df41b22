import gc
import math
import re
import shutil
import sys
import weakref

import numpy as np
import pytest
import torch
from torch.nn.functional import kl_div

from optimum_ffp import FFPModelForCausalLM, evaluate
from optimum_ffp.config.texts import TextMix
from optimum_ffp.data import DataRequest, Windows, load_windows
from optimum_ffp.errors import FFPError
from optimum_ffp.evaluation.record import compare_records
from optimum_ffp.modeling.loading import LoadOptions, load_any
from optimum_ffp.utils.standard_error import block_error
from optimum_ffp.vocabulary.tokenizer import trim_tokenizer
from tests.helpers import (
    SAMPLE,
    make_byte_level_tokenizer,
    make_pruner,
    make_text,
    make_tiny_model,
    make_tokenizer,
    reference_perplexity,
    with_start_token,
    write_data,
)


LENGTH = 24
QUICK = {"seq_len": LENGTH, "speed": False, "device": "cpu"}


def save(folder, model=None, tokenizer=None):
    (model or make_tiny_model()).save_pretrained(folder)
    (tokenizer or make_tokenizer()).save_pretrained(folder)
    return folder


def windows_of(file):
    tokens = torch.tensor(make_tokenizer()(file.read_text()).input_ids)
    return tokens[: len(tokens) // LENGTH * LENGTH].view(-1, LENGTH)


@pytest.fixture(scope="module")
def folders(pruned, tmp_path_factory):
    """Folders of a pruned model, its dense model, and of text."""
    folder = tmp_path_factory.mktemp("evaluate")
    return pruned[1], pruned[0].model_id, write_data(folder / "data")


@pytest.fixture(scope="module")
def evaluation(folders):
    """A pruned model beside the dense one and a copy of itself."""
    pruned, dense, data = folders
    sizes = {"prompt_tokens": 8, "new_tokens": 4, "batch_size": 4, "device": "cpu"}
    return evaluate(pruned, [dense, pruned], dataset=str(data), seq_len=LENGTH, **sizes)


def test_perplexity_equals_reference_on_test_split(evaluation, folders):
    pruned, dense, data = folders
    windows = windows_of(data / "test.txt")
    for role, folder in (("model", pruned), ("baseline", dense), ("baseline 2", pruned)):
        measured = evaluation[role]["perplexity"]
        model, _ = load_any(str(folder), LoadOptions())
        assert measured["perplexity"] == pytest.approx(reference_perplexity(model, windows), rel=1e-5)
        assert (measured["windows"], measured["window_length"], measured["split"]) == (len(windows), LENGTH, "test")
        assert measured["comparable"]


def test_divergence_from_first_baseline_equals_reference(evaluation, folders):
    pruned, dense, data = folders
    windows = windows_of(data / "test.txt")
    expected, found = (
        load_any(str(folder), LoadOptions())[0](windows).logits[:, :-1].log_softmax(-1) for folder in (dense, pruned)
    )
    divergences = kl_div(found, expected, reduction="none", log_target=True).sum(-1).mean(1)
    for role in ("model", "baseline 2"):
        measured = evaluation[role]["perplexity"]
        assert measured["divergences"] == pytest.approx(divergences.tolist(), rel=1e-3)
        assert measured["divergence"] == pytest.approx(float(divergences.mean()), rel=1e-3)
        assert measured["agreement"] == pytest.approx(float((found.argmax(-1) == expected.argmax(-1)).double().mean()))
    assert "divergence" not in evaluation["baseline"]["perplexity"]


def test_evaluation_reports_sparsity_size_and_speed(evaluation, pruned):
    model, baseline, policy = evaluation["model"], evaluation["baseline"], pruned[0].result.policy
    assert model["sparsity"] == pytest.approx(policy.sparsity) and model["sparsity_source"] == "the baseline"
    assert model["weight_bytes"] < baseline["weight_bytes"]
    assert model["speed"]["new_tokens"] == 4


def test_table_has_column_per_model_and_ratio_to_first_baseline(evaluation):
    rows = {re.split("  +", line)[0]: line for line in str(evaluation).splitlines()}
    model, baseline, other = (record["perplexity"] for record in evaluation.values())
    words = rows["perplexity"].split()
    assert words[1:4] == [f"{one['perplexity']:,.2f}" for one in (model, baseline, other)]
    assert words[4:7] == [f"{model['perplexity'] / baseline['perplexity']:.3f}", "±", f"{model['ratio_error']:.3f}"]
    assert rows["divergence"].count(f" {model['divergence']:.4f} ± ") == 2
    (note,) = [line for line in str(evaluation).splitlines() if line.startswith("perplexity: ")]
    assert "windows of 24 tokens" in note


def test_perplexity_ratio_error_uses_paired_losses(evaluation):
    losses, baseline = (np.array(evaluation[role]["perplexity"]["losses"]) for role in ("model", "baseline"))
    differences = losses - baseline
    expected = np.exp(differences.mean()) * block_error(differences)
    assert evaluation["model"]["perplexity"]["ratio_error"] == pytest.approx(expected) and expected > 0


def test_loaded_model_and_its_folder_give_same_results(evaluation, folders):
    pruned, dense, data = folders
    model = FFPModelForCausalLM.from_pretrained(pruned)
    found = evaluate(model, str(dense), dataset=str(data), **QUICK)
    expected = evaluation["model"]["perplexity"]
    assert found["model"]["perplexity"]["losses"] == pytest.approx(expected["losses"], rel=1e-5)
    assert found["model"]["perplexity"]["divergence"] == pytest.approx(expected["divergence"], rel=1e-3)
    assert "weight_bytes" not in found["model"] and "weight_bytes" in found["baseline"]


@pytest.mark.slow
def test_every_dataset_of_mix_is_reported_separately(folders, tmp_path):
    pruned, dense, data = folders
    (tmp_path / "my.txt").write_text(make_text(1500, 9))
    found = evaluate(str(pruned), str(dense), dataset=f"{data},{tmp_path / 'my.txt'}", **QUICK)
    first, second = found["model"]["perplexity"], *found["model"]["other_texts"]
    assert first["perplexity"] == pytest.approx(
        reference_perplexity(load_any(str(pruned), LoadOptions())[0], windows_of(data / "test.txt")), rel=1e-5
    )
    # One file is measured where a prune reports.
    texts = TextMix.parse(str(tmp_path / "my.txt"))
    request = DataRequest(texts, texts, length=LENGTH, calibration=1, search=1, held_out=1, test=None, seed=0)
    expected = load_windows(make_tokenizer(), make_tiny_model(), request).test
    other = found["baseline"]["other_texts"][0]
    assert other["perplexity"] == pytest.approx(reference_perplexity(make_tiny_model(), expected.tokens), rel=1e-5)
    assert other["split"] == "test part of my.txt"
    rows = {re.split("  +", line)[0]: line for line in str(found).splitlines()}
    assert f"{second['perplexity']:,.2f}" in rows["perplexity, text 2"]
    assert f"{second['divergence']:.4f} ± " in rows["divergence, text 2"]


@pytest.mark.parametrize("start_token", ["auto", "never"])
def test_evaluate_reproduces_perplexity_recorded_by_prune(start_token, tmp_path):
    data = write_data(tmp_path / "data")
    dense = save(tmp_path / "dense", tokenizer=with_start_token(make_tokenizer()))
    pruner = make_pruner(dense, data, method="uniform", calibration="ridge", start_token=start_token)
    result = pruner.prune()
    pruner.save_pretrained(tmp_path / "pruned")
    found = evaluate(tmp_path / "pruned", dense, dataset=str(data), eval_samples=3, speed=False, device="cpu")
    figures = result.tests[0][1]
    for role, name in (("model", "calibrated"), ("baseline", "dense")):
        assert found[role]["perplexity"]["perplexity"] == pytest.approx(figures[name], rel=1e-5)
        assert found[role]["perplexity"]["start_token"] is (start_token == "auto")
    alone = evaluate(tmp_path / "pruned", dataset=None, speed=False, device="cpu")["model"]
    assert alone["sparsity"] == result.policy.sparsity and alone["sparsity_source"] == "ffp_config.json"


@pytest.mark.slow
def test_gguf_file_evaluates_like_its_source_model(tmp_path):
    pytest.importorskip("gguf")
    from optimum_ffp.export import export_gguf

    (tmp_path / "sample.txt").write_text(SAMPLE * 40)
    tokenizer = with_start_token(make_byte_level_tokenizer())
    model = make_tiny_model(vocab_size=len(tokenizer))
    folder, file = save(tmp_path / "folder", model, tokenizer), tmp_path / "model.gguf"
    export_gguf(model, tokenizer, file, "f32")
    found = evaluate(file, folder, dataset=str(tmp_path / "sample.txt"), **QUICK)
    measured, expected = found["model"]["perplexity"], found["baseline"]["perplexity"]
    assert measured["losses"] == pytest.approx(expected["losses"]) and measured["start_token"] is True
    assert measured["divergence"] == pytest.approx(0, abs=1e-6) and measured["agreement"] == 1
    assert found["model"]["weight_bytes"] == file.stat().st_size and "is dequantized" in str(found)


def test_window_length_is_shortest_context_of_all_models(folders, tmp_path):
    short = save(tmp_path / "short", make_tiny_model(max_position_embeddings=32))
    found = evaluate(folders[1], short, dataset=str(folders[2]), speed=False, device="cpu")
    assert {record["perplexity"]["window_length"] for record in found.values()} == {32}
    assert found["model"]["perplexity"]["comparable"]


def test_different_tokenizers_are_not_compared(folders, tmp_path):
    other = save(tmp_path / "other", tokenizer=with_start_token(make_tokenizer()))
    found = evaluate(folders[1], other, dataset=str(folders[2]), eval_samples=3, **QUICK)
    assert "ratio_error" not in found["model"]["perplexity"] and "divergence" not in found["model"]["perplexity"]
    assert "tokenizers differ" in str(found)
    (line,) = [line for line in str(found).splitlines() if line.startswith("bits per byte  ")]
    assert line.endswith(" -") and len(line.split()) == 6


@pytest.fixture(scope="module")
def trimmed(tmp_path_factory):
    """Folders of a model, the same with bytes as its only tokens, and text; and the windows of this in both."""
    folder, tokenizer = tmp_path_factory.mktemp("trimmed"), make_byte_level_tokenizer()
    text = "The naïve fox, лиса or αλεπού, sleeps in its den. " * 30
    (folder / "text").mkdir()
    for split in ("train", "validation", "test"):
        (folder / "text" / f"{split}.txt").write_text(text)
    model = make_tiny_model(vocab_size=len(tokenizer))
    save(folder / "dense", model, tokenizer)
    vocab = tokenizer.get_vocab()
    kept = torch.tensor(sorted(i for token, i in vocab.items() if len(token) == 1 or token.startswith("<|")))
    small = make_tiny_model(vocab_size=len(kept))
    small.load_state_dict(
        {name: rows[kept] if len(rows) == len(tokenizer) else rows for name, rows in model.state_dict().items()}
    )
    bytes_alone = trim_tokenizer(tokenizer, kept)
    save(folder / "trimmed", small, bytes_alone)
    tokens = tokenizer.tokenize(text)
    windows = [tokens[first : first + LENGTH] for first in range(0, len(tokens) - LENGTH + 1, LENGTH)]
    in_bytes = [[bytes_alone.convert_tokens_to_ids([*token]) for token in window] for window in windows]
    in_tokens = [[[vocab[token]] for token in window] for window in windows]
    return folder, {"dense": (model, in_tokens), "trimmed": (small, in_bytes)}


def bits_of(model, window):
    """Bits of all tokens of a window but the first; a token is a list of ids."""
    ids = torch.tensor(sum(window, []))
    losses = -model(ids[None]).logits[0, :-1].double().log_softmax(-1).gather(1, ids[1:, None]).sum(1)
    return float(losses[len(window[0]) - 1 :].sum()) / math.log(2)


@pytest.mark.parametrize("names", [("trimmed", "dense", "trimmed"), ("dense", "trimmed", "trimmed")])
def test_trimmed_vocabulary_is_measured_on_same_text(trimmed, names):
    folder, models = trimmed
    model, *baselines = (folder / name for name in names)
    found = evaluate(model, baselines, dataset=str(folder / "text"), batch_size=3, **QUICK)
    measured = [record["perplexity"] for record in found.values()]
    # A token of the trimmed vocabulary is a byte.
    count = sum(len(ids) for window in models["trimmed"][1] for ids in window[1:])
    lines = {re.split("  +", line)[0]: line for line in str(found).splitlines()}
    for name, record in zip(names, measured):
        plain, windows = models[name]
        bits = [bits_of(plain, window) for window in windows]
        assert record["bytes"] == count
        nats = [value * math.log(2) / (LENGTH - 1) for value in bits]
        assert record["losses"] == pytest.approx(nats, rel=1e-4)
        assert f" {sum(bits) / count:.3f}" in lines["bits per byte"]
        assert record["comparable"] and "divergence" not in record
    differences = np.array(measured[0]["losses"]) - np.array(measured[1]["losses"])
    expected = np.exp(differences.mean()) * block_error(differences)
    assert measured[0]["ratio_error"] == pytest.approx(expected)


def test_models_with_same_trimmed_vocabulary_have_divergence(trimmed):
    folder, _ = trimmed
    found = evaluate(folder / "trimmed", folder / "trimmed", dataset=str(folder / "text"), **QUICK)
    assert found["model"]["perplexity"]["agreement"] == 1


def test_evaluate_without_speed_keeps_one_model_in_memory(folders, monkeypatch):
    loaded = []

    def load(*arguments):
        gc.collect()
        assert not any(reference() for reference in loaded)
        model, tokenizer = load_any(*arguments)
        loaded.append(weakref.ref(model))
        return model, tokenizer

    monkeypatch.setattr(sys.modules[evaluate.__module__], "load_any", load)
    evaluate(folders[0], [folders[1], folders[0]], dataset=str(folders[2]), eval_samples=2, **QUICK)
    assert len(loaded) == 3


def test_nan_perplexity_is_printed(folders):
    model = make_tiny_model()
    model.lm_head.weight.data.fill_(torch.nan)
    options = {"dataset": str(folders[2]), "eval_samples": 2, "tokenizer": make_tokenizer()}
    found = evaluate(model, folders[1], **options, **QUICK)
    assert math.isnan(found["model"]["perplexity"]["perplexity"]) and "nan" in str(found)


@pytest.mark.slow
def test_evaluation_halves_batch_size_when_out_of_memory(folders, monkeypatch):
    decoder = type(make_tiny_model().model)
    forward, options = decoder.forward, {"dataset": str(folders[2]), "eval_samples": 2}

    def fail_of_large_batches(self, input_ids=None, **arguments):
        if len(input_ids) > 1:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(self, input_ids, **arguments)

    expected = evaluate(folders[0], folders[1], **options, **QUICK)["model"]["perplexity"]
    monkeypatch.setattr(decoder, "forward", fail_of_large_batches)
    found = evaluate(folders[0], folders[1], batch_size=2, **options, **QUICK)["model"]["perplexity"]
    for name in ("losses", "divergences"):
        assert found[name] == pytest.approx(expected[name], rel=1e-4)


def test_baseline_revision_is_given_after_at_sign(folders, tmp_path, monkeypatch):
    snapshot = tmp_path / "hub" / "models--someone--model" / "snapshots" / ("0" * 40)
    shutil.copytree(folders[1], snapshot)
    (snapshot.parent.parent / "refs").mkdir()
    (snapshot.parent.parent / "refs" / "v1").write_text("0" * 40)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    options = {"dataset": None, "speed": False, "device": "cpu"}
    found = evaluate(folders[0], "someone/model@v1", **options)
    assert found["baseline"]["name"] == "someone/model@v1"
    assert found["baseline"]["weight_bytes"] == (snapshot / "model.safetensors").stat().st_size
    with pytest.raises(FFPError, match="someone/model"):
        evaluate(folders[0], "someone/model@v2", **options)


def test_model_in_training_mode_is_evaluated_without_dropout(folders):
    model, data = make_tiny_model("gpt2", resid_pdrop=0.5, embd_pdrop=0.5), folders[2]
    expected = reference_perplexity(model.eval(), windows_of(data / "test.txt"))
    measured = evaluate(model.train(), dataset=str(data), tokenizer=make_tokenizer(), **QUICK)
    assert measured["model"]["perplexity"]["perplexity"] == pytest.approx(expected, rel=1e-5)


def test_loaded_model_without_name_requires_tokenizer():
    with pytest.raises(FFPError, match="tokenizer="):
        evaluate(make_tiny_model(), dataset=None)


def test_error_of_perplexity_ratio_equals_bootstrap():
    generator, windows = torch.Generator().manual_seed(0), 400
    losses = torch.randn(2, windows, generator=generator).double() * torch.tensor([[0.3], [0.1]]) + 3
    records = {
        role: {"projection_parameters": 0, "perplexity": {"losses": row.tolist()}, "other_texts": []}
        for role, row in zip(("model", "baseline"), losses)
    }
    compare_records(records, {role: [Windows(torch.zeros(windows, 2), "", "")] for role in records})
    drawn = (losses[0] - losses[1])[torch.randint(windows, (2000, windows), generator=generator)].mean(1).exp()
    assert records["model"]["perplexity"]["ratio_error"] == pytest.approx(float(drawn.std()), rel=0.3)
