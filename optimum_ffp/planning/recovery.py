"""The plan of a recovery: work, memory and disk, from the dense model's config and the size of the pruned model."""

import copy
from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, PretrainedConfig

from ..data import window_length
from ..modeling.families import find_family, find_units
from ..modeling.loading import loading_errors
from ..recovery.batch import Batch
from ..recovery.config import RecoveryConfig
from ..utils.lm_head import POSITIONS
from ..utils.precision import compute_dtype, multiplies
from .machine import Machine, measure_machine
from .memory import PROCESS_BYTES, Parts
from .work import EFFICIENCY, describe_duration, forward_operations, measure_speed


GIB = 2**30
# Bytes per number of the optimiser's two moments, of gradients, and of weights in training.
MOMENTS, GRADIENT, WEIGHT = 8, 4, 4
# Bytes of a token in the file of windows.
TOKEN = 4
# Numbers that autograd keeps of a token in a layer: around norms, in float32, and of the inputs of projections and of
# attention, each as wide as the hidden state; and those as wide as the FFN.
IN_NORMS, IN_PROJECTIONS, IN_FFN = 4, 7, 4
# Logits of a piece that are there at once: of both models, their log-probabilities, probabilities and the gradient.
LOGITS = 6


@dataclass(frozen=True)
class RecoveryPlan:
    """Work, memory and disk of a recovery.

    Attributes:
        tokens: Number of tokens to train on.
        batch: Sizes of the training.
        forward_tokens: The tokens in forward passes of a model, without evaluations.
        operations: Floating-point operations, without evaluations.
        memory: Bytes that every process has on its device, by part.
        disk: Bytes of the windows, of a checkpoint to resume from while the next is written, and of the result.
        dtype: Dtype of most matrix products.
        machine: Device and available memory.
        processes: Number of processes on this machine.
    """

    tokens: int
    batch: Batch
    forward_tokens: int
    operations: float
    memory: Parts
    disk: int
    dtype: torch.dtype
    machine: Machine
    processes: int = 1

    @property
    def peak_bytes(self) -> int:
        """Estimated peak of the memory of the accelerator, or of all processes where there is none."""
        used = sum(self.memory.values())
        return used if self.machine.device_free is not None else self.processes * (used + PROCESS_BYTES)

    @property
    def warnings(self) -> list[str]:
        """One line if memory is not sufficient."""
        free = self.machine.host_free if self.machine.device_free is None else self.machine.device_free
        if self.peak_bytes <= free:
            return []
        return [
            f"memory may not suffice: the training needs about {_gib(self.peak_bytes)} on {self.machine.device}, and "
            f"{_gib(free)} are free; this is an estimate. Lower batch_size or seq_len, or use gradient_checkpointing "
            "or lora"
        ]

    def describe(self) -> str:
        """The plan as text of several lines."""
        batch = self.batch
        speed = measure_speed(self.machine.device, self.dtype)
        # Processes on the CPU share its cores.
        speed *= self.processes if self.machine.device_free is not None else 1
        seconds = self.operations / (EFFICIENCY * speed)
        parts = sorted(self.memory.items(), key=lambda part: -part[1])
        rows = [
            ("tokens, recovery", f"{self.tokens:,}, and {self.forward_tokens:,} in forward passes of a model"),
            ("steps", f"{batch.steps:,} of {batch.windows} windows of {batch.length} tokens"),
            (
                "time",
                f"about {describe_duration(seconds)} and the evaluations: {self.operations / 1e12:,.1f} TFLOP at "
                f"{EFFICIENCY:.0%} of the {speed / 1e12:.3g} TFLOP/s that a matrix product has now",
            ),
            ("memory", ", ".join(f"{name} {_gib(size)}" for name, size in parts if size)),
            ("disk", _gib(self.disk)),
            ("estimated peak", f"{_gib(self.peak_bytes)} on {self.machine.device}"),
        ]
        lines = [f"{name:<22}  {value}" for name, value in rows]
        return "\n".join(lines + (self.warnings or ["it fits into memory"]))


def plan_recovery(
    model_config: PretrainedConfig,
    parameters: int,
    config: RecoveryConfig,
    device: str | None = None,
    processes: int = 1,
) -> RecoveryPlan:
    """Plans a recovery without loading weights.

    Args:
        model_config: Config of the dense model.
        parameters: Number of parameters of the pruned model.
        config: Options.
        device: Device; the accelerator if there is one, if `None`.
        processes: Number of processes on this machine that share the windows.

    Returns:
        The plan; the command line prints its `describe()`.

    Raises:
        FFPError: If the dense model can't be pruned.
    """
    family, machine = find_family(model_config), measure_machine(device)
    stored = model_config.dtype or torch.float32
    with loading_errors(model_config._name_or_path, None), torch.device("meta"):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(model_config), dtype=stored)
    bf16 = multiplies(machine.device, torch.bfloat16) if config.bf16 is None else config.bf16
    dtype = torch.bfloat16 if bf16 else compute_dtype(machine.device, stored)
    batch = Batch.of(config, window_length(config.seq_len, model_config), processes)
    dense, tokens = model.num_parameters(), batch.steps * batch.tokens
    layers = model.base_model.get_submodule(family.layers)
    in_layers = sum(one.numel() for one in layers.parameters())
    kept = 1 - (dense - parameters) / in_layers

    forward = forward_operations(model, family, batch.length)
    # A backward pass counts as two forward passes.
    of_student = kept * (3 + config.gradient_checkpointing) * forward
    hidden, vocabulary = model_config.hidden_size, model_config.vocab_size
    widths = [unit.output.module.in_features for unit in find_units(model, family)]
    ffn = kept * sum(widths[1::2]) / len(layers)
    size = dtype.itemsize
    of_layer = hidden * (IN_NORMS * 4 + IN_PROJECTIONS * size) + ffn * IN_FFN * size
    of_token = of_layer + len(layers) * hidden * size if config.gradient_checkpointing else len(layers) * of_layer
    trained, weights = parameters, WEIGHT * parameters
    if config.lora:
        trained = config.lora * sum(sum(one.shape) for one in layers.parameters() if one.ndim == 2)
        weights = parameters * compute_dtype(machine.device, stored).itemsize + WEIGHT * trained
    head = vocabulary * hidden * GRADIENT * 2 * (not config.lora)
    memory = {
        "dense model": dense * size,
        "weights": weights,
        "gradients": GRADIENT * trained * (1 + (processes > 1)),
        "moments": MOMENTS * trained,
        "weights in bfloat16": 2 * parameters * bf16,
        "activations": int(config.batch_size * batch.length * of_token),
        "logits": config.batch_size * min(POSITIONS, batch.length) * vocabulary * 4 * LOGITS + head,
    }
    saved = WEIGHT * (trained if config.lora else parameters) + MOMENTS * trained
    return RecoveryPlan(
        tokens=tokens,
        batch=batch,
        forward_tokens=4 * tokens,
        operations=tokens * (forward + of_student),
        memory=memory,
        disk=2 * saved + parameters * stored.itemsize + TOKEN * tokens,
        dtype=dtype,
        machine=machine,
        processes=processes,
    )


def _gib(size: int) -> str:
    return f"{size / GIB:,.2f} GiB"
