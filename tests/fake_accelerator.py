"""A fake accelerator: the device `fake`, whose tensors have their values in host memory.

Tensors on different devices can't be combined, and there is no float64, as on MPS. Importing this module adds the
device to the process: use it in one of its own. It rests on an experimental interface of torch, so `AVAILABLE` may be
false.
"""

import contextlib
import warnings
from typing import Any

import torch
from torch.utils._pytree import tree_map


try:
    from torch.utils.backend_registration import _DummyBackendModule, _setup_privateuseone_for_python_backend

    AVAILABLE = True
except ImportError:
    AVAILABLE = False

META = torch._C.DispatchKeySet(torch._C.DispatchKey.Meta)
VIEWS = ("as_strided", "view", "_reshape_alias", "unfold")
EMPTY = ("aten::empty", "aten::empty_strided")
# Operations whose indices may be in host memory.
INDEXING = ("aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index")
# By the identity of a tensor's storage on the accelerator: the storage in host memory that has its values.
_values: dict[int, torch.UntypedStorage] = {}


def is_fake(tensor: Any) -> bool:
    """Whether something is a tensor on the fake accelerator."""
    return isinstance(tensor, torch.Tensor) and tensor.device.type == "fake"


def _to_host(tensor: torch.Tensor) -> torch.Tensor:
    """The values of a tensor on the accelerator, as a tensor in host memory that shares them."""
    values = _values[tensor.untyped_storage()._cdata]
    empty = torch.empty(0, dtype=tensor.dtype)
    return empty.set_(values, tensor.storage_offset(), tensor.size(), tensor.stride())


def _to_device(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor on the accelerator that takes over the values of one in host memory."""
    if tensor.dtype == torch.float64:
        raise TypeError("the accelerator has no float64")
    count = tensor.untyped_storage().nbytes() // max(1, tensor.element_size())
    base = torch._C._acc.create_empty_tensor((count,), tensor.dtype)
    _values[base.untyped_storage()._cdata] = tensor.untyped_storage()
    view = torch.ops.aten.as_strided.default
    return view.redispatch(META, base, tensor.size(), tensor.stride(), tensor.storage_offset())


def _copy(source: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    if is_fake(source) and target.dtype == torch.float64:
        # MPS converts before it copies.
        raise TypeError("the accelerator has no float64")
    (_to_host(target) if is_fake(target) else target).copy_(_to_host(source) if is_fake(source) else source)
    return target


def _run(operation: Any, *args: Any, **options: Any) -> Any:
    """Run any operation on the values, and return its results on the accelerator."""
    name = operation._schema.name
    if name.removeprefix("aten::") in VIEWS:
        return operation.redispatch(META, *args, **options)
    if name in EMPTY:
        return _to_device(operation(*args, **options | {"device": "cpu", "pin_memory": False}))
    if name == "aten::_copy_from":
        return _copy(*args[:2])
    if name == "aten::_local_scalar_dense":
        return _to_host(args[0]).item()
    given: list[tuple[torch.Tensor, torch.Tensor]] = []

    def to_host(value: Any) -> Any:
        if is_fake(value):
            given.append((_to_host(value), value))
            return given[-1][0]
        if isinstance(value, torch.Tensor) and value.dim() and name not in INDEXING:
            raise RuntimeError(
                f"{name} got a tensor on the accelerator and one on {value.device}, of shape {list(value.shape)}"
            )
        return torch.device("cpu") if isinstance(value, torch.device) else value

    args, options = tree_map(to_host, (args, options))
    found = operation(*args, **options)
    for host, fake in given:
        # An operation may give its output another shape or storage.
        if host.shape != fake.shape or host.data_ptr() != _to_host(fake).data_ptr():
            torch.ops.aten.resize_.default.redispatch(META, fake, host.shape)
            _values[fake.untyped_storage()._cdata] = host.untyped_storage()

    def to_fake(value: Any) -> Any:
        if not isinstance(value, torch.Tensor):
            return value
        # Operations in place return what they were given.
        same = [fake for host, fake in given if host is value]
        return same[0] if same else _to_device(value)

    return tree_map(to_fake, found)


def _made(operation: Any):
    return lambda *args, **options: _to_device(operation(*args, **options | {"device": "cpu", "pin_memory": False}))


if AVAILABLE:

    class _Backend(_DummyBackendModule):
        def manual_seed_all(self, seed: int) -> None:
            """There is nothing random on the accelerator."""

        def get_amp_supported_dtype(self) -> list[torch.dtype]:
            return [torch.float16, torch.bfloat16, torch.float32]

        def get_rng_state(self, device: Any = None) -> torch.Tensor:
            return torch.get_rng_state()

        def set_rng_state(self, state: torch.Tensor, device: Any = None) -> None:
            """There is nothing random on the accelerator."""

        def synchronize(self, *_: Any) -> None:
            """Everything is done at once."""

    _setup_privateuseone_for_python_backend("fake", _Backend())
    _fallback = torch.library.Library("_", "IMPL")
    _fallback.fallback(_run, "PrivateUse1")
    # Operations without a tensor among their arguments, and one that doesn't reach the fallback.
    _factories = torch.library.Library("aten", "IMPL")
    warnings.filterwarnings("ignore", message=".*overriding a previously registered kernel.*")
    for _name in ("arange", "arange.start", "arange.start_step", "eye", "eye.m", "linspace", "randperm"):
        _packet, _, _overload = _name.partition(".")
        _operation = getattr(getattr(torch.ops.aten, _packet), _overload or "default")
        with contextlib.suppress(RuntimeError):
            _factories.impl(_name, _made(_operation), "PrivateUse1")
    _factories.impl("abs", lambda tensor: _to_device(_to_host(tensor).abs()), "PrivateUse1")
