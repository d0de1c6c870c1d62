"""Finding without a GPU what would fail on one: tensors made on the default device that meet those of the model."""

from __future__ import annotations

import weakref
from typing import Any, Iterator

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._device import _device_constructors


class WatchDevices(TorchFunctionMode):
    """Raises RuntimeError where a tensor of the default device meets another one.

    It follows tensors that a factory made without a `device`, and what was computed from them alone. In a step on a GPU
    they would lie on the CPU, and the first operation with a tensor of the model would fail, unless they are moved
    before. As there, numbers (tensors without dimensions) and indices may come from anywhere.

    Args:
        on_cpu: further tensors that stay on the CPU.
    """

    def __init__(self, *on_cpu: Tensor) -> None:
        super().__init__()
        self.factories = _device_constructors()
        self._homeless: weakref.WeakValueDictionary[int, Tensor] = weakref.WeakValueDictionary()
        self._mark(on_cpu)

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        name = getattr(function, "__name__", "")
        given = list(_tensors((args, kwargs)))
        homeless = [tensor for tensor in given if id(tensor) in self._homeless]
        if function in self.factories and kwargs.get("device") is None and not any(_is_device(a) for a in args):
            self._mark(result)
        elif homeless and name == "to" and _moves(args[1:], kwargs):
            return result.clone()  # the same tensor where it is there already
        elif homeless and name not in ("cpu", "cuda", "type_as"):
            others = [tensor for tensor in given if id(tensor) not in self._homeless and tensor.dim()]
            if others and name not in ("__getitem__", "__get__", "size", "__set__"):
                if any(tensor.dim() for tensor in homeless):
                    shapes = [tuple(tensor.shape) for tensor in homeless]
                    raise RuntimeError(f"{name}: a tensor of the default device {shapes} meets one of the model")
            elif name != "__getitem__" or not others:
                self._mark(result)
        return result

    def _mark(self, result: Any) -> None:
        for tensor in _tensors(result):
            self._homeless[id(tensor)] = tensor


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


def _is_device(value: Any) -> bool:
    return isinstance(value, torch.device) or (isinstance(value, str) and value.split(":")[0] in ("cpu", "cuda"))


def _moves(args: Any, kwargs: Any) -> bool:
    return "device" in kwargs or any(_is_device(value) or isinstance(value, Tensor) for value in args)
