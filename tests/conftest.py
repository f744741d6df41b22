"""Picomodels of every family, built from configs: no network, a second to build."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from optimum.commands.optimum_cli import main
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging


VOCABULARY = 128
SIZES = {
    "vocab_size": VOCABULARY,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 8,
    "max_position_embeddings": 64,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "pad_token_id": 1,
}
GATED = SIZES | {"intermediate_size": 48, "num_key_value_heads": 4}
# Other than the default, so that a release which reads them elsewhere gets them wrong.
ROPE = {"rope_type": "default", "rope_theta": 300.0}
SCALED_ROPE = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
GEMMA3 = {
    "head_dim": 6,
    "query_pre_attn_scalar": 96,
    "sliding_window": 8,
    "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
}
CONFIGS = {
    "llama": ("llama", GATED),
    "llama-mha": ("llama", GATED | {"num_key_value_heads": 8, "attention_bias": True, "mlp_bias": True}),
    "mistral": ("mistral", GATED | {"sliding_window": None, "rope_parameters": ROPE}),
    "opt": ("opt", SIZES | {"ffn_dim": 48, "word_embed_proj_dim": 32}),
    "qwen2": ("qwen2", GATED | {"tie_word_embeddings": True}),
    "qwen3": ("qwen3", GATED | {"head_dim": 6}),
    "gemma2": ("gemma2", GATED | {"head_dim": 6, "query_pre_attn_scalar": 6, "sliding_window": 8}),
    "gemma3": ("gemma3_text", GATED | GEMMA3),
    "granite": (
        "granite",
        GATED
        | {
            "rope_parameters": SCALED_ROPE,
            "attention_multiplier": 0.3,
            "residual_multiplier": 0.5,
            "logits_scaling": 2.0,
        },
    ),
    "smollm3": ("smollm3", GATED | {"no_rope_layers": [1, 0, 1]}),
    "phi3": ("phi3", GATED | {"partial_rotary_factor": 0.5}),
    "gpt-neox": ("gpt_neox", SIZES | {"intermediate_size": 48}),
    "gpt-neox-sequential": ("gpt_neox", SIZES | {"intermediate_size": 48, "use_parallel_residual": False}),
    "gpt2": ("gpt2", SIZES),
}


@pytest.fixture(autouse=True, scope="session")
def quiet_progress() -> None:
    logging.disable_progress_bar()


def make_tiny_model(name: str = "llama", seed: int = 0, **changes: Any) -> PreTrainedModel:
    """A random model of a family."""
    model_type, sizes = CONFIGS[name]
    torch.manual_seed(seed)
    return fill_with_noise(AutoModelForCausalLM.from_config(AutoConfig.for_model(model_type, **sizes | changes)))


def fill_with_noise(model: PreTrainedModel) -> PreTrainedModel:
    """Makes biases and norms random too, so that a mistake in any of them shows, and weights large."""
    for parameter in model.parameters():
        if parameter.dim() == 1:
            parameter.data.normal_(1.0, 0.3)
        else:
            parameter.data.mul_(6)
    return model.eval().requires_grad_(False)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word: `w3` ... `w127`, after three special ones."""
    special = {"<s>": 0, "</s>": 1, "<unk>": 2}
    words = {f"w{index}": index for index in range(len(special), VOCABULARY)}
    tokenizer = Tokenizer(models.WordLevel(special | words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="</s>", unk_token="<unk>"
    )


def make_text(words: int, seed: int = 0) -> str:
    numbers = torch.randint(3, VOCABULARY, (words,), generator=torch.Generator().manual_seed(seed))
    return "\n".join(" ".join(f"w{n}" for n in row.tolist()) for row in numbers.split(20)) + "\n"


@pytest.fixture(params=CONFIGS)
def tiny_model(request: pytest.FixtureRequest) -> PreTrainedModel:
    return make_tiny_model(request.param)


@pytest.fixture
def windows() -> torch.Tensor:
    return torch.randint(3, VOCABULARY, (6, 24), generator=torch.Generator().manual_seed(1))


@pytest.fixture
def data_folder(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for seed, split in enumerate(("train", "validation", "test")):
        (folder / f"{split}.txt").write_text(make_text(1500, seed))
    return folder


@pytest.fixture
def run_ffp(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> Callable[..., tuple[int, str, str]]:
    """Runs `optimum-cli ffp ...` in this process and returns its exit code, output and error output."""

    def run(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["optimum-cli", "ffp", *map(str, words)])
        code = 0
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        return code, *capsys.readouterr()

    return run


@pytest.fixture
def save_tiny_model(tmp_path: Path) -> Callable[[str], Path]:
    """Writes a tiny model and its tokenizer as a folder that the command line can be given."""

    def save(name: str = "llama") -> Path:
        folder = tmp_path / f"tiny-{name}"
        make_tiny_model(name).save_pretrained(folder)
        make_tokenizer().save_pretrained(folder)
        return folder

    return save


@pytest.fixture
def hold() -> Iterator[Callable[[Path], Callable[[], None]]]:
    """Locks a folder in a process of its own, which is killed by what this returns."""
    holders = []

    def start(folder: Path) -> Callable[[], None]:
        program = (
            "import sys; from pathlib import Path; from optimum_ffp.utils.folders import FolderLock\n"
            "lock = FolderLock(Path(sys.argv[1])); print('locked', flush=True); sys.stdin.read()"
        )
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        holder = subprocess.Popen([sys.executable, "-c", program, folder], **pipes)
        holders.append(holder)
        assert holder.stdout.readline() == b"locked\n"

        def kill() -> None:
            holder.kill()
            holder.wait()

        return kill

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()
