"""Offloading and sharding of decoder layers."""

import logging
from pathlib import Path
from typing import Any

import torch
from accelerate.hooks import remove_hook_from_submodules
from transformers import PreTrainedModel
from transformers.integrations.accelerate import load_offloaded_parameter

from ..config.prune import OFFLOADS
from ..errors import FFPError
from ..utils import processes
from ..utils.precision import move
from ..utils.tensors import pin, replace_value
from .families import decoder_layers, find_family, find_units


# It says that some weights are offloaded.
logging.getLogger("accelerate.big_modeling").setLevel(logging.ERROR)


def check_offload(offload: str, device: torch.device) -> None:
    """Raise `FFPError` if `offload` is not known, or has no effect on a device."""
    if offload not in OFFLOADS:
        raise FFPError(f"offload {offload!r} is not known; choose from {', '.join(OFFLOADS)}")
    if offload == "host" and device.type == "cpu":
        raise FFPError(
            "offload 'host' is for accelerators: on the CPU, weights are in host memory; choose 'none' or 'disk'"
        )


def offload_layers(model: PreTrainedModel, device: torch.device, offload: str) -> PreTrainedModel:
    """Move a model to a device in place, except for the decoder layers if these are offloaded, and return it.

    Experts that `from_pretrained` has kept on disk are mapped into memory. Offload `"disk"` leaves the layers as views
    of memory-mapped files; `"host"` copies them to host memory, pinned for CUDA.
    """
    if hasattr(model, "hf_device_map"):
        for name, parameter in model.named_parameters():
            if parameter.is_meta:
                replace_value(parameter, load_offloaded_parameter(model, name))
        remove_hook_from_submodules(model)
        del model.hf_device_map
    if offload == "none":
        return move(model, device)
    layers = {id(tensor) for tensor in _tensors(decoder_layers(model))}
    for tensor in _tensors(model):
        if id(tensor) not in layers:
            replace_value(tensor, tensor.data.to(device))
        elif offload == "host":
            replace_value(tensor, pin(tensor.data) if device.type == "cuda" else tensor.data.clone())
    return model


def experts_on_disk(model: PreTrainedModel, folder: Path) -> dict[str, Any]:
    """Return arguments of `from_pretrained` that keep the experts of a mixture on disk, in a folder.

    Checkpoints have several tensors per expert, which transformers merges, so that they can't be mapped from there.
    The given model has no weights.
    """
    experts = {unit.output.module for unit in find_units(model, find_family(model.config))}
    # Of every module that has tensors of its own.
    owners = dict.fromkeys(name.rpartition(".")[0] for name, _ in (*model.named_parameters(), *model.named_buffers()))
    places = {name: "disk" if model.get_submodule(name) in experts else "cpu" for name in owners}
    return {"device_map": places, "offload_folder": folder}


def shard_layers(model: PreTrainedModel) -> None:
    """Shard the weights of every decoder layer of a model over all processes (FSDP2).

    The model must be identical in all processes, on their devices, and all must then run it equally often.
    """
    # Some builds of torch lack distributed.
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(model.device.type, (processes.count(),))
    # By default, root modules are not resharded after forward.
    layers = [fsdp.fully_shard(layer, mesh=mesh, reshard_after_forward=True) for layer in decoder_layers(model)]
    if hasattr(fsdp, "share_comm_ctx"):
        # Otherwise every layer allocates its own streams and memory.
        fsdp.share_comm_ctx(layers)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
