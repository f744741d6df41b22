"""Digests of sums and prunes, to compare between runs of one and of several processes.

    torchrun --standalone --nproc-per-node N -m tests.digests DATA

Prints a JSON object, and fails if the processes differ.
"""

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from functools import partial
from unittest.mock import patch

import torch
import torch.distributed as dist
from transformers.utils import logging

from optimum_ffp import FFPConfig, FFPPruner
from optimum_ffp.compression import distillation, last_norm
from optimum_ffp.utils import processes
from optimum_ffp.utils.processes import Shares
from optimum_ffp.utils.window_sum import WindowSum
from tests.helpers import make_tiny_model, make_tokenizer


# Numbers of windows that processes can't share evenly, and more processes than update windows.
SAMPLES = {
    "num_samples": 9,
    "search_samples": 5,
    "eval_samples": 3,
    "fisher_samples": 5,
    "update_samples": 1,
    "held_out_samples": 3,
    "search_steps": 12,
    "seq_len": 24,
    # As in tests, whatever the hardware multiplies.
    "search_dtype": "model",
}
ALONE = "llama, a window per step"
CASES = {
    "gpt2": ("gpt2", {}),
    ALONE: ("llama", {"search_steps": 6}),
    "llama": ("llama", {}),
    "llama, random": ("llama", {"method": "random", "batch_size": 2}),
    "gemma3": ("gemma3", {"calibration": "ridge", "seed": 1}),
}


def digest(tensors: Iterable[torch.Tensor]) -> str:
    """Hash of the bytes of tensors."""
    return hashlib.sha256(b"".join(tensor.detach().numpy().tobytes() for tensor in tensors)).hexdigest()


def sum_of(rows: torch.Tensor, chunks: int | None) -> Iterator[torch.Tensor]:
    """The sum of rows, in all processes and in the last one."""
    shares = Shares(len(rows), chunks)
    own = rows[shares.own]
    for at in (None, processes.count() - 1):
        total = WindowSum(shares, partial(torch.zeros, rows.shape[1]))
        for _, chunk in shares.own_chunks:
            total.start()
            for row in own[chunk]:
                total.current.add_(row)
        found = total.finish(at)
        yield found if at is None else processes.broadcast({"sum": found}, at)["sum"]


def run(data: str) -> dict[str, str]:
    """Digests of sums of all numbers of windows, and of prunes, by name."""
    found = {}
    for windows in range(1, 21):
        rows = torch.randn(windows, 7, generator=torch.Generator().manual_seed(windows))
        for chunks in (None, 3, 8):
            found[f"{windows} windows, {chunks} chunks"] = digest(sum_of(rows, chunks))
    for name, (model, options) in CASES.items():
        config = FFPConfig(dataset=data, sparsity=0.3, **SAMPLES | options)
        # With steps of one window, as of ordinary length, one process trains alone.
        steps = patch.object(distillation, "STEP_TOKENS", 1 if name == ALONE else distillation.STEP_TOKENS)
        # As in ordinary windows, the last norm is trained on some of the positions.
        with steps, patch.object(last_norm, "POSITIONS", 5):
            result = FFPPruner(make_tiny_model(model), make_tokenizer(), config).prune()
        found[name] = f"{digest(result.model.parameters())}, sizes {result.policy.sizes}, {result.perplexities}"
    return found


def main() -> None:
    logging.disable_progress_bar()
    processes.join("cpu")
    found = run(sys.argv[1])
    of_all = [None] * processes.count()
    dist.all_gather_object(of_all, found)
    assert all(one == found for one in of_all)
    if processes.is_main():
        print(json.dumps(found))
    processes.leave()


if __name__ == "__main__":
    main()
