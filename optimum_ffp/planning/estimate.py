"""Estimates of the memory, disk and tokens of a prune or a recovery, from its plan and the shapes of the models."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..allocation.budget import Budget
from ..analysis.rerouting import PRODUCTS
from ..analysis.rerouting import TOKENS as ROUTED_TOKENS
from ..compression.calibrations import layers
from ..compression.calibrations import model as model_calibration
from ..compression.expert_ridge import TOKENS as FITTED_TOKENS
from ..compression.training.batch import Batch
from ..compression.training.whole_model import training_batch, trains_in_bfloat16
from ..config import RecoveryPlan
from ..config.prune import GRADIENT_COST
from ..data import DataRequest
from ..data.self_generated import TOKENS_AT_ONCE
from ..engine.layerwise_model import HEADROOM, hidden_state_bytes
from ..modeling.families import ModelUnit, decoder_layers, find_family, outer_matrices
from ..modeling.loading import LoadOptions, resolve_device
from ..plan import Plan
from ..search.depth import WINDOWS, max_evaluations, parts_of
from ..search.task import finalist_count, finalist_windows
from ..utils import processes
from ..utils.cholesky import ALGEBRA_BYTES
from ..utils.device_memory import free_device_memory
from ..utils.host_memory import free_host_memory
from ..utils.lm_head import POSITIONS, head_of
from ..utils.precision import compute_dtype, computes_in_bfloat16, frozen_dtype


# Memory of a process with all libraries loaded and their threads started.
PROCESS_BYTES = 640 * 2**20
# Bytes of a checkpoint other than weights: tokenizer, modeling code, card and plots.
CHECKPOINT_EXTRA_BYTES = 32 * 2**20
# Overhead of pinned memory, which is allocated in powers of two.
PINNED = 1.2
# Bytes of the Gram matrices of a layer, per entry of the larger one.
GRAMS_BYTES = 8
# Bytes per parameter of a layer in distillation: weights, gradients and the moments of Adam in float32, and in the
# model's dtype the weights before training, after a pass and after the best one.
TRAINING_BYTES = 28


@dataclass(frozen=True)
class Machine:
    """A device, and the memory available to this process, including what the process already uses.

    Attributes:
        device: Device of the model.
        host: Bytes of host memory.
        accelerator: Bytes of the accelerator; `None` if the model is in host memory.
    """

    device: torch.device
    host: int
    accelerator: int | None = None

    @classmethod
    def of(cls, device: str | None) -> "Machine":
        """Measure this machine; raise `FFPError` if there is no such device."""
        resolved = resolve_device(device)
        return cls(resolved, free_host_memory(), free_device_memory(resolved, used=True))


@dataclass(frozen=True)
class Estimate:
    """Resources that a prune or a recovery requires.

    Attributes:
        machine: The device, and the memory that is available.
        device: Bytes on the accelerator of a process; 0 without one.
        host: Bytes of host memory, of all processes on this machine.
        disk: Bytes of the work folder and of the checkpoints.
        tokens: Upper bound of the tokens read in forward passes of the model, without the evaluation.
        offload: Where the weights of idle layers are, as in `LoadOptions`.
        calibration: Calibration of a prune, which may be chosen by the free memory.
        lora: Rank of the adapters that a prune trains; 0 if it trains weights.
        budget: A line per limit of every prune.
        quantized: Bytes of the dense weights in quantizations of llama.cpp, which need no prune.
    """

    machine: Machine
    device: int
    host: int
    disk: int
    tokens: int = 0
    offload: str = "none"
    calibration: str | None = None
    lora: int = 0
    budget: Sequence[str] = ()
    quantized: Mapping[str, int] = field(default_factory=dict)

    @property
    def memory(self) -> dict[str, tuple[int, int]]:
        """Required and available bytes, by kind of memory."""
        host = {"host memory": (self.host, self.machine.host)}
        if self.machine.accelerator is None:
            return host
        return {f"memory of {self.machine.device}": (self.device, self.machine.accelerator)} | host

    @property
    def warnings(self) -> list[str]:
        """One line per kind of memory that may not suffice."""
        return [
            f"memory may not suffice: an estimated {format_bytes(needed)} of {name} is needed, and "
            f"{format_bytes(available)} is free"
            for name, (needed, available) in self.memory.items()
            if needed > available
        ]


def format_bytes(size: int) -> str:
    """Format a number of bytes in GiB, or in MiB if it is less than 1 GiB."""
    return f"{size / 2**30:.2f} GiB" if size >= 2**30 else f"{size / 2**20:.1f} MiB"


def estimate_prune(
    plans: Sequence[Plan],
    model: PreTrainedModel,
    units: Sequence[ModelUnit],
    machine: Machine,
    local_processes: int,
) -> Estimate:
    """Estimate prunes that differ in the budget.

    Args:
        plans: The plans, with the same calibration and place of weights.
        model: The dense model; may be on the meta device.
        units: Its units.
        machine: Device and available memory.
        local_processes: Number of processes on this machine that share the work.
    """
    budgets, written = [plan.budget for plan in plans], DataRequest.of_prune(plans[0]).generated
    prune = _Prune(
        plan=plans[0],
        model=model,
        units=units,
        budgets=budgets,
        written=written,
        local_processes=local_processes,
        machine=machine,
    )
    parameters, outer = model.num_parameters(), sum(one.numel() for one in outer_matrices(model))
    return replace(
        prune.estimate(),
        tokens=_max_tokens(plans, written),
        budget=[line for budget in budgets for line in budget.describe()],
        quantized={
            # Embeddings and the head stay in 8 bits; both have a scale per block of 32.
            "q8_0": round(parameters * 8.5 / 8),
            "q4_0": round(((parameters - outer) * 4.5 + outer * 8.5) / 8),
        },
    )


@dataclass(frozen=True)
class _Bytes:
    """Memory of a process: on its device, which may be the host, and in host memory besides."""

    device: int = 0
    host: int = 0

    def __add__(self, other: "_Bytes") -> "_Bytes":
        return _Bytes(self.device + other.device, self.host + other.host)


@dataclass
class _Prune:
    """A prune with a given calibration and place of weights. Sizes are bytes, `layers` and `trained` parameters."""

    plan: Plan
    model: PreTrainedModel
    units: Sequence[ModelUnit]
    budgets: Sequence[Budget]
    written: int
    local_processes: int
    machine: Machine

    def __post_init__(self) -> None:
        model, plan, shape, self.place = self.model, self.plan, self.model.config, self.plan.offload
        self.stored, self.computed = model.dtype.itemsize, compute_dtype(self.machine.device, model.dtype).itemsize
        self.all_resident, self.in_memory = self.place == "none" and self.computed == self.stored, self.place != "disk"
        self.layers = [sum(one.numel() for one in layer.parameters()) for layer in decoder_layers(model)]
        self.weights, self.in_layers = model.get_memory_footprint(), sum(self.layers) * self.stored
        removed = min(budget.removed_parameters for budget in self.budgets) * self.stored
        self.pruned = self.weights - removed
        self.calibrated = (self.in_layers - removed) * plan.trains
        self.widest = max(unit.width for unit in self.units)
        self.factors = self.fishers = self.experts = self.trained = 0
        if find_family(shape).experts:
            # A token passes through several experts at once.
            self.widest *= shape.num_experts_per_tok
            self.experts = self.stored * sum(unit.unit.parameters for unit in self.units)
        else:
            if plan.needs_factors:
                self.factors = 4 * sum(unit.width**2 for unit in self.units)
            if plan.needs_fishers:
                self.fishers = 4 * len(self.units) * shape.hidden_size**2
        if plan.calibration == "model":
            self.trained = _trained_parameters(model, self.pruned // self.stored, plan.lora)
        self.free = max(0, (self.machine.accelerator or 0) - self.resident().device)

    def resident(self) -> _Bytes:
        """Return the memory of the weights in all stages."""
        # A model that was pruned before is in memory beside the dense one, and as large.
        weights = self.weights * (1 + hasattr(self.model.config, "pruned_units"))
        # One layer before and after sorting, and the next one.
        moved = 3 * max(self.layers) * self.computed * (not self.all_resident)
        offloaded = self.in_layers * (self.place != "none")
        return _Bytes(weights - offloaded + moved, int(PINNED * offloaded) * (self.place == "host"))

    def ridge_factors(self) -> _Bytes:
        """Return the memory of the ridge factors in all stages."""
        if self.place == "none" and (self.machine.accelerator is None or self.free > 2 * self.factors):
            return _Bytes(self.factors)
        return _Bytes(4 * self.widest**2, int(PINNED * self.factors) * self.in_memory)

    def hidden_states(self, size: int) -> _Bytes:
        """Return the memory of hidden states between layers, which processes share in host memory."""
        return _Bytes(size) if HEADROOM * size < self.free else _Bytes(0, size // self.local_processes)

    def stages(self) -> Iterator[_Bytes]:
        """Yield the memory of each stage, without what all stages need."""
        plan, shape, length, computed = self.plan, self.model.config, self.plan.seq_len, self.computed
        window = length * shape.hidden_size * computed
        chunk = hidden_state_bytes(self.all_resident, self.machine.host, self.local_processes, self.free)
        backward = (len(self.layers) + 2) * max(plan.fisher_samples, plan.update_samples) * window
        read = self.hidden_states(max(min(chunk, backward), plan.num_samples * window))
        per_token = 16 * shape.hidden_size + (3 * computed + 8) * self.widest + _score_bytes(shape, length)
        activations = length * per_token
        logits = min(POSITIONS, length) * shape.vocab_size * (16 + 12 * plan.batch_size)
        yield read + _Bytes(logits + (1 + plan.batch_size) * activations, self.fishers)
        algebra = (GRAMS_BYTES + ALGEBRA_BYTES) * self.widest**2
        on_device = algebra * (algebra < self.free)
        yield read + _Bytes(on_device, algebra - on_device + self.fishers * self.in_memory)
        if self.calibrated and getattr(plan.options.get("calibration"), "distillation_passes", 0):
            # Those of the dense and of the pruned model.
            states = self.hidden_states(2 * (plan.num_samples + plan.held_out_samples) * window)
            weights = TRAINING_BYTES * max(self.layers)
            yield states + _Bytes(weights + 2 * activations, self.calibrated * self.in_memory)
        yield _Bytes(host=(self.calibrated + self.pruned * min(2, len(self.budgets))) * self.in_memory)
        if self.experts:
            # What is kept of a layer's tokens to remove experts greedily, or for their ridge regression.
            greedy, groups = plan.expert_criterion == "loss", self.units[0].unit.groups
            products = min(PRODUCTS, ROUTED_TOKENS * groups**2) * greedy
            fitted = min(FITTED_TOKENS, plan.num_samples * length) * (plan.calibration != "none")
            yield read + _Bytes(max(4 * products, fitted * shape.hidden_size * (2 * computed + 8)))
        if self.written:
            # Keys and values of the passages that are generated at once, with all layers loaded.
            _, heads, head_dim = find_family(shape).heads(shape)
            cache = 2 * len(self.layers) * heads * head_dim * computed * min(self.written * length, TOKENS_AT_ONCE)
            yield _Bytes(cache + sum(self.layers) * computed * (computed != self.stored))
        if isinstance(options := plan.options.get("calibration"), model_calibration.Options):
            yield self.whole_model_training(options)

    def whole_model_training(self, options: model_calibration.Options) -> _Bytes:
        """Return the memory of training the whole model."""
        bf16 = trains_in_bfloat16(self.machine.device, self.model.dtype, self.plan.search_dtype)
        size = torch.bfloat16.itemsize if bf16 else self.computed
        length = self.plan.seq_len // options.parts(self.plan.seq_len)
        tokens, lora = self.plan.num_samples * self.plan.seq_len, self.plan.lora
        batch = training_batch(self.model.config, length, tokens)
        stored = self.computed if lora else 4
        parameters, teacher = self.pruned // self.stored, self.weights // self.stored * size * (size != self.stored)
        state = _training_bytes(
            parameters, self.trained, lora, stored=stored, computed=size, shares=self.local_processes
        )
        return _Bytes(teacher + state + _activation_bytes(self.model, batch, size), self.calibrated + self.pruned)

    def estimate(self) -> Estimate:
        """Return the estimate, without its tokens."""
        always, on_accelerator = self.resident() + self.ridge_factors(), self.machine.accelerator is not None
        needed = [always + stage for stage in self.stages()]
        host = max(one.host + one.device * (not on_accelerator) for one in needed)
        on_disk = self.pruned * (2 - self.in_memory) + self.calibrated + CHECKPOINT_EXTRA_BYTES
        work = self.factors + self.fishers + self.experts * (not self.in_memory) + 3 * 12 * self.trained
        return Estimate(
            machine=self.machine,
            device=max(one.device for one in needed) * on_accelerator,
            host=self.local_processes * (PROCESS_BYTES + host),
            disk=len(self.budgets) * on_disk + work,
            offload=self.place,
            calibration=self.plan.calibration,
            lora=self.plan.lora,
        )


def _max_tokens(plans: Sequence[Plan], written: int) -> int:
    """Return an upper bound of the tokens of prunes, and of the windows that the model writes."""
    plan, budget = plans[0], plans[0].budget
    held_out, windows = plan.held_out_samples, 0
    # Texts may have no start token.
    with_first = 1 + (math.ceil(plan.seq_len / plan.first_tokens) / plan.seq_len if plan.first_tokens else 0)
    options = plan.options.get("calibration")
    if isinstance(options, layers.Options) and (passes := options.distillation_passes):
        distilled = (2 + passes * GRADIENT_COST) * plan.num_samples + (3 + passes) * held_out
        windows += (with_first + options.parts(plan.seq_len) / plan.seq_len) * distilled + 3 * held_out
    if isinstance(options, model_calibration.Options):
        windows += (1 + GRADIENT_COST) * options.model_passes * plan.num_samples
        windows += (2 * (model_calibration.EVALUATIONS + 1) + 3) * held_out
    has_gradients = plan.needs_fishers
    if budget.units[0].kind == "experts":
        has_gradients = plan.expert_criterion == "loss"
        windows += (plan.num_samples + 4 * held_out) * (plan.calibration != "none")
    searches = sum(_search_windows(plan) for plan in plans)
    measured = with_first * plan.num_samples
    measured += GRADIENT_COST * min(plan.fisher_samples, plan.num_samples) * has_gradients
    return math.ceil((written + measured + plan.search_samples + len(plans) * windows + searches) * plan.seq_len)


def _search_windows(plan: Plan) -> int:
    """Return an upper bound of the windows that a search reads in forward passes."""
    search, windows = plan.search_samples, 0
    if plan.depth != "none":
        windows += min(WINDOWS, search) * max_evaluations(len(parts_of(plan.budget.units, plan.depth)))
    if plan.compares_policies:
        finalists = finalist_count(plan.search_steps) + plan.candidates + 2
        windows += plan.search_steps * min(plan.update_samples, search) + finalist_windows(finalists, search)
    return windows


def estimate_recovery(
    student: PreTrainedModel,
    teacher: PreTrainedModel,
    plan: RecoveryPlan,
    options: LoadOptions,
    local_processes: int = 1,
    machine: Machine | None = None,
) -> Estimate:
    """Estimate a recovery: weights, gradients, moments and activations of the pruned model, and the dense model.

    Args:
        student: The pruned model; may be on the meta device.
        teacher: The dense model.
        plan: Options.
        options: How both are loaded.
        local_processes: Number of processes on this machine that share the windows.
        machine: Device and available memory; those of this machine if `None`.
    """
    machine, asked = machine or Machine.of(options.device), options.torch_dtype
    on_accelerator = machine.accelerator is not None
    shares = local_processes * processes.count() // processes.local_count()
    batch, bf16 = Batch.of_recovery(plan, student.config, shares), computes_in_bfloat16(machine.device, plan.bf16)
    dense = compute_dtype(machine.device, asked if isinstance(asked, torch.dtype) else teacher.dtype)
    stored = frozen_dtype(machine.device, student.dtype, bf16) if plan.lora else torch.float32
    size = torch.bfloat16.itemsize if bf16 else stored.itemsize
    parameters = student.num_parameters()
    trained = _trained_parameters(student, parameters, plan.lora)
    weights = _training_bytes(parameters, trained, plan.lora, stored=stored.itemsize, computed=size, shares=shares)
    weights += teacher.num_parameters() * (size if bf16 else dense.itemsize)
    if processes.shards_models():
        # FSDP gathers the running and the next layer of both models.
        largest = max(sum(one.numel() for one in layer.parameters()) for layer in decoder_layers(teacher))
        weights = weights // shares + 6 * size * largest
    used = weights + _activation_bytes(student, batch, size, plan.gradient_checkpointing)
    # Weights pass through host memory on their way to an accelerator.
    staged = max(dense.itemsize * teacher.num_parameters(), 12 * trained)
    tokens = batch.steps * batch.tokens
    return Estimate(
        machine=machine,
        device=used if on_accelerator else 0,
        host=local_processes * (PROCESS_BYTES + (staged if on_accelerator else used)),
        # The windows, the best checkpoint and the last while the next is written, and the result.
        disk=8 * tokens + 3 * 12 * trained + student.get_memory_footprint() + CHECKPOINT_EXTRA_BYTES,
        tokens=(1 + GRADIENT_COST) * tokens,
    )


def _trained_parameters(model: PreTrainedModel, parameters: int, lora: int | None) -> int:
    """Return how many of the parameters, or of those of adapters, training end to end changes."""
    if lora:
        matrices = (one for layer in decoder_layers(model) for one in layer.parameters() if one.ndim == 2)
        return lora * sum(sum(one.shape) for one in matrices)
    return parameters - sum(one.numel() for one in outer_matrices(model))


def _training_bytes(parameters: int, trained: int, lora: int, stored: int, computed: int, shares: int) -> int:
    """Return the bytes of weights, gradients and moments in training end to end."""
    weights = parameters * (stored + computed * (computed != stored)) + 4 * trained * bool(lora)
    # Several processes exchange copies of the gradients.
    return weights + trained * (12 + 4 * (shares > 1))


def _score_bytes(config: PretrainedConfig, length: int) -> int:
    """Return the bytes of a layer's attention scores per token, which only eager attention materializes."""
    return 8 * config.num_attention_heads * length * (config._attn_implementation == "eager")


def _activation_bytes(model: PreTrainedModel, batch: Batch, itemsize: int, checkpointing: bool = False) -> int:
    """Return the bytes of activations and logits of a forward and backward pass end to end."""
    layers, shape = decoder_layers(model), model.config
    vocabulary, hidden = head_of(model).weight.shape
    # Norms in float32, inputs of projections and of attention, and activations as wide as the FFN.
    activations = len(layers) * (hidden * (16 + 7 * itemsize) + _score_bytes(shape, batch.length))
    widths = ([one.shape[1] for one in layer.parameters() if one.ndim == 2] for layer in layers)
    activations += 4 * itemsize * sum(map(max, widths))
    if checkpointing:
        activations = len(layers) * hidden * itemsize + activations // len(layers)
    # Logits of both models, copies that process them, and the gradient.
    head = min(POSITIONS, batch.at_once * batch.length) * vocabulary * 16
    return batch.at_once * batch.length * activations + head
