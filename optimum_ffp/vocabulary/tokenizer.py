"""Tokenizers with fewer tokens."""

import copy
import json
from collections.abc import Mapping
from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import FFPError


# Entries of configs, beside `*_token_id`, that are lists of token ids.
TOKEN_LISTS = ("suppress_tokens", "begin_suppress_tokens")


def read_backend(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the content of `tokenizer.json`.

    Raises `FFPError` unless the tokenizer is byte-level BPE, BPE with byte fallback, or Unigram.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FFPError(
            f"{type(tokenizer).__name__} has no tokenizer.json; only the vocabulary of a fast tokenizer can be trimmed"
        )
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    model, steps = content["model"], json.dumps([content["normalizer"], content["pre_tokenizer"]])
    affixes = model.get("continuing_subword_prefix") or model.get("end_of_word_suffix")
    encodes_bytes = model.get("byte_fallback") or '"ByteLevel"' in steps
    if model["type"] == "Unigram" or (model["type"] == "BPE" and encodes_bytes and not affixes):
        return content
    raise FFPError(
        f"the vocabulary of this {model['type']} tokenizer can't be trimmed; only that of byte-level BPE, BPE with "
        "byte fallback, or Unigram can; leave out --vocabulary"
    )


def trim_tokenizer(tokenizer: PreTrainedTokenizerBase, kept: torch.Tensor) -> PreTrainedTokenizerBase:
    """Return a copy of a tokenizer that has only some of its tokens. It encodes text of these alone as before.

    Args:
        tokenizer: The dense model's tokenizer.
        kept: Ids of the tokens to keep, ascending, as `choose_tokens` returns them, [size]. A token's position is its
            new id.
    """
    content = read_backend(tokenizer)
    new_ids = {index: position for position, index in enumerate(kept.tolist())}
    model = content["model"]
    if model["type"] == "BPE":
        vocab = {token: new_ids[index] for token, index in model["vocab"].items() if index in new_ids}
        merges = [pair for pair in model["merges"] if {*pair, "".join(pair)} <= vocab.keys()]
        model |= {"vocab": vocab, "merges": merges}
    else:
        model["vocab"] = [model["vocab"][index] for index in new_ids if index < len(model["vocab"])]
        model["unk_id"] = new_ids.get(model["unk_id"])
    content["added_tokens"] = [
        token | {"id": new_ids[token["id"]]} for token in content["added_tokens"] if token["id"] in new_ids
    ]
    if content["padding"]:
        content["padding"]["pad_id"] = new_ids[content["padding"]["pad_id"]]
    content["post_processor"] = _remap_post_processor(content["post_processor"], new_ids)
    # What the copy has in place of the backend, and of the vocabulary that some classes also hold in Python.
    backend = cast(PreTrainedTokenizerFast, tokenizer).backend_tokenizer
    replaced: dict[int, Any] = {id(backend): type(backend).from_str(json.dumps(content))}
    for name in {"_vocab", "_merges"} & vars(tokenizer).keys():
        replaced[id(vars(tokenizer)[name])] = model.get(name[1:])
    return copy.deepcopy(tokenizer, replaced)


def _remap_post_processor(processor: Any, new_ids: Mapping[int, int]) -> Any:
    """The ids in a post-processor: `[token, id]` of BERT and RoBERTa, and `ids` of a template."""
    match processor:
        case [str(token), int(index)]:
            return [token, new_ids[index]]
        case {"ids": ids}:
            return processor | {"ids": [new_ids[index] for index in ids]}
        case dict():
            return {name: _remap_post_processor(value, new_ids) for name, value in processor.items()}
        case list():
            return [_remap_post_processor(value, new_ids) for value in processor]
    return processor


def remap_ids(config: Any, kept: torch.Tensor) -> None:
    """Replace the token ids in a config or generation config, in place, by those of a trimmed vocabulary.

    A token that was dropped becomes `None`, or disappears from its list.

    Args:
        config: An object with attributes such as `eos_token_id`.
        kept: Ids of the tokens kept by their new id, [size].
    """
    new_ids = {index: position for position, index in enumerate(kept.tolist())}
    for name, value in vars(config).items():
        if not name.endswith("_token_id") and name not in TOKEN_LISTS:
            continue
        if isinstance(value, int):
            setattr(config, name, new_ids.get(value))
        elif isinstance(value, list):
            setattr(config, name, [new_ids[index] for index in value if index in new_ids] or None)
