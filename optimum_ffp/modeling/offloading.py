"""Offloading and sharding of decoder layers."""

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ..config.prune import OFFLOADS
from ..errors import FFPError
from ..utils import processes
from ..utils.tensors import pin, replace_value
from .families import decoder_layers


def check_calibration(calibration: str | None, offload: str) -> None:
    """Raise `FFPError` if weights of idle layers are offloaded that the calibration trains."""
    if calibration == "model" and offload != "none":
        raise FFPError(
            f"calibration 'model' needs all weights on the device, found offload {offload!r}; choose offload 'none', "
            "or calibration 'layers'"
        )


def check_offload(
    offload: str, device: torch.device, dtype: torch.dtype | str, config: PretrainedConfig, is_gguf: bool
) -> None:
    """Check that layers can be offloaded.

    Args:
        offload: `"none"`, `"host"` or `"disk"`.
        device: Device to run layers on.
        dtype: Requested dtype, or `"auto"`.
        config: Config of the model.
        is_gguf: Whether the weights are in a GGUF file.

    Raises:
        FFPError: If `offload` has no effect, or is `"disk"` and the weights have to be converted.
    """
    if offload not in OFFLOADS:
        raise FFPError(f"offload {offload!r} is not known; choose from {', '.join(OFFLOADS)}")
    if offload == "host" and device.type == "cpu":
        raise FFPError(
            "offload 'host' is for accelerators: on the CPU, weights are in host memory; choose 'none' or 'disk'"
        )
    if offload != "disk":
        return
    if is_gguf:
        raise FFPError(
            "the weights of a GGUF file are dequantized into memory, so offload 'disk' can't be used; save the model "
            "as safetensors first, or choose offload 'host' or 'none'"
        )
    stored = config.dtype or torch.float32
    if dtype not in ("auto", stored):
        raise FFPError(
            f"offload 'disk' uses the weights in the dtype of the files, {str(stored).removeprefix('torch.')}; leave "
            "out dtype, or save the model in the other dtype first"
        )


def offload_layers(model: PreTrainedModel, device: torch.device, offload: str) -> None:
    """Move all weights except those of the decoder layers to a device.

    Args:
        model: A model in host memory, whose weights may be views of memory-mapped files.
        device: Device to run layers on.
        offload: `"disk"` leaves the layers unchanged; `"host"` copies them to host memory, pinned for CUDA.
    """
    layers = {id(tensor) for tensor in _tensors(decoder_layers(model))}
    for tensor in _tensors(model):
        if id(tensor) not in layers:
            replace_value(tensor, tensor.data.to(device))
        elif offload == "host":
            replace_value(tensor, pin(tensor.data) if device.type == "cuda" else tensor.data.clone())


def shard_layers(model: PreTrainedModel) -> None:
    """Shard the weights of every decoder layer over all processes (FSDP2).

    All processes must then run the model equally often.

    Args:
        model: A model on the device of the process, identical in all processes.
    """
    # Some builds of torch lack distributed.
    from torch.distributed import fsdp
    from torch.distributed.device_mesh import init_device_mesh

    mesh, layers = init_device_mesh(model.device.type, (processes.count(),)), list(decoder_layers(model))
    for layer in layers:
        # By default, root modules are not resharded after forward.
        fsdp.fully_shard(layer, mesh=mesh, reshard_after_forward=True)
    if hasattr(fsdp, "share_comm_ctx"):
        # Otherwise every layer allocates its own streams and memory.
        fsdp.share_comm_ctx(layers)


def _tensors(module: torch.nn.Module) -> list[torch.Tensor]:
    return [*module.parameters(), *module.buffers()]
