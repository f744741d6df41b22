"""Devices and dtypes of a prune, and memory by part and place."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import PreTrainedModel

from ..modeling.families import decoder_layers
from .machine import Machine


# Bytes by the name of what they hold.
Parts = dict[str, int]
# Buffers and kernels of NCCL on a GPU that shares the work with others: an assumption, not measured.
NCCL_BYTES = 2**30


@dataclass(frozen=True)
class Memory:
    """Memory by part.

    Attributes:
        device: Bytes on the model's device.
        host: Bytes in host memory on any device. With the model in host memory a process has both.
    """

    device: Parts = field(default_factory=dict)
    host: Parts = field(default_factory=dict)

    def __or__(self, other: "Memory") -> "Memory":
        return Memory(self.device | other.device, self.host | other.host)

    @property
    def total(self) -> int:
        """Bytes in all."""
        return sum(self.device.values()) + sum(self.host.values())


@dataclass(frozen=True)
class StageMemory(Memory):
    """Memory at the peak of a stage.

    Attributes:
        name: Name of the stage, as in `PruningResult.cost`.
    """

    name: str = ""

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
        machines: Number of machines that they are on.
        host_free: Free bytes of host memory, of which hidden states may take a share where layers are brought.
        pins_memory: Whether layers and factors in host memory are pinned for the accelerator.
        exchange: Bytes on the accelerator with which processes exchange tensors.
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
    machines: int = 1
    host_free: int = 0
    pins_memory: bool = False
    exchange: int = 0


def find_placement(
    offload: str, model: PreTrainedModel, features: Sequence[int], machine: Machine, processes: int, **others: Any
) -> Placement:
    """The placement of a prune on a machine.

    Args:
        offload: Where the weights of layers are while they don't run.
        model: The dense model, for example on the meta device.
        features: Columns of the output projection per unit.
        machine: Device and available memory.
        processes: Number of processes of all machines.
        others: Attributes of `Placement` that don't follow from these.
    """
    accelerator, matrices = machine.device_free is not None, sum(4 * count**2 for count in features)
    resident = model.get_memory_footprint() - (layer_bytes(model) if offload != "none" else 0)
    exchange = exchange_bytes(machine.device, processes)
    room = machine.device_free - resident - exchange if accelerator else 0
    beside = offload == "none" and (not accelerator or room > 2 * matrices)
    return Placement(
        accelerator=accelerator,
        on_cpu=machine.device.type == "cpu",
        matrices_beside=beside,
        room=room - matrices * beside,
        offload=offload,
        host_free=machine.host_free,
        pins_memory=machine.device.type == "cuda",
        exchange=exchange,
        processes=processes,
        **others,
    )


def exchange_bytes(device: torch.device, processes: int) -> int:
    """Bytes on a device with which several processes exchange tensors."""
    return NCCL_BYTES if device.type == "cuda" and processes > 1 else 0


def layer_bytes(model: PreTrainedModel) -> int:
    """Bytes of the weights of all layers."""
    return sum(one.nbytes for one in decoder_layers(model).parameters())
