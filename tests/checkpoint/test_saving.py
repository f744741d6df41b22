import json
import math
from dataclasses import replace

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

from optimum_ffp import FFPConfig, FFPError, FFPModelForCausalLM, FFPPruner
from optimum_ffp.checkpoint.card import render_card
from optimum_ffp.checkpoint.saving import load_agent, save_checkpoint, save_model, save_tokenizer
from optimum_ffp.modeling.auto import mark_untied
from optimum_ffp.modeling.loading import LoadOptions, load_dense
from optimum_ffp.utils.record import Record
from tests.helpers import (
    CHECKPOINT_FILES,
    make_tiny_model,
    make_tokenizer,
    read_files,
    save_with_tokenizer,
    with_start_token,
)


def test_from_pretrained_accepts_auto_class_arguments(pruned):
    _, folder = pruned
    options = {"dtype": torch.bfloat16, "attn_implementation": "eager"}
    ours, theirs = (
        one.from_pretrained(folder, trust_remote_code=True, **options)
        for one in (FFPModelForCausalLM, AutoModelForCausalLM)
    )
    assert ours.config._attn_implementation == "eager"
    assert ours.dtype == theirs.dtype == torch.bfloat16
    assert ours.config.to_diff_dict() == theirs.config.to_diff_dict()
    with pytest.raises(FFPError, match="unexpected keyword argument 'no_option'"):
        FFPModelForCausalLM.from_pretrained(folder, no_option=1)


@pytest.mark.parametrize("loader", ["remote", "package"])
def test_reloaded_model_gives_same_logits(pruned, windows, loader):
    pruner, folder = pruned
    if loader == "remote":
        model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)
    else:
        model = FFPModelForCausalLM.from_pretrained(folder)
    assert torch.equal(model(windows).logits, pruner.result.model(windows).logits)


def test_resaved_checkpoint_contains_modeling_code(pruned, windows, tmp_path):
    _, folder = pruned
    model = FFPModelForCausalLM.from_pretrained(folder)
    model.save_pretrained(tmp_path / "again")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "again", trust_remote_code=True)
    assert torch.equal(again(windows).logits, model(windows).logits)


def test_record_has_policy_results_and_file_list(pruned):
    pruner, folder = pruned
    record = json.loads((folder / "ffp_config.json").read_text())
    assert Record.read(folder).policy.units == pruner.result.policy.rows
    search = record["search"]
    assert search["candidate_evaluations"] == len((folder / "search_log.jsonl").read_text().splitlines())
    assert search["tokens_evaluated"] > 0 and search["method"] == "ffp" and search["seed"] == 0
    assert record["provenance"]["perplexity"]["calibrated"] == pruner.result.perplexity
    assert record["files"] == sorted(read_files(folder)) == sorted(CHECKPOINT_FILES) and record["schema_version"] == 1
    assert [path.name for path in folder.parent.iterdir()] == ["pruned"]
    model = {"class": "FFPLlamaForCausalLM", "code_file": "modeling_ffp_llama.py", "linear": True, "gguf": None}
    assert record["model"] == model | {"chat": False, "language_model_only": False}
    config = pruner.result.plan
    loaded = FFPConfig.from_file(folder / "ffp_config.json", dataset=config.dataset)
    assert loaded.to_dict() == config.to_dict()
    assert (folder / "README.md").read_text() == render_card(Record.from_dict(record), "./pruned")
    assert str(folder.parent.parent) not in (folder / "README.md").read_text() + json.dumps(record)


@pytest.mark.slow
def test_nonfinite_results_are_saved_as_valid_json(pruned, tmp_path):
    result = pruned[0].result
    losses = result.losses | {"calibrated": [[math.inf]]}
    search = replace(result.search, log=[result.log[0] | {"perplexity": math.nan, "reward": 0.0}, *result.log])
    out = save_checkpoint(replace(result, losses=losses, search=search), tmp_path / "out")
    for text in ((out / "ffp_config.json").read_text(), *(out / "search_log.jsonl").read_text().splitlines()):
        json.loads(text, parse_constant=lambda word: pytest.fail(f"{word} is not valid JSON"))
    for name in ("README.md", "report.html"):
        assert "not finite" in (out / name).read_text()


@pytest.mark.slow
def test_saved_agent_warm_starts_another_search(pruned):
    pruner, folder = pruned
    agent = load_agent(folder)
    assert set(agent) == set(pruner.result.agent)
    saved = pruner.result
    assert pruner.prune(warm_start=folder, sparsity=0.4).policy.sparsity == pytest.approx(0.4, abs=0.01)
    pruner.result = saved


def test_saving_before_pruning_is_rejected(save_tiny_model, tmp_path):
    pruner = FFPPruner.from_pretrained(save_tiny_model(), device="cpu")
    with pytest.raises(FFPError, match="call prune"):
        pruner.save_pretrained(tmp_path / "out")


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Exception("No space left (os error 28)")])
def test_full_disk_is_one_line_error_and_leaves_no_files(pruned, tmp_path, monkeypatch, error):
    def fail(*arguments):
        raise error

    monkeypatch.setattr("optimum_ffp.checkpoint.saving.save_tokenizer", fail)
    with pytest.raises(FFPError, match="No space left.*--resume"):
        save_checkpoint(pruned[0].result, tmp_path / "out", work_folder=tmp_path / "work")
    assert not list(tmp_path.iterdir())


def test_type_error_while_saving_is_raised_unchanged(pruned, tmp_path, monkeypatch):
    monkeypatch.setattr("optimum_ffp.checkpoint.saving.save_tokenizer", None)
    with pytest.raises(TypeError):
        save_checkpoint(pruned[0].result, tmp_path / "out")


@pytest.mark.slow
def test_extra_tokenizer_files_are_recorded(pruned, tmp_path, monkeypatch):
    def save(tokenizer, folder):
        save_tokenizer(tokenizer, folder)
        (folder / "my.tiktoken").touch()

    monkeypatch.setattr("optimum_ffp.checkpoint.saving.save_tokenizer", save)
    for overwrite in (False, True):
        save_checkpoint(pruned[0].result, tmp_path / "out", overwrite)
    assert "my.tiktoken" in json.loads((tmp_path / "out" / "ffp_config.json").read_text())["files"]


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 0.5, "top_p": 0.9, "eos_token_id": 3},
        {"early_stopping": True, "pad_token_id": -1, "length_penalty": 2.0},
        {"do_sample": True, "temperature": 0.5},
    ],
)
def test_invalid_generation_config_is_saved(settings, tmp_path):
    model = make_tiny_model()
    model.generation_config = own = GenerationConfig(**settings)
    save_model(model, tmp_path)
    assert model.generation_config is own
    assert settings.items() <= GenerationConfig.from_pretrained(tmp_path).to_diff_dict().items()


@pytest.mark.parametrize("adds", [True, False])
def test_saved_tokenizer_loads_in_transformers_4(adds, tmp_path):
    tokenizer = with_start_token(make_tokenizer()) if adds else make_tokenizer()
    tokenizer.add_special_tokens({"extra_special_tokens": ["w5", "w6"]})
    save_tokenizer(tokenizer, tmp_path)
    path = tmp_path / "tokenizer_config.json"
    content = json.loads(path.read_text())
    assert content["additional_special_tokens"] == ["w5", "w6"] and "extra_special_tokens" not in content
    assert "add_bos_token" not in content
    path.write_text(json.dumps(content | {"tokenizer_class": "LlamaTokenizer", "add_bos_token": adds}))
    llama = AutoTokenizer.from_pretrained(tmp_path)
    save_tokenizer(llama, tmp_path / "llama")
    content = json.loads((tmp_path / "llama" / "tokenizer_config.json").read_text())
    assert (content["add_bos_token"], content["add_eos_token"]) == (adds, False) and "is_local" not in content
    again = AutoTokenizer.from_pretrained(tmp_path / "llama")
    assert {"w5", "w6"} <= set(again.all_special_tokens)
    for text in ("w7 w8", ""):
        assert again(text).input_ids == llama(text).input_ids


def test_untied_lm_head_overrides_tied_config(tmp_path, windows):
    """As a merged adapter of the head leaves it: transformers loads both, and the config says that they are one."""
    dense = make_tiny_model(tie_word_embeddings=False)
    save_with_tokenizer(dense, tmp_path / "dense")
    path = tmp_path / "dense" / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"tie_word_embeddings": True}))
    model, _ = load_dense(str(tmp_path / "dense"), LoadOptions(device="cpu"))
    assert model.config.tie_word_embeddings is False
    assert torch.equal(model(windows).logits, dense(windows).logits)
    tied = make_tiny_model(tie_word_embeddings=True)
    mark_untied(tied)
    assert tied.config.tie_word_embeddings is True
