"""What every stage of a prune holds in memory, from the shapes of a model that needs no weights."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from .config import FFPConfig
from .criteria import CRITERIA, FISHER_CRITERIA, obs
from .families import Family, ModelUnit
from .fisher import POSITIONS


# Python with all libraries loaded and their threads started.
PROCESS_BYTES = 750 * 2**20
FLOAT32 = 4


@dataclass(frozen=True)
class StageMemory:
    """What is alive when a stage needs the most.

    Attributes:
        name: Of the stage, as in `PruningResult.cost`.
        device: Bytes on the model's device, by what they are.
        host: Bytes in host memory whatever the device. On the CPU both share it.
    """

    name: str
    device: dict[str, int]
    host: dict[str, int]

    def largest(self, count: int = 3) -> list[tuple[str, int]]:
        """The parts that take the most, with their bytes."""
        parts = sorted((self.device | self.host).items(), key=lambda part: -part[1])
        return [(name, size) for name, size in parts[:count] if size]


class MemoryModel:
    """Follows a prune from stage to stage and adds up what lives in each.

    Windows go one batch at a time, so peaks don't grow with their number, except where sequential calibration keeps
    the hidden states of all of them, and where the model writes its own text.

    Args:
        model: The dense model; the meta device will do.
        units: Its units.
        family: The record of its family.
        config: All knobs; of its sparsity the pruned model's size follows.
        compute: Type under autocast, `None` for the model's own.
        matrices_on_device: Whether Gram matrices and factors live beside the model.
        several: Whether one pruned model stays until the next is done.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        units: Sequence[ModelUnit],
        family: Family,
        config: FFPConfig,
        compute: torch.dtype | None = None,
        matrices_on_device: bool = True,
        several: bool = False,
    ):
        self.config, self.matrices_on_device, self.several = config, matrices_on_device, several
        shape, size = model.config, model.dtype.itemsize
        self.size, self.compute = size, (compute or model.dtype).itemsize
        self.heads, kv_heads, head_dim = family.heads(shape)
        self.hidden, self.vocabulary, self.layers = shape.hidden_size, shape.vocab_size, len(units) // 2
        self.eager = getattr(shape, "_attn_implementation", None) == "eager"
        outputs = [unit.output.module for unit in units]
        self.features = [module.in_features for module in outputs]
        self.weights = model.get_memory_footprint()
        self.grams = sum(FLOAT32 * count**2 for count in self.features)
        self.fishers = sum(FLOAT32 * module.out_features**2 for module in outputs) if self._needs_fishers else 0
        kept = 1 - config.sparsity
        self.outputs = int(kept * sum(module.weight.numel() for module in outputs)) * size
        blocks = sum(unit.unit.parameters for unit in units)
        self.pruned = self.weights - int(config.sparsity * blocks) * size
        self.cache_per_token = 2 * self.layers * kv_heads * head_dim * size
        self.tied = shape.tie_word_embeddings
        self.tokens = config.batch_size * config.seq_len

    @property
    def _needs_fishers(self) -> bool:
        return self.config.grad and (self.config.mapping == "curves" or self.config.criterion in FISHER_CRITERIA)

    @property
    def _needs_factors(self) -> bool:
        config = self.config
        return config.calibration != "none" or config.reward != "searched" or config.mapping == "curves"
