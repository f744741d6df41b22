"""llama.cpp as node-llama-cpp carries it, and tokenizers that it knows."""

import json
import platform
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast


NODE_LLAMA_CPP = "3.22.1"
SAMPLE = "the quick brown fox jumps over the lazy dog while the other foxes sleep in their den at night "


def make_byte_level_tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """BPE on bytes, as GPT-2's."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    tokenizer.train_from_iterator([SAMPLE], trainers.BpeTrainer(vocab_size=vocabulary, initial_alphabet=alphabet))
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    fast.add_special_tokens({"bos_token": "<|begin|>", "eos_token": "<|end|>", "pad_token": "<|end|>"})
    return fast


def make_byte_fallback_tokenizer(vocabulary: int = 300) -> PreTrainedTokenizerFast:
    """BPE on characters that falls back to bytes, as Llama 2's."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{value:02X}>" for value in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=vocabulary + len(special), special_tokens=special)
    tokenizer.train_from_iterator(SAMPLE.split(" "), trainer)
    trained = json.loads(tokenizer.to_str())
    trained["added_tokens"] = trained["added_tokens"][:3]
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(trained)), unk_token="<unk>", bos_token="<s>", eos_token="</s>"
    )


@pytest.fixture(scope="session")
def run_llama_cpp(pytestconfig: pytest.Config) -> Callable[[Path, list[str], int], list[dict[str, Any]]]:
    """Runs a GGUF file; the arguments are the file, texts, and how many tokens to go on with."""
    if shutil.which("npm") is None:
        pytest.skip("needs npm to install node-llama-cpp")
    folder = Path(pytestconfig.cache.mkdir("node-llama-cpp"))
    if not (folder / "node_modules" / "node-llama-cpp").is_dir():
        packages = [f"node-llama-cpp@{NODE_LLAMA_CPP}"]
        if platform.system() == "Linux" and platform.machine() == "x86_64":
            # Left to itself npm fetches the builds for graphics cards too, which are twenty times as large.
            packages += ["--omit=optional", f"@node-llama-cpp/linux-x64@{NODE_LLAMA_CPP}"]
        subprocess.run(["npm", "install", "--no-save", "--prefix", folder, *packages], check=True, capture_output=True)

    def run(path: Path, texts: list[str], count: int) -> list[dict[str, Any]]:
        request = {"installed": f"{folder}/", "model": str(path), "texts": texts, "count": count}
        script = Path(__file__).with_name("llama_cpp.mjs")
        done = subprocess.run(["node", script], input=json.dumps(request), capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run
