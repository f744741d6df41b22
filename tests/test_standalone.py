"""Saved folders in processes that can't see our package: on the newest transformers, on 5.15, and on 4.57."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from optimum_ffp.allocation.homogeneous import homogeneous_policies
from optimum_ffp.checkpoint.saving import save_tokenizer
from optimum_ffp.modeling.auto import is_homogeneous
from tests.helpers import (
    CONFIGS,
    GROUPINGS,
    MIXTURES,
    make_deep_model,
    make_sorted_model,
    make_tiny_model,
    make_tokenizer,
    prune_experts,
    random_policy,
    run_python,
    sparsity_budget,
    without_sublayers,
)


pytestmark = pytest.mark.slow
EQUAL, INCOMPLETE = "equal layers", "missing sublayers"
EVERY_CHECK = ("llama", "gpt-neox", "gpt2", "phi3", "opt", "gemma2", "gemma3", "cohere2", "olmo2")


# Older releases lie over the installed packages, in a folder of their own that comes first on the path.
VERSIONS = {
    "installed": [],
    "5.15": ["transformers==5.15.0", "tokenizers<=0.23.0", "huggingface_hub<2", "httpx", "httpcore", "h11", "anyio"],
    "4.57": ["transformers==4.57.6", "huggingface_hub<1", "tokenizers<0.23"],
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    """Pruned tiny models of every family, with what they must give."""
    windows = torch.randint(3, 128, (6, 24), generator=torch.Generator().manual_seed(1))
    found = {}
    cases = {name: (name, {}, (None,)) for name in (*CONFIGS, *MIXTURES)}
    # One family of each template of the modeling code.
    cases |= {f"{name}, both groups": (name, *GROUPINGS["both groups"]) for name in ("llama", "gemma3", "phi3")}
    partial, before = {"partial_rotary_factor": 1.0}, {"original_max_position_embeddings": 32}
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 2, "long_factor": [2.0] * 2}
    cases["phi3, longrope"] = ("phi3", partial | before | {"rope_parameters": rope | partial | before}, (None,))
    # Layers of one size, in the dense model's own class.
    cases |= {f"{name}, {EQUAL}": (name, {}, (None,)) for name in ("llama", "gemma2", "gemma3", "gpt-neox", "gpt2")}
    cases |= {
        f"{name}, {INCOMPLETE}": (name, {}, (None,))
        for name in ("llama", "gpt-neox", "phi3", "gemma3", "olmo3", "opt")
    }
    for case, (name, sizes, groups) in cases.items():
        model = make_deep_model(name) if INCOMPLETE in case else make_tiny_model(name, **sizes)
        if name in MIXTURES:
            pruned, *_ = prune_experts(model)
        else:
            sorted_model, _ = make_sorted_model(model, windows, groups)
            policy = random_policy(sorted_model, 1)
            if INCOMPLETE in case:
                policy = without_sublayers(policy)
            if EQUAL in case:
                policy = next(
                    policy
                    for policy in homogeneous_policies(sparsity_budget(sorted_model.units, 0.3))
                    if is_homogeneous(sorted_model.model, policy)
                )
            pruned = sorted_model.slice(policy, homogeneous=EQUAL in case)
        found[case] = tmp_path_factory.mktemp("pruned") / case
        pruned.save_pretrained(found[case])
        # Tokenizers of these model types are rebuilt as their own kind, whatever the file says.
        if not name.startswith("qwen"):
            tokenizer = make_tokenizer()
            tokenizer.chat_template = "w5 {% for message in messages %}{{ message.content }}{% endfor %} w6"
            save_tokenizer(tokenizer, found[case])
        hidden = pruned.base_model(windows).last_hidden_state
        expected = {"windows": windows, "logits": pruned(windows).logits, "hidden": hidden}
        save_file(expected, found[case] / "expected.safetensors")
    return found


# Models that are newer than the release, and those that it reads wrongly without code of ours, as it does dense ones
# saved by the newest: it chooses SDPA for Gemma 2, which leaves out its softcap, and looks for Gemma 3's decoder (in
# `AutoModel`) and for GPT-NeoX's head under other names.
UNKNOWN = {
    "5.15": {f"gemma2, {EQUAL}"},
    "4.57": {"ministral3", *(f"{name}, {EQUAL}" for name in ("gemma2", "gemma3", "gpt-neox"))},
}
INSTALLED = [pytest.param(name, marks=pytest.mark.network) if VERSIONS[name] else name for name in VERSIONS]


@pytest.fixture(scope="module", params=INSTALLED)
def overlay(request: pytest.FixtureRequest) -> tuple[Path | None, set[str]]:
    """A folder with that release of transformers, kept between runs, and the model types that it doesn't have."""
    if not VERSIONS[request.param]:
        return None, set()
    folder = request.config.cache.mkdir(f"transformers-{request.param}")
    if not (folder / "transformers").is_dir():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", folder]
        subprocess.run([*command, *VERSIONS[request.param]], check=True)
    return folder, UNKNOWN.get(request.param, set())


def test_checkpoints_work_in_plain_transformers(folders, overlay):
    release, unknown = overlay
    environment = {"PYTHONPATH": str(release)} if release else {}
    script = Path(__file__).with_name("standalone_checks.py")
    known = {case: folder for case, folder in folders.items() if case not in unknown}
    # Every check of one family of each kind, and the logits of the others, which share its code.
    whole = [folder for case, folder in known.items() if case in EVERY_CHECK or "," in case]
    others = [folder for folder in known.values() if folder not in whole]
    output = run_python(script, *whole, "--logits", *others, **environment)
    failures = json.loads(output.strip().splitlines()[-1])
    assert {Path(folder).name: found for folder, found in failures.items() if found} == {}
