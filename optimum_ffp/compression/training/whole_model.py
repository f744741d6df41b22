"""Training of the whole pruned model on the calibration windows: its dtype and its batches."""

import torch
from transformers import PretrainedConfig

from ...utils import processes
from ...utils.precision import computes_in_bfloat16
from .batch import Batch
from .layer import STEP_TOKENS


def trains_in_bfloat16(device: torch.device, dtype: torch.dtype, search_dtype: str) -> bool:
    """Return whether a model of a dtype is trained in bfloat16, as layers are."""
    in_float32 = dtype == torch.float32 and search_dtype == "model"
    return computes_in_bfloat16(device, False if in_float32 else None)


def training_batch(model_config: PretrainedConfig, length: int, tokens: int) -> Batch:
    """Return the sizes of the training on a number of tokens, in windows of `length`, by the processes of this run."""
    return Batch.of(
        model_config,
        seq_len=length,
        max_tokens=tokens,
        batch_tokens=STEP_TOKENS * processes.count(),
        batch_size=1,
        count=processes.count(),
    )
