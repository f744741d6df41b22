import json
from functools import partial
from pydoc_data.topics import topics

import pytest
import torch
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from optimum_ffp.errors import FFPError
from optimum_ffp.export import export_gguf
from optimum_ffp.vocabulary import choose_tokens, count_tokens, trim_tokenizer
from tests.helpers import (
    CONFIGS,
    GROUPINGS,
    SAMPLE,
    SCALED_ROPE,
    make_byte_fallback_tokenizer,
    make_byte_level_tokenizer,
    make_tiny_model,
    make_tokenizer,
    prune_to_sizes,
)


VOCABULARY = 600
TEXTS = ["the quick brown fox", "Zwölf foxes' dens 1987,  at\n night:", "the"]


def make_model(name="llama", pruned=True, groups=(None,), **sizes):
    """A tiny model with a large vocabulary, dense or with a different size in every layer."""
    model = make_tiny_model(name, vocab_size=VOCABULARY, **sizes)
    # Layer 0 loses heads too: llama.cpp derives sizes from it where they aren't given.
    return prune_to_sizes(model, groups=groups)[0] if pruned else model


def make_incomplete_model(name, **sizes):
    """A model without the FFN of the second layer, the third layer, and the attention of the last."""
    model = make_tiny_model(name, vocab_size=VOCABULARY, num_hidden_layers=4, **sizes)
    size = {3: 0, 4: 0, 5: 0, 6: 0}
    return prune_to_sizes(model, lambda groups, index: size.get(index, groups - index % 3), smallest=0)[0]


def make_homogeneous_model(name, group):
    """A model of the dense class, with half of the heads in every layer."""
    model = make_tiny_model(name, vocab_size=VOCABULARY)
    pruned, _ = prune_to_sizes(model, lambda count, index: count - 3 if index % 2 else count // 2, (group,), True)
    assert type(pruned) is type(model) and pruned.config.num_attention_heads == 4
    return pruned


def check(model, tokenizer, path, run_llama_cpp, atol=2e-3):
    """Same tokens, same log-probabilities of what comes next, same greedy tokens."""
    for text, found in zip(TEXTS, run_llama_cpp(path, TEXTS, 8)):
        ids = tokenizer(text).input_ids
        assert found["tokens"] == ids
        expected = model(torch.tensor([ids])).logits[0, -1].log_softmax(-1)
        order, values = zip(*found["logprobs"])
        assert len(set(order)) == VOCABULARY
        assert torch.allclose(torch.tensor(values), expected[list(order)], atol=atol)
        options = {"do_sample": False, "pad_token_id": 0, "eos_token_id": None}
        answer = model.generate(torch.tensor([ids]), max_new_tokens=8, **options)
        assert found["greedy"] == answer[0, len(ids) :].tolist()


def export_and_read(model, path, output_type="f32"):
    """Metadata and tensors of the file that a model is exported to."""
    gguf = pytest.importorskip("gguf")
    export_gguf(model, make_byte_level_tokenizer(), path, output_type)
    reader = gguf.GGUFReader(path)
    return reader.fields, {tensor.name: tensor for tensor in reader.tensors}


TIED = {"tie_word_embeddings": True}
LINEAR_ROPE = {"rope_type": "linear", "rope_theta": 10000.0, "factor": 2.0}
BOTH_GROUPS, ONE_KV_HEAD = (
    sizes | {"groups": groups} for sizes, groups in (GROUPINGS["both groups"], GROUPINGS["one KV head"])
)
# How a model is made, its architecture in llama.cpp, and whether its layers are padded to one size.
CASES = {
    "llama with llama3 RoPE": (partial(make_model, rope_parameters=SCALED_ROPE), "deci", False),
    "llama with linear RoPE": (partial(make_model, rope_parameters=LINEAR_ROPE), "deci", False),
    "mistral with both groups": (partial(make_model, "mistral", sliding_window=32, **BOTH_GROUPS), "deci", False),
    "qwen2 with one KV head": (partial(make_model, "qwen2", **ONE_KV_HEAD), "deci", False),
    "qwen3 with both groups": (partial(make_model, "qwen3", **TIED | BOTH_GROUPS), "openelm", False),
    "incomplete llama": (partial(make_incomplete_model, "llama"), "deci", False),
    "incomplete and padded qwen2": (partial(make_incomplete_model, "qwen2"), "qwen2", True),
    "incomplete qwen3": (partial(make_incomplete_model, "qwen3", **TIED), "openelm", False),
    "dense llama": (partial(make_model, pruned=False), "llama", False),
    "padded qwen2": (partial(make_model, "qwen2"), "qwen2", True),
    "padded qwen3 with both groups": (partial(make_model, "qwen3", **BOTH_GROUPS), "qwen3", True),
    "homogeneous llama": (partial(make_homogeneous_model, "llama", "kv_group"), "llama", False),
    "homogeneous and padded qwen2": (partial(make_homogeneous_model, "qwen2", "query_head"), "qwen2", True),
    "homogeneous qwen3": (partial(make_homogeneous_model, "qwen3", "query_head"), "qwen3", False),
}


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_exported_model_matches_transformers_in_llama_cpp(case, run_llama_cpp, tmp_path):
    make, architecture, pad_uniform = CASES[case]
    model, tokenizer, path = make(), make_byte_level_tokenizer(), tmp_path / "model.gguf"
    assert export_gguf(model, tokenizer, path, "f32", pad_uniform).name == architecture
    check(model, tokenizer, path, run_llama_cpp)


def test_removed_attention_has_no_heads_and_removed_ffn_one_zero_channel(tmp_path):
    fields, tensors = export_and_read(make_incomplete_model("llama"), tmp_path / "model.gguf", "q8_0")
    columns = ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    sizes = zip(*(fields[f"deci.{column}"].contents() for column in columns))
    assert list(sizes) == [(8, 4, 47), (4, 2, 1), (0, 0, 47)]
    assert not tensors["blk.1.ffn_down.weight"].data.any() and tensors["blk.2.ffn_down.weight"].data.any()
    assert not any(name.startswith("blk.2.attn") for name in tensors)


@pytest.mark.parametrize(
    ("name", "sizes", "expected"),
    [
        ("llama", BOTH_GROUPS, [(4, 1, 46), (2, 2, 47), (4, 1, 45)]),
        ("qwen3", TIED | BOTH_GROUPS, [(4, 1, 46), (2, 2, 47), (4, 1, 45)]),
        ("qwen2", ONE_KV_HEAD, [(7, 1, 46), (5, 1, 47), (6, 1, 45)]),
    ],
)
def test_heads_and_kv_heads_are_written_per_layer(name, sizes, expected, tmp_path):
    model = make_model(name, **sizes)
    fields, _ = export_and_read(model, tmp_path / "model.gguf")
    columns = [
        next(field.contents() for key, field in fields.items() if key.endswith(f".{column}"))
        for column in ("attention.head_count", "attention.head_count_kv", "feed_forward_length")
    ]
    assert list(zip(*columns)) == expected
    attentions = [layer.self_attn for layer in model.model.layers]
    assert [attention.q_proj.out_features // attention.head_dim for attention in attentions] == columns[0]


@pytest.mark.parametrize("name", ["llama", "qwen2"])
def test_transformers_loads_uniformly_padded_gguf_file(name, windows, tmp_path):
    # Layers of one KV head with four query heads, and of two with one each: together, of two with four each.
    model, tokenizer = make_model(name, **BOTH_GROUPS), make_byte_level_tokenizer()
    export_gguf(model, tokenizer, tmp_path / "model.gguf", "f32", pad_uniform=True)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32)
    assert (loaded.config.num_attention_heads, loaded.config.num_key_value_heads) == (8, 2)
    assert torch.allclose(loaded(windows).logits, model(windows).logits, atol=2e-3)


# Six layers, of which the last has full attention, as llama.cpp has it.
GEMMA3 = {"num_hidden_layers": 6, "layer_types": ["sliding_attention"] * 5 + ["full_attention"]}
GEMMA3 |= {"query_pre_attn_scalar": 6}


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize(
    ("pruned", "sizes"), [(False, {}), (True, {"num_key_value_heads": 1, "groups": ("query_head",)})]
)
def test_gemma3_requires_uniform_padding(pruned, sizes, run_llama_cpp, tmp_path):
    model, tokenizer, path = (
        make_model("gemma3", pruned, **GEMMA3 | sizes),
        make_byte_fallback_tokenizer(),
        tmp_path / "a.gguf",
    )
    if pruned:
        with pytest.raises(FFPError, match="pad-uniform"):
            export_gguf(model, tokenizer, path, "f32")
    assert export_gguf(model, tokenizer, path, "f32", pad_uniform=pruned).name == "gemma3"
    # The GELU of llama.cpp is a table of float16 numbers, by which the dense model differs as much.
    check(model, tokenizer, path, run_llama_cpp, atol=1e-2)


@pytest.mark.network
@pytest.mark.slow
def test_tokenizer_with_byte_fallback_matches_in_llama_cpp(run_llama_cpp, tmp_path):
    model, tokenizer, path = make_model(), make_byte_fallback_tokenizer(), tmp_path / "model.gguf"
    export_gguf(model, tokenizer, path, "f32")
    check(model, tokenizer, path, run_llama_cpp)


@pytest.mark.network
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["byte-level", "byte fallback"])
def test_trimmed_tokenizer_matches_in_llama_cpp(kind, run_llama_cpp, tmp_path):
    model, path, dense = make_model(), tmp_path / "model.gguf", make_byte_fallback_tokenizer()
    if kind == "byte-level":
        dense = make_byte_level_tokenizer().train_new_from_iterator([SAMPLE, *topics.values()], VOCABULARY)
    tokenizer = trim_tokenizer(dense, choose_tokens(dense, count_tokens(dense, [topics["class"]]), 320))
    assert any(len(tokenizer(text).input_ids) > len(dense(text).input_ids) for text in TEXTS)
    export_gguf(model, tokenizer, path, "f32")
    check(model, tokenizer, path, run_llama_cpp)


def make_gemma_tokenizer():
    """As Gemma's: no space before the text, and runs of spaces are tokens that are added too, and not special."""
    described = json.loads(make_byte_fallback_tokenizer().backend_tokenizer.to_str())
    described["normalizer"] = {"type": "Replace", "pattern": {"String": " "}, "content": "▁"}
    model, added = described["model"], described["added_tokens"]
    for run, merge in (("▁▁", ["▁", "▁"]), ("▁▁▁▁", ["▁▁", "▁▁"])):
        model["vocab"][run] = len(model["vocab"])
        added.append(added[0] | {"id": model["vocab"][run], "content": run, "special": False})
        model["merges"].insert(len(added) - 4, merge)
    tokenizer = Tokenizer.from_str(json.dumps(described))
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>", bos_token="<s>", eos_token="</s>")


@pytest.mark.network
@pytest.mark.slow
def test_runs_of_spaces_are_preserved(run_llama_cpp, tmp_path):
    model, tokenizer, path = make_model(), make_gemma_tokenizer(), tmp_path / "model.gguf"
    export_gguf(model, tokenizer, path, "f32")
    texts = ["the  quick brown", "fox\n    night"]
    for text, run, found in zip(texts, ("▁▁", "▁▁▁▁"), run_llama_cpp(path, texts, 1)):
        ids = tokenizer(text).input_ids
        assert found["tokens"] == ids and tokenizer.convert_tokens_to_ids(run) in ids
        assert found["text"] == text


@pytest.mark.parametrize("output_type", ["f16", "bf16", "q8_0", "q4_0"])
def test_output_types_have_expected_rounding_error(output_type, tmp_path):
    import gguf

    model = make_model(pruned=False, hidden_size=64, intermediate_size=96)
    _, tensors = export_and_read(model, tmp_path / "model.gguf", output_type)
    written = tensors["blk.1.ffn_down.weight"]
    assert written.tensor_type.name == output_type.upper()
    weight = model.model.layers[1].mlp.down_proj.weight
    restored = torch.from_numpy(gguf.quants.dequantize(written.data, written.tensor_type).copy()).view_as(weight)
    error = float((restored - weight).norm() / weight.norm())
    assert error < {"f16": 1e-3, "bf16": 4e-3, "q8_0": 0.01, "q4_0": 0.15}[output_type]
    assert tensors["token_embd.weight"].tensor_type.name == ("Q8_0" if output_type == "q4_0" else output_type.upper())
    assert tensors["blk.0.attn_norm.weight"].tensor_type.name == "F32"


def test_rows_not_divisible_into_blocks_stay_float16(tmp_path):
    _, tensors = export_and_read(make_model(), tmp_path / "model.gguf", "q8_0")
    assert tensors["blk.0.ffn_down.weight"].tensor_type.name == "F16"
    assert tensors["blk.0.ffn_up.weight"].tensor_type.name == "Q8_0"


@pytest.mark.parametrize(
    ("name", "sizes", "word"),
    [
        ("opt", {}, "opt"),
        ("qwen3", {}, "tied"),
        ("llama-mha", {"mlp_bias": False}, "bias"),
        ("qwen3", TIED | {"attention_bias": True}, "bias"),
        ("llama", {"hidden_act": "gelu"}, "gelu"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
    ],
)
def test_models_unsupported_by_llama_cpp_are_rejected(name, sizes, word, tmp_path):
    with pytest.raises(FFPError, match=word):
        export_gguf(make_model(name, **sizes), make_byte_level_tokenizer(), tmp_path / "model.gguf")
    assert not list(tmp_path.iterdir())


def test_quantized_model_is_rejected(tmp_path):
    model = make_model()
    model.config.quantization_config = {"quant_method": "bitsandbytes"}
    with pytest.raises(FFPError, match="quanti"):
        export_gguf(model, make_byte_level_tokenizer(), tmp_path / "model.gguf")


def test_tokenizer_unsupported_by_llama_cpp_is_rejected(tmp_path):
    with pytest.raises(FFPError, match="WordLevel"):
        export_gguf(make_model(), make_tokenizer(), tmp_path / "model.gguf")


def test_every_exported_model_type_has_tiny_model():
    from optimum_ffp.export.architectures import PER_LAYER, UNIFORM

    assert set(PER_LAYER) < set(UNIFORM) <= {model_type for model_type, _ in CONFIGS.values()}


@pytest.mark.parametrize("templates", ["{{ messages }}", {"default": "{{ messages }}", "tool_use": "{{ tools }}"}])
def test_all_chat_templates_are_written(templates, tmp_path):
    import gguf

    tokenizer = make_byte_level_tokenizer()
    tokenizer.chat_template = templates
    export_gguf(make_model(), tokenizer, tmp_path / "model.gguf")
    fields = gguf.GGUFReader(tmp_path / "model.gguf").fields
    assert fields["tokenizer.chat_template"].contents() == "{{ messages }}"
    named = fields.get("tokenizer.chat_template.tool_use")
    assert (named and named.contents()) == (templates["tool_use"] if isinstance(templates, dict) else None)
