"""Placement of a model whose decoder layers are not on the device that runs them."""

from typing import TYPE_CHECKING

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..errors import FFPError
from ..options import OFFLOADS
from ..utils.tensors import put
from .families import find_family


if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def check_offload(
    offload: str, device: torch.device, dtype: torch.dtype | str, config: PretrainedConfig, is_gguf: bool
) -> None:
    """Check that layers can be offloaded.

    Args:
        offload: `"none"`, `"host"` or `"disk"`.
        device: Device that the layers run on.
        dtype: Dtype that was asked for, or `"auto"`.
        config: Config of the model.
        is_gguf: Whether the weights are in a GGUF file.

    Raises:
        FFPError: If `offload` has no effect, or is `"disk"` and the weights have to be converted.
    """
    if offload not in OFFLOADS:
        raise FFPError(f"offload {offload!r} is not known; choose from {', '.join(OFFLOADS)}")
    if offload == "host" and device.type == "cpu":
        raise FFPError(
            "offload 'host' is for accelerators: on the CPU all weights are in host memory; choose 'none' or 'disk'"
        )
    if offload != "disk":
        return
    if is_gguf:
        raise FFPError(
            "the weights of a GGUF file are dequantised into memory, so offload 'disk' can't be used; save the model "
            "as safetensors first, or choose offload 'host' or 'none'"
        )
    own = config.dtype or torch.float32
    if dtype not in ("auto", own):
        raise FFPError(
            f"offload 'disk' reads the weights as they are in the files, in {str(own).removeprefix('torch.')}; leave "
            "out dtype, or save the model in the other dtype first"
        )


def offload_layers(model: PreTrainedModel, device: torch.device, offload: str) -> None:
    """Move everything but the decoder layers to the device.

    Args:
        model: A model in host memory, whose weights may be views of memory-mapped files.
        device: Device that the layers will run on.
        offload: `"disk"` leaves the layers as they are; `"host"` copies them into memory, page-locked for CUDA.
    """
    layers = {id(tensor) for tensor in _tensors(_layers(model))}
    for tensor in _tensors(model):
        if id(tensor) not in layers:
            put(tensor, tensor.data.to(device))
        elif offload == "host":
            put(tensor, tensor.data.pin_memory() if device.type == "cuda" else tensor.data.clone())


def shard_layers(model: PreTrainedModel, mesh: "DeviceMesh | None" = None) -> None:
    """Divide the weights of every decoder layer among all processes, which gather them when the layer runs (FSDP2).

    Every process must then run the model equally often.

    Args:
        model: A model on the device of the process, the same in all of them.
        mesh: The processes; all of this run, with the accelerator of each, if `None`.
    """
    # Some builds of torch have no distributed.
    from torch.distributed.fsdp import fully_shard

    for layer in _layers(model):
        fully_shard(layer, mesh=mesh)


def _layers(model: PreTrainedModel) -> torch.nn.Module:
    return model.base_model.get_submodule(find_family(model.config).layers)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
