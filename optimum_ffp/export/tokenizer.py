"""Conversion of fast tokenizers to GGUF keys."""

import json
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase, PreTrainedTokenizerFast

from ..errors import FFPError


if TYPE_CHECKING:
    from gguf import GGUFWriter

LLAMA3_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
QWEN2_WORDS = LLAMA3_WORDS.replace(r"\p{N}{1,3}", r"\p{N}")
# Pre-tokenizers by their names in llama.cpp, where the regular expressions are built in.
SPLITTERS: dict[str, list[tuple[str, Any]]] = {
    "gpt-2": [("ByteLevel", True)],
    "smollm": [("Digits", True), ("ByteLevel", True)],
    "llama-bpe": [("Split", LLAMA3_WORDS), ("ByteLevel", False)],
    "qwen2": [("Split", QWEN2_WORDS), ("ByteLevel", False)],
}
BYTE_TOKENS = {f"<0x{value:02X}>" for value in range(256)}


def write_tokenizer(writer: "GGUFWriter", tokenizer: PreTrainedTokenizerBase, vocabulary: int) -> None:
    """Add all `tokenizer.*` keys, of `vocabulary` tokens: rows of the embedding without a token become unused tokens.

    Raises `FFPError` if llama.cpp doesn't support the tokenizer.
    """
    from gguf import TokenType

    description, splitter = read_tokenizer(tokenizer)
    merges = [" ".join(merge) for merge in description["model"]["merges"]]
    names, kinds = _tokens(tokenizer, description, vocabulary)
    writer.add_tokenizer_model("gpt2" if splitter else "llama")
    writer.add_tokenizer_pre(splitter or "default")
    if splitter is None:
        # llama.cpp merges the pair with the highest score, BPE that with the lowest rank, which is a token's first.
        ranks = {merge.replace(" ", "", 1): rank for rank, merge in reversed([*enumerate(merges)])}
        writer.add_token_scores([-float(ranks.get(name, len(merges))) for name in names])
        writer.add_add_space_prefix(tokenizer.tokenize("a")[0].startswith("▁"))
        # llama.cpp matches user-defined tokens in raw text, before spaces are escaped.
        defined = int(TokenType.USER_DEFINED)
        names = [name.replace("▁", " ") if kind == defined else name for name, kind in zip(names, kinds)]
    else:
        writer.add_token_merges(merges)
    writer.add_token_list(names)
    writer.add_token_types(kinds)
    for name in ("bos", "eos", "unk", "pad"):
        index = getattr(tokenizer, f"{name}_token_id")
        if index is not None and index < vocabulary:
            getattr(writer, f"add_{name}_token_id")(index)
    encoded = tokenizer("a").input_ids
    writer.add_add_bos_token(encoded[:1] == [tokenizer.bos_token_id])
    writer.add_add_eos_token(encoded[-1:] == [tokenizer.eos_token_id])
    template = tokenizer.chat_template
    if isinstance(template, dict):
        template = [{"name": name, "template": text} for name, text in template.items()]
    if template:
        writer.add_chat_template(template)


def read_tokenizer(tokenizer: PreTrainedTokenizerBase) -> tuple[dict[str, Any], str | None]:
    """Return the content of `tokenizer.json`, and the llama.cpp name of the pre-tokenizer if it is byte-level.

    Raises `FFPError` if it isn't fast BPE, byte-level (GPT-2) or with byte fallback (Llama 2), as llama.cpp needs.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerFast):
        raise FFPError(f"{type(tokenizer).__name__} has no tokenizer.json; only fast tokenizers can be exported")
    description = json.loads(tokenizer.backend_tokenizer.to_str())
    model = description["model"]
    if model["type"] != "BPE":
        raise FFPError(f"a tokenizer of type {model['type']} can't be exported to GGUF; llama.cpp needs BPE")
    return description, None if model.get("byte_fallback") else _splitter(description["pre_tokenizer"])


def _tokens(
    tokenizer: PreTrainedTokenizerBase, description: dict[str, Any], vocabulary: int
) -> tuple[list[str], list[int]]:
    from gguf import TokenType

    names = [f"[UNUSED{index}]" for index in range(vocabulary)]
    kinds = [int(TokenType.UNUSED)] * vocabulary
    # Special tokens may have been added without resizing the model.
    for name, index in tokenizer.get_vocab().items():
        if index < vocabulary:
            names[index] = name
            kinds[index] = int(TokenType.BYTE if name in BYTE_TOKENS else TokenType.NORMAL)
    for added in description["added_tokens"]:
        if added["id"] < vocabulary:
            kinds[added["id"]] = int(TokenType.CONTROL if added["special"] else TokenType.USER_DEFINED)
    if isinstance(tokenizer.unk_token_id, int) and description["model"].get("byte_fallback"):
        kinds[tokenizer.unk_token_id] = int(TokenType.UNKNOWN)
    return names, kinds


def _splitter(pre_tokenizer: dict[str, Any] | None) -> str:
    steps = [] if pre_tokenizer is None else pre_tokenizer.get("pretokenizers", [pre_tokenizer])
    rules = []
    for step in steps:
        options = {
            "ByteLevel": step.get("use_regex", True),
            "Digits": step.get("individual_digits"),
            "Split": step.get("pattern", {}).get("Regex"),
        }
        rules.append((step["type"], options.get(step["type"])))
    for name, expected in SPLITTERS.items():
        if rules == expected:
            return name
    raise FFPError(f"the pre-tokenizer {rules} is not supported; use one of {', '.join(SPLITTERS)}")
