"""Estimates the memory of each stage of a prune from the shapes of a model without weights."""

import math
from collections.abc import Iterator, Sequence

from transformers import PreTrainedModel

from ..compression.distillation import tokens_per_window, windows_per_step
from ..compression.sorted_model import PRUNED_ROOM
from ..config import FFPConfig
from ..config.fields import find_choice
from ..data import DataRequest
from ..data.self_generated import passages_at_once, passages_of
from ..engine.layerwise_model import ROOM, kept_bytes
from ..modeling.families import Family, ModelUnit, decoder_layers
from ..utils.cholesky import ALGEBRA_BYTES
from ..utils.lm_head import POSITIONS
from ..utils.tensors import pinned_bytes
from ..utils.window_sum import most_sums, running_sums
from .counts import calibrating_processes, count_searches
from .placement import Memory, Parts, Placement, StageMemory


# Memory of a process with all libraries loaded and their threads started.
PROCESS_BYTES = 640 * 2**20
# Bytes per parameter of the layer in training, in float32: weights, gradients of a window and their sum, and the two
# moments of Adam.
TRAINING_BYTES = 20

# Parts that are memory-mapped files with offload "disk".
FILES = ("factors", "Fisher matrices", "calibrated weights", "pruned model", "pruned model before")

# Parts that `Placement.room` doesn't count.
RESIDENT = ("weights", "embeddings and head")


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
        if self.fishers:
            yield self._stage("fisher", weights | self._backward(self.fisher_windows) | self._fisher_sums())
        # One layer after another is read, ordered and factored.
        waiting = {
            "Fisher matrices": self.fishers // place.processes,
            "factors on their way to disk": self.grams * (place.accelerator and place.journal),
        }
        read = self._states(self._own(config.num_samples) * config.seq_len, self.size)
        held = weights | read | Memory(host=waiting)
        sums = Memory({"Gram matrices": most_sums(place.on_cpu, place.processes) * self.grams})
        yield self._stage("statistics", held | self._forward(self.size) | sums, self.factors)
        criterion = getattr(find_choice("criterion", config.criterion), "WORKSPACE_BYTES", 0)
        yield self._stage("importance", held | self._algebra(criterion * entries, held), self.factors)
        if self.factors:
            yield self._stage("factorisation", held | self._algebra(ALGEBRA_BYTES * entries, held), self.factors)

        # It is moved to an accelerator that has room for it.
        moved = not place.accelerator or place.offload == "none" and place.room > PRUNED_ROOM * self.pruned
        weights |= self._at({"pruned model before": self.pruned * place.several}, on_device=moved)
        candidate = {"compensated weights": self.layer_outputs * (config.reward == "compensated"), "fused": self.fused}
        yield self._stage("search", weights | Memory(candidate) | self._searching(), self.factors)
        # Weights of distilled layers are in host memory, and on the GPU while they are evaluated.
        distilled = config.calibration == "distillation" and place.accelerator
        calibrated = weights | self._at({"calibrated weights": self.calibrated}, on_device=not distilled)
        fitting = self._fitting() if config.calibration == "distillation" else Memory()
        yield self._stage("calibration", calibrated | fitting, self.factors)
        passes = self._evaluation(config.eval_samples, self.size)
        yield self._stage("evaluation", calibrated | passes, self.factors)
        pruned = Memory(host={"pruned model": self.pruned})
        yield self._stage("slicing", calibrated | pruned, self.factors)
        yield self._stage("save", weights | pruned, self.factors)

    def _stage(self, name: str, memory: Memory, factors: int = 0) -> StageMemory:
        place, host = self.placement, {"process": PROCESS_BYTES}
        if place.offload == "host":
            host["weights of layers"] = self.pinned_layers if place.pins_memory else self.layer_weights
        memory = Memory({"NCCL": place.exchange}, host) | memory
        if not place.matrices_beside:
            # Matrices are moved to the accelerator for one unit at a time.
            memory |= Memory({"one unit's matrix": 4 * max(self.features) ** 2})
            factors = self.pinned_factors if factors and place.pins_memory else factors
        memory |= self._at({"factors": factors}, on_device=place.matrices_beside)
        files = FILES if place.offload == "disk" else ()
        device, host = (
            {name: size for name, size in parts.items() if name not in files} for parts in (memory.device, memory.host)
        )
        return StageMemory(device, host, name)

    def _at(self, parts: Parts, on_device: bool) -> Memory:
        return Memory(device=parts) if on_device else Memory(host=parts)

    def _weights(self) -> Memory:
        """Weights on the device. Of layers that are brought there, one before and after sorting, and the next."""
        if not self.brought:
            return Memory({"weights": self.weights})
        beside = {"embeddings and head": self.weights - self.layer_weights}
        if self.placement.offload == "none":
            beside["weights of layers"] = self.layer_weights
        return Memory(beside | {"loaded layers": max(3 * self.largest_layer * self.size, self.converted_ends)})

    def _forward(self, size: int) -> Memory:
        return Memory({"activations": self._activations(size, self.config.batch_size)})

    def _activations(self, size: int, batch: int = 1) -> int:
        """Activations of the widest layer, with the float32 copies that hooks make of them."""
        of_token = self.hidden * 16 + max(self.features) * (3 * size + 8) + self.attention
        return batch * self.config.seq_len * of_token

    def _logits(self, size: int) -> int:
        """Logits of a piece in the compute dtype and in float32, their log-probabilities, and the cast head."""
        logits = self._piece(size) + self._piece(4) * (1 + (size < 4))
        return self.config.batch_size * logits + self._cast_head(size)

    def _piece(self, size: int) -> int:
        return min(POSITIONS, self.config.seq_len) * self.vocabulary * size

    def _cast_head(self, size: int) -> int:
        return self.vocabulary * self.hidden * size * (size < self.size)

    def _fisher_sums(self) -> Memory:
        """Sums over windows, on the accelerator if they are there, and what is in host memory."""
        place = self.placement
        on_accelerator = place.accelerator and place.matrices_beside
        if self.at_once(self.layers + 2) < self._own(self.fisher_windows):
            # Those of all layers grow together; in host memory they become the finished ones, and are no files before.
            sums = running_sums(place.on_cpu, place.processes) * self.fishers
            sums, kept = sums + self.layer_fishers * (place.processes > 1), self.fishers * on_accelerator
        else:
            sums, kept = most_sums(place.on_cpu, place.processes) * self.layer_fishers, self.fishers
        added = self._at({"sums of Fisher matrices": sums}, on_device=on_accelerator)
        return added | Memory(host={"Fisher matrices": kept // place.processes})

    def _searching(self) -> Memory:
        """Parts of the evaluation of finalists, or of the candidates of an update if they are more."""
        config, size = self.config, self.placement.compute_size
        count = next(count_searches(config, 1 + self.placement.several))
        finalists, candidates = max(count.finalists, count.baselines, 1), min(count.updates, config.candidates)
        if not self.brought:
            # Otherwise they go through every layer together.
            finalists = candidates = 1
        choices = [self._evaluation(config.search_samples, size, finalists)]
        if config.follows_gradient:
            choices.append(self._backward(config.update_samples) | Memory({"components": self.components}))
        elif candidates:
            choices.append(self._evaluation(config.update_samples, size, candidates))
        return max(choices, key=lambda memory: memory.total)

    def _evaluation(self, windows: int | None, size: int, policies: int = 1) -> Memory:
        """Parts of the evaluation of policies; all windows of a text if `None`."""
        return self._kept_at_once(windows, policies) | self._forward(size) | Memory({"logits": self._logits(size)})

    def _backward(self, windows: int) -> Memory:
        """Inputs of all layers, and the recomputation of one or a piece of logits with its gradient."""
        size = self.placement.compute_size
        pieces = 2 * (self._piece(4) + self._piece(size))
        # The head is done before the first layer runs again.
        head, layer = pieces + self._cast_head(size), 2 * self._activations(size)
        largest = {"logits and gradient": head} if head > layer else {"activations": layer}
        return self._kept_at_once(windows, self.layers + 2) | Memory(largest)

    def _predicting(self) -> int:
        """Logits of a piece by two models, with log-probabilities, their divergence and gradients; and cast heads."""
        size = self.placement.compute_size
        return 5 * self._piece(4) + 2 * (self._piece(size) + self._cast_head(size))

    def _own(self, windows: int) -> int:
        """Windows of one process."""
        return math.ceil(windows / self.placement.processes)

    def at_once(self, copies: int) -> int:
        """Windows that are taken through the layers together, if `copies` hidden states of each are kept."""
        place = self.placement
        local, room = place.processes // place.machines, place.room * place.accelerator
        kept = kept_bytes(not self.brought, place.host_free, local, room)
        return max(1, kept // (copies * self.config.seq_len * self.hidden * self.size))

    def _kept_at_once(self, windows: int | None, copies: int) -> Memory:
        """Hidden states of as many windows as are taken through the layers at once."""
        windows, at_once = windows and self._own(windows), self.at_once(copies)
        return self._states(self.config.seq_len * min(windows or at_once, at_once) * copies, self.size)

    def _algebra(self, workspace: int, held: Memory) -> Memory:
        """The workspace of one unit, and the Gram matrices of its layer.

        The workspace is in host memory where the accelerator has no room for it beside what it holds.
        """
        grams = Memory({"Gram matrices": self.grams})
        return grams | self._at({"workspace": workspace}, on_device=self._has_room(held | grams))

    def _has_room(self, held: Memory) -> bool:
        """Whether matrices are factored where they are, beside what is held there."""
        passing = sum(size for name, size in held.device.items() if name not in RESIDENT)
        needed = ALGEBRA_BYTES * max(self.features) ** 2 + passing
        return not self.placement.accelerator or self.placement.room > needed

    def _states(self, tokens: int, size: int) -> Memory:
        """Hidden states, on an accelerator that has room for them or in host memory."""
        states = tokens * self.hidden * size
        fits = self.placement.accelerator and ROOM * states < self.placement.room
        return self._at({"hidden states": states}, on_device=fits)

    def _fitting(self) -> Memory:
        """Parts of distillation."""
        config = self.config
        held_out = self._own(min(config.held_out_samples, config.search_samples))
        training = self._own(config.num_samples)
        if self.placement.accelerator:
            # Those of one GPU; in host memory all processes together have no more if few of them share the text.
            training = math.ceil(config.num_samples / calibrating_processes(config, self.placement.processes))
        beside = {"fused": self.fused, "activations": self._activations(self.placement.compute_size)}
        parts = config.distillation_parts
        length = tokens_per_window(config.seq_len, parts=parts)
        beside["activations"] = 2 * beside["activations"] * length // (parts * config.seq_len)
        # Gradients of several windows are added along a tree.
        levels = math.ceil(math.log2(windows_per_step(config.distillation_batch, config.seq_len // parts)))
        # The weights before training and those of the best pass are kept too.
        beside["training"] = (TRAINING_BYTES + 4 * levels + 2 * self.size) * self.largest_layer
        # The last norm is trained after the layers.
        of_norm = self._predicting()
        if of_norm > sum(beside.values()):
            beside = {"logits and gradient": of_norm}
        return Memory(beside) | self._states(2 * (training + held_out) * length, self.placement.compute_size)

    def _writing(self) -> Memory:
        written = DataRequest.of(self.config).all_written(self.config.dataset, self.config.eval_dataset)
        if not written:
            return Memory()
        _, tokens = passages_of(self.config.seq_len)
        at_once = passages_at_once(written, self.config.seq_len)
        found = {"KV cache": at_once * (tokens * self.cache + self.vocabulary * (self.size + 8))}
        if self.brought:
            # All layers are where they run at once.
            found["loaded layers"] = self.all_layers + self.converted_ends
        # One process of all writes.
        local = 1 if self.placement.accelerator else self.placement.processes // self.placement.machines
        return Memory({name: size // local for name, size in found.items()})


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
