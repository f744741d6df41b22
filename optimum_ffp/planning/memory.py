"""Estimates the memory of each stage of a prune from the shapes of a model without weights."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..compression.distillation import windows_per_step
from ..compression.sorted_model import PRUNED_ROOM
from ..config import FFPConfig
from ..data import DataRequest
from ..data.self_generated import passages_at_once, passages_of
from ..engine.layerwise_model import ROOM, kept_bytes
from ..modeling.families import Family, ModelUnit, decoder_layers
from ..options import LAYER_BY_LAYER, find_choice
from ..utils.cholesky import ALGEBRA_BYTES
from ..utils.lm_head import POSITIONS
from ..utils.tensors import pinned_bytes
from ..utils.window_sum import most_sums, running_sums
from .counts import calibrating_processes, count_searches


# Memory of a process with all libraries loaded and their threads started.
PROCESS_BYTES = 640 * 2**20
# Peak of temporaries in float64 and float32 during the fit of a unit: bytes per entry of the largest Gram matrix, and
# per entry of the output weights.
FIT_BYTES, FIT_OUTPUT_BYTES = 50, 44
# Bytes per parameter of the layer in training, in float32: weights, gradients of a window and their sum, and the two
# moments of Adam.
TRAINING_BYTES = 20

Parts = dict[str, int]

# Parts that are memory-mapped files with offload "disk".
FILES = ("factors", "Fisher matrices", "calibrated weights", "pruned model", "pruned model before")

# Parts that `Placement.room` doesn't count.
RESIDENT = ("weights", "embeddings and head")


@dataclass(frozen=True)
class StageMemory:
    """Memory at the peak of a stage.

    Attributes:
        name: Name of the stage, as in `PruningResult.cost`.
        device: Bytes on the model's device, by part.
        host: Bytes in host memory on any device, by part. With the model in host memory a process has both.
    """

    name: str
    device: Parts
    host: Parts

    def largest(self) -> str:
        """The three largest parts, in GiB."""
        parts = sorted((self.device | self.host).items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts[:3] if size)


@dataclass(frozen=True)
class Placement:
    """Devices and dtypes of a prune.

    Attributes:
        compute_size: Bytes per number in forward passes; under autocast smaller than `own_size`.
        own_size: Bytes per number of a layer's weights while it runs, and of hidden states.
        accelerator: Whether the model is on an accelerator.
        on_cpu: Whether it runs on the CPU. An accelerator that shares the host's memory counts as neither.
        matrices_beside: Whether Gram matrices and factors are on the model's device.
        journal: Whether finished work is saved to disk, to resume from.
        several: Whether there are several sparsities, so that a pruned model is kept until the next is finished.
        room: Bytes on the accelerator beside the weights and the factors that are there. Hidden states are in host
            memory if they would take more than an eighth of them.
        offload: Where the weights of layers are while they don't run, as in `LoadOptions`.
        processes: Number of processes, which share windows and Fisher matrices.
        host_free: Free bytes of host memory, of which hidden states may take a share where layers are brought.
        pins_memory: Whether layers and factors in host memory are pinned for the accelerator.
    """

    compute_size: int
    own_size: int
    accelerator: bool = False
    on_cpu: bool = True
    matrices_beside: bool = True
    journal: bool = False
    several: bool = False
    room: int = 0
    offload: str = "none"
    processes: int = 1
    host_free: int = 0
    pins_memory: bool = False


class MemoryModel:
    """Adds up the memory of each stage of a prune.

    All windows go through a layer before the next, so that their hidden states are kept: those of all calibration
    windows, and of as many others as `kept_bytes` allows. What a layer computes on the way is that of a batch. The
    text of a dataset is not counted: its length is unknown before it is read.

    Args:
        model: The dense model, for example on the meta device.
        units: Units of the model.
        family: Record of the model's family.
        config: Options; `config.sparsity` is not used.
        sparsity: Sparsity of the pruned model.
        placement: Devices and dtypes.

    Attributes:
        weights, pruned: Bytes of the dense and of the pruned model.
        fishers, factors: Bytes of all Fisher matrices and of all ridge factors.
        grams: Bytes of the Gram matrices of one layer, the largest.
        outputs: Bytes of the pruned model's output projections.
        calibrated: Bytes of the weights that calibration changes: with distillation, those of whole layers.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        units: Sequence[ModelUnit],
        family: Family,
        config: FFPConfig,
        sparsity: float,
        placement: Placement,
    ):
        self.config, self.placement, self.size = config, placement, placement.own_size
        stored = model.dtype.itemsize
        shape, kept, outputs = model.config, 1 - sparsity, [unit.output.module for unit in units]
        heads, kv_heads, head_dim = family.heads(shape)
        self.hidden, self.vocabulary, self.layers = shape.hidden_size, shape.vocab_size, len(units) // 2
        self.features = [module.in_features for module in outputs]
        eager = getattr(shape, "_attn_implementation", None) == "eager"
        self.attention = 8 * heads * config.seq_len if eager else 0
        self.cache = 2 * self.layers * kv_heads * head_dim * self.size

        blocks = sum(unit.unit.parameters for unit in units) * stored
        self.weights = model.get_memory_footprint()
        self.pruned = self.weights - int(sparsity * blocks)
        self.outputs = int(kept * sum(module.weight.numel() for module in outputs)) * stored
        self.layer_outputs = _largest([module.weight.numel() for module in outputs]) * self.size
        layers = decoder_layers(model)
        parameters = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
        self.largest_layer, self.layer_weights = max(parameters), sum(parameters) * stored
        self.all_layers = sum(parameters) * self.size
        of_layers = [parameter.numel() * stored for layer in layers for parameter in layer.parameters()]
        self.pinned_layers = sum(map(pinned_bytes, of_layers))
        # Embeddings and head are converted while no layer runs.
        self.converted_ends = (self.weights - self.layer_weights) * self.size // stored * (self.size != stored)
        self.brought = placement.offload != "none" or self.size != stored
        self.calibrated = self.outputs * (config.calibration != "none")
        if config.calibration == "distillation":
            self.calibrated = sum(parameters) * stored - int(sparsity * blocks)
        self.fused = int(kept * _largest([*map(_fused_parameters, units)])) * self.size
        self.components = _largest([*map(_component_bytes, units)])
        matrices = [4 * count**2 for count in self.features]
        self.grams = _largest(matrices)
        fishers = [4 * module.out_features**2 if config.needs_fishers else 0 for module in outputs]
        self.fisher_windows = min(config.fisher_samples, config.num_samples)
        self.fishers, self.layer_fishers = sum(fishers), _largest(fishers)
        self.factors = sum(matrices) if config.needs_factors else 0
        self.pinned_factors = sum(map(pinned_bytes, matrices))

    def stages(self) -> Iterator[StageMemory]:
        """Yields all stages of the prune, in order."""
        config, place, entries = self.config, self.placement, max(self.features) ** 2
        weights = self._weights()
        yield self._stage("data", weights | self._writing())

        fishers = {"Fisher matrices": self.fishers // place.processes}
        factors = "factors", self.factors
        if self.fishers:
            beside, host = self._backward(self.fisher_windows)
            sums, kept = self._fisher_sums()
            yield self._stage("fisher", weights | beside | sums, host=host | kept)
        read = self._own(config.num_samples) * config.seq_len
        states, waiting = self._states(read, self.size)
        # One layer after another is read, ordered and factored.
        host = fishers | waiting | {"factors on their way to disk": self.grams * (place.accelerator and place.journal)}
        weights_and_states = weights | states
        sums = most_sums(place.on_cpu, place.processes)
        read = self._forward(self.size) | {"Gram matrices": sums * self.grams}
        yield self._stage("statistics", weights_and_states | read, factors, host)
        criterion = getattr(find_choice("criterion", config.criterion), "WORKSPACE_BYTES", 0)
        beside, apart = self._algebra(criterion * entries, weights_and_states)
        yield self._stage("importance", weights_and_states | beside, factors, host | apart)
        if self.factors:
            beside, apart = self._algebra(ALGEBRA_BYTES * entries, weights_and_states)
            yield self._stage("factorisation", weights_and_states | beside, factors, host | apart)
            if not config.grad:
                logits = {"log-probabilities": 5 * self._piece(4) + self._cast_head(place.compute_size)}
                beside, host = self._kept_at_once(config.slope_samples, len(self.features) + 1)
                yield self._stage("slopes", weights | beside | logits | self._forward(self.size), factors, host)

        before = {"pruned model before": self.pruned * place.several}
        # It is moved to an accelerator that has room for it.
        if not place.accelerator or place.offload == "none" and place.room > PRUNED_ROOM * self.pruned:
            weights, before = weights | before, {}
        candidate = {"compensated weights": self.layer_outputs * (config.reward == "compensated")}
        candidate["fused"] = self.fused
        passes, host = self._searching()
        yield self._stage("search", weights | candidate | passes, factors, host | before)
        calibrated = {"calibrated weights": self.calibrated}
        fitting, hidden = self._fitting() if config.calibration in LAYER_BY_LAYER else ({}, {})
        beside, host = calibrated, {}
        if config.calibration == "distillation" and place.accelerator:
            # Weights of distilled layers are in host memory, and on the GPU while they are evaluated.
            beside, host = {}, calibrated
        host |= before
        yield self._stage("calibration", weights | beside | fitting, factors, host | hidden)
        passes, waiting = self._evaluation(config.eval_samples, self.size)
        yield self._stage("evaluation", weights | beside | passes, factors, host | waiting)
        pruned = {"pruned model": self.pruned}
        yield self._stage("slicing", weights | beside, factors, host | pruned)
        yield self._stage("save", weights, factors, before | pruned)

    def _stage(
        self, name: str, beside: Parts, matrices: tuple[str, int] = ("", 0), host: Parts | None = None
    ) -> StageMemory:
        label, size = matrices
        host = {"process": PROCESS_BYTES} | (host or {})
        if self.placement.offload == "host":
            host["weights of layers"] = self.pinned_layers if self.placement.pins_memory else self.layer_weights
        if self.placement.matrices_beside:
            beside = beside | {label: size}
        else:
            if size and label == "factors" and self.placement.pins_memory:
                size = self.pinned_factors
            # Matrices are moved to the accelerator for one unit at a time.
            beside, host = beside | {"one unit's matrix": 4 * max(self.features) ** 2}, host | {label: size}
        if self.placement.offload == "disk":
            beside, host = ({part: parts[part] for part in parts if part not in FILES} for parts in (beside, host))
        return StageMemory(name, beside, host)

    def _weights(self) -> Parts:
        """Weights on the device. Of layers that are brought there, one before and after sorting, and the next."""
        if not self.brought:
            return {"weights": self.weights}
        beside = {"embeddings and head": self.weights - self.layer_weights}
        if self.placement.offload == "none":
            beside["weights of layers"] = self.layer_weights
        return beside | {"loaded layers": max(3 * self.largest_layer * self.size, self.converted_ends)}

    def _forward(self, size: int, batch: int | None = None) -> Parts:
        """Activations of the widest layer, with the float32 copies that hooks make of them."""
        tokens = self.config.seq_len * (batch or self.config.batch_size)
        widest = max(self.features)
        return {"activations": tokens * (self.hidden * 16 + widest * (3 * size + 8) + self.attention)}

    def _logits(self, size: int) -> Parts:
        """Logits of a piece in the compute dtype and in float32, their log-probabilities, and the cast head."""
        logits = self._piece(size) + self._piece(4) * (1 + (size < 4))
        return {"logits": self.config.batch_size * logits + self._cast_head(size)}

    def _piece(self, size: int) -> int:
        return min(POSITIONS, self.config.seq_len) * self.vocabulary * size

    def _cast_head(self, size: int) -> int:
        return self.vocabulary * self.hidden * size * (size < self.size)

    def _fisher_sums(self) -> tuple[Parts, Parts]:
        """Sums over windows on the accelerator if they are there, and what is in host memory."""
        place = self.placement
        on_accelerator = place.accelerator and place.matrices_beside
        if self.at_once(self.layers + 2) < self._own(self.fisher_windows):
            # Those of all layers grow together; in host memory they become the finished ones, and are no files before.
            sums = running_sums(place.on_cpu, place.processes) * self.fishers
            sums, kept = sums + self.layer_fishers * (place.processes > 1), self.fishers * on_accelerator
        else:
            sums, kept = most_sums(place.on_cpu, place.processes) * self.layer_fishers, self.fishers
        parts = {"sums of Fisher matrices": sums}, {"Fisher matrices": kept // place.processes}
        return parts if on_accelerator else ({}, parts[0] | parts[1])

    def _searching(self) -> tuple[Parts, Parts]:
        """Parts of the evaluation of finalists, or of the candidates of an update if they are more."""
        config, size = self.config, self.placement.compute_size
        count = next(count_searches(config, 1 + self.placement.several))
        finalists, candidates = max(count.finalists, count.baselines, 1), min(count.updates, config.candidates)
        if not self.brought:
            # Otherwise they go through every layer together.
            finalists = candidates = 1
        choices = [self._evaluation(config.search_samples, size, finalists)]
        if config.follows_gradient:
            beside, host = self._backward(config.update_samples)
            choices.append((beside | {"components": self.components}, host))
        elif candidates:
            choices.append(self._evaluation(config.update_samples, size, candidates))
        return max(choices, key=lambda parts: sum(sum(part.values()) for part in parts))

    def _evaluation(self, windows: int | None, size: int, policies: int = 1) -> tuple[Parts, Parts]:
        """Parts of the evaluation of policies; all windows of a text if `None`."""
        beside, host = self._kept_at_once(windows, policies)
        return beside | self._forward(size) | self._logits(size), host

    def _backward(self, windows: int) -> tuple[Parts, Parts]:
        """Inputs of all layers, and the recomputation of one or a piece of logits with its gradient."""
        size = self.placement.compute_size
        pieces = 2 * (self._piece(4) + self._piece(size))
        beside, host = self._kept_at_once(windows, self.layers + 2)
        # The head is done before the first layer runs again.
        head, layer = pieces + self._cast_head(size), 2 * self._forward(size, 1)["activations"]
        beside |= {"logits and gradient": head} if head > layer else {"activations": layer}
        return beside, host

    def _own(self, windows: int) -> int:
        """Windows of one process."""
        return math.ceil(windows / self.placement.processes)

    def at_once(self, copies: int) -> int:
        """Windows that are taken through the layers together, if `copies` hidden states of each are kept."""
        kept = kept_bytes(not self.brought, self.placement.host_free, self.placement.processes)
        return max(1, kept // (copies * self.config.seq_len * self.hidden * self.size))

    def _kept_at_once(self, windows: int | None, copies: int) -> tuple[Parts, Parts]:
        """Hidden states of as many windows as are taken through the layers at once."""
        windows, at_once = windows and self._own(windows), self.at_once(copies)
        return self._states(self.config.seq_len * min(windows or at_once, at_once) * copies, self.size)

    def _algebra(self, workspace: int, held: Parts) -> tuple[Parts, Parts]:
        """The workspace of one unit, and the Gram matrices of its layer.

        The workspace is in host memory where the accelerator has no room for it beside what it holds.
        """
        there, workspace = {"Gram matrices": self.grams}, {"workspace": workspace}
        return (there | workspace, {}) if self._has_room(held | there) else (there, workspace)

    def _has_room(self, held: Parts) -> bool:
        """Whether matrices are factored where they are, beside what is held there."""
        passing = sum(size for name, size in held.items() if name not in RESIDENT)
        needed = ALGEBRA_BYTES * max(self.features) ** 2 + passing
        return not self.placement.accelerator or self.placement.room > needed

    def _states(self, tokens: int, size: int) -> tuple[Parts, Parts]:
        """Hidden states on the device and in host memory."""
        states = {"hidden states": tokens * self.hidden * size}
        fits = self.placement.accelerator and ROOM * states["hidden states"] < self.placement.room
        return (states, {}) if fits else ({}, states)

    def _fitting(self) -> tuple[Parts, Parts]:
        """Parts of calibration layer by layer, on the device and in host memory."""
        config, widest = self.config, max(self.features)
        held_out = self._own(min(config.held_out_samples, config.search_samples))
        training = self._own(config.num_samples)
        if self.placement.accelerator:
            # Those of one GPU; in host memory all processes together have no more if few of them share the text.
            training = math.ceil(config.num_samples / calibrating_processes(config, self.placement.processes))
        tokens = (training + held_out) * config.seq_len
        beside = {"fused": self.fused} | self._forward(self.placement.compute_size, 1)
        if config.calibration == "distillation":
            # The weights before training and those of the best pass are kept too.
            beside["activations"] *= 2
            # Gradients of several windows are added along a tree.
            levels = math.ceil(math.log2(windows_per_step(config.distillation_batch, config.seq_len)))
            beside["training"] = (TRAINING_BYTES + 4 * levels + 2 * self.size) * self.largest_layer
        else:
            # Two products of calibration and of held-out windows.
            beside["sums"] = 4 * most_sums(self.placement.on_cpu, self.placement.processes) * 4 * widest**2
        states, host = self._states(2 * tokens, self.placement.compute_size)
        if config.calibration == "sequential":
            # One of the sums of either window is in the workspace.
            fit = (FIT_BYTES - 4 * 4) * widest**2 + FIT_OUTPUT_BYTES * widest * self.hidden
            here = self._has_room(beside | states)
            beside, host = beside | {"workspace": fit * here}, host | {"workspace": fit * (not here)}
        return beside | states, host

    def _writing(self) -> Parts:
        written = DataRequest.of(self.config).all_written(self.config.dataset, self.config.eval_dataset)
        if not written:
            return {}
        _, tokens = passages_of(self.config.seq_len)
        at_once = passages_at_once(written, self.config.seq_len)
        found = {"KV cache": at_once * (tokens * self.cache + self.vocabulary * (self.size + 8))}
        if self.brought:
            # All layers are where they run at once.
            found["loaded layers"] = self.all_layers + self.converted_ends
        return found


def _largest(of_units: Sequence[int]) -> int:
    """The largest sum over the two units of a layer."""
    return max(map(sum, zip(of_units[::2], of_units[1::2])))


def _component_bytes(unit: ModelUnit) -> int:
    """Bytes that a backward pass keeps per unit, to estimate the effect of a step down and a step up."""
    module = unit.output.module
    return (
        module.weight.dtype.itemsize
        * 2
        * unit.unit.step
        * unit.output.block
        * (module.out_features + module.in_features)
    )


def _fused_parameters(unit: ModelUnit) -> int:
    """Parameters of fused projections, which a policy copies because their prefixes are not contiguous."""
    modules = [part.module for part in unit.slices]
    return sum(module.weight.numel() for module in set(modules) if modules.count(module) > 1)
