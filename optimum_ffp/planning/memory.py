"""Estimates the memory of each stage of a prune from the shapes of a model without weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from transformers import PreTrainedModel

from ..config import FFPConfig
from ..data import DataRequest
from ..data.self_generated import passages_at_once, passages_of
from ..modeling.families import Family, ModelUnit
from ..options import LAYER_BY_LAYER, find_choice
from ..utils.lm_head import POSITIONS


# Memory of a process with all libraries loaded and their threads started.
PROCESS_BYTES = 640 * 2**20
# glibc allocates larger blocks individually and returns them to the system when they are freed.
RETURNED_BYTES = 32 * 2**20
# Peak of temporaries in float64 and float32: bytes per entry of the largest Gram matrix, during its factorisation and
# during the fit of a unit, and bytes per entry of the output weights during the fit.
FACTORISATION_BYTES, FIT_BYTES, FIT_OUTPUT_BYTES = 44, 42, 44
# Bytes per parameter of the layer in training, in float32: weights, gradients and the two moments of Adam.
TRAINING_BYTES = 16

Parts = dict[str, int]


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

    def largest(self, count: int = 3) -> str:
        """The `count` largest parts, in GiB."""
        parts = sorted((self.device | self.host).items(), key=lambda part: -part[1])
        return ", ".join(f"{name} {size / 2**30:.2f}" for name, size in parts[:count] if size)


@dataclass(frozen=True)
class Placement:
    """Devices and dtypes of a prune.

    Attributes:
        compute_size: Bytes per number in forward passes; under autocast smaller than that of the weights.
        accelerator: Whether the model is on an accelerator.
        matrices_beside: Whether Gram matrices and factors are on the model's device.
        journal: Whether finished work is saved to disk, to resume from.
        several: Whether there are several sparsities, so that a pruned model is kept until the next is finished.
    """

    compute_size: int
    accelerator: bool = False
    matrices_beside: bool = True
    journal: bool = False
    several: bool = False


class MemoryModel:
    """Adds up the memory of each stage of a prune.

    Windows are processed in batches, so that peaks don't grow with their number, with two exceptions: calibration
    layer by layer keeps the hidden states of all its windows, and text is sampled from the model in a batch of many
    windows. The text of a dataset is not counted: its length is unknown before it is read.

    Args:
        model: The dense model, for example on the meta device.
        units: Units of the model.
        family: Record of the model's family.
        config: Options; `config.sparsity` is not used.
        sparsity: Sparsity of the pruned model.
        placement: Devices and dtypes.

    Attributes:
        weights, pruned: Bytes of the dense and of the pruned model.
        grams, fishers: Bytes of all Gram matrices and of all Fisher matrices.
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
        self.config, self.placement, self.size = config, placement, model.dtype.itemsize
        shape, kept, outputs = model.config, 1 - sparsity, [unit.output.module for unit in units]
        heads, kv_heads, head_dim = family.heads(shape)
        self.hidden, self.vocabulary, self.layers = shape.hidden_size, shape.vocab_size, len(units) // 2
        self.features = [module.in_features for module in outputs]
        eager = getattr(shape, "_attn_implementation", None) == "eager"
        self.attention = 8 * heads * config.seq_len if eager else 0
        self.cache = 2 * self.layers * kv_heads * head_dim * self.size

        blocks = sum(unit.unit.parameters for unit in units) * self.size
        self.weights = model.get_memory_footprint()
        self.pruned = self.weights - int(sparsity * blocks)
        self.outputs = int(kept * sum(module.weight.numel() for module in outputs)) * self.size
        layers = model.base_model.get_submodule(family.layers)
        parameters = [sum(parameter.numel() for parameter in layer.parameters()) for layer in layers]
        self.largest_layer = max(parameters)
        self.calibrated = self.outputs * (config.calibration != "none")
        if config.calibration == "distillation":
            self.calibrated = sum(parameters) * self.size - int(sparsity * blocks)
        self.fused = int(kept * sum(map(_fused_parameters, units))) * self.size
        self.components = sum(map(_component_bytes, units))
        self.grams = sum(4 * count**2 for count in self.features)
        self.fishers = sum(4 * module.out_features**2 for module in outputs) if config.needs_fishers else 0
        self.factors = self.grams if config.needs_factors else 0

    def stages(self) -> Iterator[StageMemory]:
        """Yields all stages of the prune, in order."""
        config, place, entries = self.config, self.placement, max(self.features) ** 2
        weights = {"weights": self.weights}
        yield self._stage("data", weights | self._writing())

        grams = "Gram matrices", self.grams
        process = {"Gram matrices on their way to disk": self.grams * (place.accelerator and place.journal)}
        yield self._stage("statistics", weights | self._forward(self.size), grams, process)
        process = {"Fisher matrices": self.fishers}
        if self.fishers:
            yield self._stage("fisher", weights | self._backward(), grams, process | self._holes())
        workspace = {"workspace": getattr(find_choice("criterion", config.criterion), "WORKSPACE_BYTES", 0) * entries}
        yield self._stage("importance", weights | workspace, grams, process)

        factors = "factors", self.factors
        if self.factors:
            workspace = {"workspace": FACTORISATION_BYTES * entries}
            yield self._stage("factorisation", weights | workspace, factors, process)
            if not config.grad:
                logits = {"log-probabilities": 5 * self._piece(4) + self._cast_head(place.compute_size)}
                yield self._stage("slopes", weights | logits | self._forward(place.compute_size), factors)

        weights |= {"pruned model before": self.pruned * place.several}
        candidate = {"compensated weights": self.outputs * (config.reward == "compensated"), "fused": self.fused}
        passes = self._forward(place.compute_size) | self._logits(place.compute_size)
        if config.follows_gradient:
            gradient = self._backward() | {"components": self.components} | self._holes()
            passes = max(passes, gradient, key=lambda parts: sum(parts.values()))
        yield self._stage("search", weights | candidate | passes, factors)
        calibrated = {"calibrated weights": self.calibrated}
        fitting, hidden = self._fitting() if config.calibration in LAYER_BY_LAYER else ({}, {})
        beside, host = calibrated, {}
        if config.calibration == "distillation" and place.accelerator:
            # Weights of distilled layers are in host memory, and on the card while they are evaluated.
            beside, host = {}, calibrated
        yield self._stage("calibration", weights | beside | fitting, factors, host | hidden)
        passes = self._forward(self.size) | self._logits(self.size)
        yield self._stage("evaluation", weights | calibrated | passes, factors, host)
        pruned = {"pruned model": self.pruned}
        yield self._stage("slicing", weights | beside, factors, host | pruned)
        yield self._stage("save", weights, factors, pruned)

    def _stage(
        self, name: str, beside: Parts, matrices: tuple[str, int] = ("", 0), host: Parts | None = None
    ) -> StageMemory:
        label, size = matrices
        host = {"process": PROCESS_BYTES} | (host or {})
        if self.placement.matrices_beside:
            return StageMemory(name, beside | {label: size}, host)
        # Matrices are moved to the accelerator for one unit at a time.
        return StageMemory(name, beside | {"one unit's matrix": 4 * max(self.features) ** 2}, host | {label: size})

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

    def _backward(self) -> Parts:
        """One window: inputs of all layers, recomputation of one layer, and a piece of logits with its gradient."""
        size = self.placement.compute_size
        pieces = 2 * (self._piece(4) + self._piece(size))
        logits = {"logits and gradient": pieces + self._cast_head(size)}
        activations = 2 * self._forward(size, 1)["activations"]
        return logits | {"activations": activations, "layer inputs": self._layer_inputs()}

    def _layer_inputs(self) -> int:
        return self.layers * self.config.seq_len * self.hidden * self.size

    def _holes(self) -> Parts:
        # Inputs of all layers are kept among blocks that are freed, which fragments the heap.
        small = self.config.seq_len * self.hidden * self.size < RETURNED_BYTES and not self.placement.accelerator
        return {"heap with holes": 3 * self._layer_inputs() * small}

    def _fitting(self) -> tuple[Parts, Parts]:
        """Parts of calibration layer by layer, on the device and in host memory."""
        config, widest = self.config, max(self.features)
        tokens = (config.num_samples + min(config.held_out_samples, config.search_samples)) * config.seq_len
        beside = {"fused": self.fused} | self._forward(self.placement.compute_size, 1)
        if config.calibration == "distillation":
            # The weights before training and those of the best pass are kept too.
            beside["activations"] *= 2
            beside["training"] = (TRAINING_BYTES + 2 * self.size) * self.largest_layer
        else:
            beside["workspace"] = FIT_BYTES * widest**2 + FIT_OUTPUT_BYTES * widest * self.hidden
        return beside, {"hidden states": tokens * 2 * self.hidden * self.placement.compute_size}

    def _writing(self) -> Parts:
        written = DataRequest.of(self.config).all_written(self.config.dataset, self.config.eval_dataset)
        if not written:
            return {}
        _, tokens = passages_of(self.config.seq_len)
        at_once = passages_at_once(written, self.config.seq_len)
        return {"KV cache": at_once * (tokens * self.cache + self.vocabulary * (self.size + 8))}


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
