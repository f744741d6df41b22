"""The plan of a recovery: work, memory and disk, from the configs of both models."""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel

from ..config import RecoveryConfig
from ..config.fields import GRADIENT_COST
from ..data import window_length
from ..engine.operations import forward_operations
from ..modeling.families import decoder_layers, find_family
from ..modeling.loading import resolve_dtype
from ..recovery.batch import Batch
from ..utils import processes
from ..utils.lm_head import POSITIONS
from ..utils.precision import compute_dtype, computes_in_bfloat16, frozen_dtype
from .machine import Machine, measure_machine
from .memory import PROCESS_BYTES
from .placement import Parts, exchange_bytes
from .work import EFFICIENCY, describe_lack, describe_time, gib, measure_speed


# Bytes per number of the optimiser's two moments, of gradients and weights in training, and of a token in a file.
MOMENTS, GRADIENT, WEIGHT, TOKEN = 8, 4, 4, 4
# Numbers that autograd keeps of a token in a layer: around norms, in float32, and of the inputs of projections and of
# attention, each as wide as the hidden state; and those as wide as the FFN.
IN_NORMS, IN_PROJECTIONS, IN_FFN = 4, 7, 4
# Bytes of a score that eager attention keeps: before and after the softmax.
SCORE = 8
# Logits of a piece that are there at once: of both models, their log-probabilities, probabilities and the gradient.
LOGITS = 6
# Parts that FSDP divides among all processes, beside the layers of the dense model.
DIVIDED = ("weights", "gradients", "moments")


class Precision(NamedTuple):
    """Dtypes of a recovery: of the dense model, of the pruned model's weights, and of its matrix products."""

    teacher: torch.dtype
    weights: torch.dtype
    products: torch.dtype

    @classmethod
    def of(
        cls, config: RecoveryConfig, device: torch.device, teacher: torch.dtype, student: torch.dtype
    ) -> "Precision":
        """Dtypes of a recovery of models that are stored in the given ones."""
        bf16 = computes_in_bfloat16(device, config.bf16)
        weights = frozen_dtype(device, student, bf16) if config.lora else torch.float32
        if bf16:
            return cls(torch.bfloat16, weights, torch.bfloat16)
        return cls(compute_dtype(device, teacher), weights, weights)


@dataclass(frozen=True)
class RecoveryPlan:
    """Work, memory and disk of a recovery.

    Attributes:
        tokens: Number of tokens to train on.
        batch: Sizes of the training.
        forward_tokens: Tokens in forward passes of a model, without evaluations.
        operations: Floating-point operations, without evaluations.
        memory: Bytes that every process has on its device, by part, when they are most.
        host: Bytes in host memory beside an accelerator, of all processes.
        disk: Bytes of the windows, of the checkpoints to resume from while one is written, and of the result.
        result: Bytes of the result alone, which stays.
        precision: Dtypes.
        machine: Device and available memory.
        processes: Number of processes on this machine.
        machines: Number of machines.
        writes: Whether the dense model writes text first.
    """

    tokens: int
    batch: Batch
    forward_tokens: int
    operations: float
    memory: Parts
    host: int
    disk: int
    result: int
    precision: Precision
    machine: Machine
    processes: int = 1
    machines: int = 1
    writes: bool = False

    @property
    def on_host(self) -> bool:
        """Whether there is no accelerator with a memory of its own."""
        return self.machine.device_free is None

    @property
    def peak_bytes(self) -> int:
        """Estimated peak of the memory of an accelerator, or of all processes where there is none."""
        used = sum(self.memory.values())
        return self.processes * used + self.host if self.on_host else used

    @property
    def warnings(self) -> list[str]:
        """One line per kind of memory that is not sufficient."""
        needs = [(f"memory on {self.machine.device}", self.peak_bytes, self.machine.device_free)]
        if self.on_host:
            needs = [("memory", self.peak_bytes, self.machine.host_free)]
        else:
            needs.append(("memory", self.host, self.machine.host_free))
        advice = "Lower batch_size or seq_len, or use gradient_checkpointing or lora"
        return [
            f"{describe_lack('the training', used, where, free)}. {advice}"
            for where, used, free in needs
            if used > free
        ]

    def describe(self) -> str:
        """The plan as text of several lines."""
        batch, device = self.batch, self.machine.device
        speed = measure_speed(device, self.precision.products)
        # Processes on the CPU share its cores.
        speed *= self.machines * (self.processes if device.type != "cpu" else 1)
        besides = f" and the evaluations{', and writing the text' if self.writes else ''}"
        parts = sorted(self.memory.items(), key=lambda part: -part[1])
        rows = [
            ("tokens, recovery", f"{self.tokens:,}, which count as {self.forward_tokens:,} in forward passes"),
            ("steps", f"{batch.steps:,} of {batch.windows} windows of {batch.length} tokens"),
            ("time", describe_time(self.operations, self.operations / (EFFICIENCY * speed), speed, besides)),
            ("memory of a process", ", ".join(f"{name} {gib(size)}" for name, size in parts if size)),
            ("disk", gib(self.disk)),
            ("estimated peak", f"{gib(self.peak_bytes)} on {device}"),
            *([] if self.on_host else [("host memory", gib(self.host))]),
        ]
        lines = [f"{name:<22}  {value}" for name, value in rows]
        return "\n".join(lines + (self.warnings or ["it fits into memory"]))


def plan_recovery(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    config: RecoveryConfig,
    device: str | None = None,
    dtype: str = "auto",
    count: int = 1,
    kept: float = 1.0,
    machines: int | None = None,
    sharded: bool | None = None,
) -> RecoveryPlan:
    """Plans a recovery from models without weights.

    Args:
        student: The pruned model, for example on the meta device; or a dense one of which a share will be left.
        teacher: The dense model.
        config: Options, with a dataset.
        device: Device; the accelerator if there is one, if `None`.
        dtype: Dtype that the dense model is loaded in, `"auto"` for its own.
        count: Number of processes on each machine that share the windows.
        kept: Share of the student's layers that is left.
        machines: Number of machines; that of this run if `None`.
        sharded: Whether FSDP divides both models among all processes, which otherwise have all of both; as this run
            was launched if `None`.

    Returns:
        The plan; the command line prints its `describe()`.

    Raises:
        FFPError: If there is no such device, or the windows are too long for the model.
    """
    machine, given = measure_machine(device), resolve_dtype(dtype)
    machines = processes.machines() if machines is None else machines
    sharded = processes.divide_models() if sharded is None else sharded
    shares = count * machines
    stored = teacher.dtype if given == "auto" else given
    precision = Precision.of(config, machine.device, stored, student.dtype)
    batch = Batch.for_model(config, student.config, shares)
    window_length(config.eval_seq_len, student.config, "eval_seq_len")
    layers, (vocabulary, hidden) = decoder_layers(student), student.get_output_embeddings().weight.shape
    in_layers = kept * sum(one.numel() for one in layers.parameters())
    parameters = int(student.num_parameters() - (1 - kept) / kept * in_layers)
    trained = _adapter_parameters(layers, config.lora) if config.lora else parameters
    weights = precision.weights.itemsize * parameters + WEIGHT * trained * bool(config.lora)
    copied = precision.products.itemsize * parameters * (precision.products != precision.weights)
    scores = _score_bytes(student.config, teacher.config, kept) * batch.length
    memory = {
        "dense model": precision.teacher.itemsize * teacher.num_parameters(),
        "weights": weights,
        "gradients": GRADIENT * trained * (1 + (shares > 1 and not sharded)),
        "moments": MOMENTS * trained,
        "weights in bfloat16": copied,
        "activations": int(
            batch.at_once * batch.length * _activations(layers, hidden, kept, scores, config, precision)
        ),
        "hidden states": batch.at_once * batch.length * _compared(student, config, precision),
        "logits": batch.at_once * min(POSITIONS, batch.length) * vocabulary * 4 * LOGITS,
        "gradients of the head": 2 * GRADIENT * vocabulary * hidden * (not config.lora),
        "NCCL": exchange_bytes(machine.device, shares),
    }
    if sharded:
        # Before it is converted for the training.
        whole = compute_dtype(machine.device, stored).itemsize * teacher.num_parameters()
        measured = compute_dtype(machine.device, student.dtype).itemsize * parameters
        measuring = {"dense model": whole, "weights": measured}
        training = _divided(memory, shares, teacher, layers, kept, precision)
        memory = max(training, measuring, key=lambda parts: sum(parts.values()))
    tokens = batch.steps * batch.tokens
    in_student, in_head = forward_operations(student, batch.length)
    # A backward pass through frozen weights counts as one forward pass.
    passes = 2 if config.lora else GRADIENT_COST
    of_student = kept * (passes + config.gradient_checkpointing) * in_student + passes * in_head
    checkpoint, windows = WEIGHT * trained + MOMENTS * trained, TOKEN * tokens
    result = parameters * student.dtype.itemsize
    # On the way to the device, in a checkpoint, and on the way back.
    back = parameters * (WEIGHT if sharded or config.lora else student.dtype.itemsize)
    loaded = stored.itemsize * teacher.num_parameters()
    on_host = 0 if machine.device_free is None else max(MOMENTS * trained, count * back, count * loaded)
    return RecoveryPlan(
        tokens=tokens,
        batch=batch,
        forward_tokens=(1 + GRADIENT_COST) * tokens,
        operations=tokens * (sum(forward_operations(teacher, batch.length)) + of_student),
        memory=memory,
        host=count * PROCESS_BYTES + windows + on_host,
        # With patience the best one is kept too.
        disk=windows + (2 + bool(config.patience)) * checkpoint + result,
        result=result,
        precision=precision,
        machine=machine,
        processes=count,
        machines=machines,
        writes=config.texts.written,
    )


def _divided(
    memory: Parts, shards: int, teacher: PreTrainedModel, layers: nn.ModuleList, kept: float, precision: Precision
) -> Parts:
    """Return the memory of a process when FSDP divides both models."""
    in_layers = [sum(one.numel() for one in layer.parameters()) for layer in decoder_layers(teacher)]
    whole = precision.teacher.itemsize * (teacher.num_parameters() - sum(in_layers))
    of_student = [sum(one.numel() for one in layer.parameters()) for layer in layers]
    largest = kept * max(of_student)
    # The next layer is gathered while one computes; in the backward pass it has a whole gradient too. Embeddings, last
    # norm and head stay gathered.
    ends = memory["weights"] // precision.weights.itemsize - kept * sum(of_student)
    gathered = 2 * precision.teacher.itemsize * max(in_layers) + (2 * precision.products.itemsize + GRADIENT) * largest
    gathered += precision.products.itemsize * ends
    return (
        memory
        | {name: memory[name] // shards for name in DIVIDED}
        | {"dense model": whole + (memory["dense model"] - whole) // shards, "gathered layers": int(gathered)}
        # Gathered ones are in that dtype.
        | {"weights in bfloat16": 0}
    )


def _adapter_parameters(layers: nn.Module, rank: int) -> int:
    return rank * sum(sum(one.shape) for one in layers.parameters() if one.ndim == 2)


def _compared(student: PreTrainedModel, config: RecoveryConfig, precision: Precision) -> int:
    """Bytes of a token in hidden states of the dense model, and in their distances from those of the pruned one."""
    if not config.hidden_weight:
        return 0
    layers, hidden = len(decoder_layers(student)), student.get_output_embeddings().weight.shape[1]
    return layers * hidden * (precision.teacher.itemsize + 4)


def _score_bytes(student: PretrainedConfig, teacher: PretrainedConfig, kept: float) -> float:
    """Bytes that are kept of the scores of a token for another one in a layer; 0 if attention doesn't store them."""
    if getattr(student, "_attn_implementation", None) != "eager":
        return 0.0
    heads, _, _ = find_family(teacher).heads(teacher)
    return SCORE * heads * kept


def _activations(
    layers: nn.ModuleList, hidden: int, kept: float, scores: float, config: RecoveryConfig, precision: Precision
) -> float:
    """Bytes that are kept of a token for the backward pass."""
    size = precision.products.itemsize
    ffn = [kept * max(one.shape[1] for one in layer.parameters() if one.ndim == 2) for layer in layers]
    of_layers = [hidden * (4 * IN_NORMS + IN_PROJECTIONS * size) + IN_FFN * width * size + scores for width in ffn]
    if config.gradient_checkpointing:
        return len(layers) * hidden * size + max(of_layers)
    return sum(of_layers)
