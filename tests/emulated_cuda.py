"""A CUDA device without a GPU: it computes on the CPU and is as strict about devices and half precision as CUDA.

`with emulated_cuda() as device:` makes tensors on `cuda` possible. They are `CudaTensor`, which hold a CPU tensor and
know that they are not one: an operation that gets tensors of both devices fails as it would on a GPU, so do `numpy`
and memory mapping, and under `torch.autocast("cuda")` operations take and give the dtypes of PyTorch's table
("CUDA Ops that can autocast"). What it cannot show: speed, memory, kernels of other packages (nerfacc, tinycudann), and
what is asynchronous on a GPU.
"""

from __future__ import annotations

from contextlib import ExitStack, contextmanager
from typing import Any, Callable, Iterator
from unittest import mock

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

CUDA = torch.device("cuda:0")
aten = torch.ops.aten

COPIES = {aten.copy_.default, aten._to_copy.default}
"""Operations that take tensors of two devices."""
LOOK_UPS = {
    aten.index.Tensor,
    aten.index_put.default,
    aten.index_put_.default,
    aten._index_put_impl_.default,
    aten._unsafe_index.Tensor,
}
"""Operations whose indices may lie on the CPU, where the tensor lies on a GPU."""

MOVES = {Tensor.cpu, Tensor.cuda, Tensor.to}

TO_HALF = set(
    "__matmul__ __rmatmul__ addbmm addmm addmv addr baddbmm bmm chain_matmul conv1d conv2d conv3d conv_transpose1d"
    " conv_transpose2d conv_transpose3d linear matmul mm mv prelu multi_dot scaled_dot_product_attention".split()
)
TO_FULL = set(
    "__pow__ __rpow__ __rdiv__ __rtruediv__ acos asin binary_cross_entropy_with_logits cdist cosh cosine_embedding_loss"
    " cosine_similarity cross_entropy cumprod cumsum dist erfinv exp expm1 group_norm hinge_embedding_loss kl_div"
    " l1_loss layer_norm log log10 log1p log2 log_softmax margin_ranking_loss mse_loss multi_margin_loss"
    " multilabel_margin_loss nll_loss norm normalize pdist poisson_nll_loss pow prod reciprocal renorm rsqrt sinh"
    " smooth_l1_loss soft_margin_loss softmax softmin softplus sum tan triplet_margin_loss".split()
)
TO_WIDEST = set(
    "addcdiv addcmul atan2 bilinear cat cross dot grid_sample grid_sampler index_put scatter_add stack"
    " tensordot".split()
)


class CudaTensor(Tensor):
    """A tensor on the emulated device.

    To C++ it is a tensor of the CPU, because autograd would look for a GPU's driver.
    """

    inner: Tensor
    """The values."""
    device = property(lambda self: CUDA)  # type: ignore[assignment]
    is_cuda = property(lambda self: True)  # type: ignore[assignment]
    is_cpu = property(lambda self: False)  # type: ignore[assignment]
    _in_operation = False

    @staticmethod
    def __new__(cls, inner: Tensor) -> CudaTensor:
        return Tensor._make_wrapper_subclass(
            cls,
            inner.size(),
            strides=inner.stride(),
            storage_offset=inner.storage_offset(),
            dtype=inner.dtype,
            layout=inner.layout,
        )

    def __init__(self, inner: Tensor) -> None:
        self.inner = inner

    def __repr__(self) -> str:  # type: ignore[override]
        return f"CudaTensor({self.inner!r})"

    def __tensor_flatten__(self) -> tuple:  # with it, modules move by swapping their parameters
        return ["inner"], None

    @staticmethod
    def __tensor_unflatten__(inner: dict, context: Any, size: Any, stride: Any) -> CudaTensor:
        return CudaTensor(inner["inner"])

    def get_device(self) -> int:
        return 0

    def tolist(self) -> Any:
        return self.inner.tolist()

    def numpy(self, *_: Any, **__: Any) -> Any:
        raise TypeError("can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() first.")

    __array__ = numpy

    def pin_memory(self, *_: Any) -> Tensor:
        raise RuntimeError("cannot pin 'torch.cuda.FloatTensor': only dense CPU tensors can be pinned")

    def __reduce_ex__(self, protocol: int) -> Any:
        return self.inner.detach().requires_grad_(self.requires_grad).__reduce_ex__(protocol)

    def __deepcopy__(self, memo: dict) -> Tensor:
        copy: Tensor = CudaTensor(self.inner.clone())
        memo[id(self)] = copy = nn.Parameter(copy, self.requires_grad) if isinstance(self, nn.Parameter) else copy
        return copy

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(function, "__name__", "")
        with torch._C.DisableTorchFunctionSubclass():
            if function in MOVES:
                return _move(name, *args, **kwargs)
            if torch.is_autocast_enabled("cuda"):
                args, kwargs = _autocast(name, args, kwargs)
            if name in ("backward", "grad", "apply"):  # may call what is tested
                return function(*args, **kwargs)
            before, CudaTensor._in_operation = CudaTensor._in_operation, True
            try:
                return function(*args, **kwargs)
            finally:
                CudaTensor._in_operation = before

    @classmethod
    def __torch_dispatch__(cls, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _Factories(TorchDispatchMode):
    """Catches `torch.zeros(3, device="cuda")` and the like, which have no tensor to be recognised by."""

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _compute(operation, args, kwargs or {})


class _Moves(TorchFunctionMode):
    """Says which GPU is meant by `cuda`; C++ would ask its driver."""

    def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if function in MOVES and not isinstance(args[0], CudaTensor):
            return _move(function.__name__, *args, **kwargs)
        if _is_cuda(kwargs.get("device")):
            kwargs = {**kwargs, "device": CUDA}
        return function(*args, **kwargs)


class _ToCPU(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, tensor: CudaTensor) -> Tensor:
        return tensor.inner.clone()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return CudaTensor(gradient)


def _move(name: str, tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    """`tensor.cpu()`, `tensor.cuda()` and every form of `tensor.to()`."""
    device, dtype, more = None, None, {}
    other = next((value for value in (*args, *kwargs.values()) if isinstance(value, Tensor)), None)
    if name != "to":
        device = torch.device(name)
    elif other is not None:
        device, dtype = other.device, other.dtype
    else:
        kwargs.pop("copy", None)
        device, dtype, _, layout = torch._C._nn._parse_to(*args, **kwargs)
        more = {} if layout is None else {"memory_format": layout}
    if device is not None and device.type == "cpu" and isinstance(tensor, CudaTensor):
        tensor = _ToCPU.apply(tensor)
    elif _is_cuda(device) and not isinstance(tensor, CudaTensor):
        tensor = tensor.to(CUDA)
    return tensor.to(dtype=dtype or tensor.dtype, **more)


def _autocast(name: str, args: Any, kwargs: Any) -> Any:
    """The arguments in the dtype that the operation takes under `torch.autocast("cuda")`."""
    given = [x.dtype for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor) and x.is_floating_point()]
    if not given or torch.float64 in given:
        return args, kwargs
    if name in TO_HALF:
        dtype = torch.get_autocast_dtype("cuda")
    elif name in TO_FULL or (name in TO_WIDEST and torch.float32 in given):
        dtype = torch.float32
    else:
        return args, kwargs
    return _each(Tensor, lambda x: x.to(dtype) if x.is_floating_point() else x, (args, kwargs))


def _compute(operation: Any, args: Any, kwargs: Any) -> Any:
    """An operation on the values of its arguments; raises RuntimeError for those of two devices."""
    tensors = [value for value in tree_leaves((args, kwargs)) if isinstance(value, Tensor)]
    emulated = [value for value in tensors if isinstance(value, CudaTensor)]
    asked = kwargs.get("device")
    on_cuda = bool(emulated) or _is_cuda(asked)
    if emulated and operation not in COPIES:
        look_up = operation in LOOK_UPS and isinstance(args[0], CudaTensor)
        checked = [*args[:1], *args[2:3]] if look_up else tensors
        strangers = [x for x in checked if isinstance(x, Tensor) and not isinstance(x, CudaTensor) and x.dim()]
        if strangers:
            shapes = [tuple(tensor.shape) for tensor in strangers]
            raise RuntimeError(f"{operation}: all tensors must be on cuda:0, but {shapes} are on the CPU")
    # Inside of an operation, C++ asks for further tensors on the device of its arguments, which it takes for the CPU.
    on_cuda = on_cuda or (CudaTensor._in_operation and not tensors)
    args_inside, kwargs_inside = _each(CudaTensor, lambda x: x.inner, (args, kwargs))
    if asked is not None:
        kwargs_inside = {**kwargs_inside, "device": torch.device("cpu")}
    kwargs_inside.pop("pin_memory", None)
    result = operation(*args_inside, **kwargs_inside)
    if operation is aten.copy_.default:
        return args[0]
    if not on_cuda:
        return result
    result = _each(Tensor, lambda x: x if isinstance(x, CudaTensor) else CudaTensor(x), result)
    return return_and_correct_aliasing(operation, args, kwargs, result)


def _is_cuda(device: Any) -> bool:
    return device is not None and torch.device(device).type == "cuda"


def _each(kind: type, function: Callable[[Any], Any], tree: Any) -> Any:
    return tree_map(lambda leaf: function(leaf) if isinstance(leaf, kind) else leaf, tree)


@contextmanager
def emulated_cuda() -> Iterator[torch.device]:
    """`cuda` is there; yields it. Tensors of it are of no use outside."""
    answers = {
        "_lazy_init": None,
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_name": "emulated",
        "is_bf16_supported": True,
        "mem_get_info": (8 << 30, 8 << 30),
        "max_memory_allocated": 0,
        "reset_peak_memory_stats": None,
        "set_device": None,
        "synchronize": None,
        "empty_cache": None,
    }
    with ExitStack() as stack:
        for name, answer in answers.items():
            stack.enter_context(mock.patch(f"torch.cuda.{name}", lambda *_, answer=answer, **__: answer))
        for name in ("_cuda_graph_capture_health_check", "_accelerator_graph_capture_health_check"):
            if hasattr(torch.optim.Optimizer, name):
                stack.enter_context(mock.patch.object(torch.optim.Optimizer, name, lambda self: None))
        stack.enter_context(mock.patch.object(Tensor, "pin_memory", lambda self, *_: self))
        stack.enter_context(_Factories())
        stack.enter_context(_Moves())
        torch._C._set_only_lift_cpu_tensors(True)  # torch.tensor(..., device="cuda") moves what it made
        stack.callback(torch._C._set_only_lift_cpu_tensors, False)
        stack.callback(
            torch.__future__.set_swap_module_params_on_conversion,
            torch.__future__.get_swap_module_params_on_conversion(),
        )
        torch.__future__.set_swap_module_params_on_conversion(True)  # a moved parameter changes its class
        stack.callback(_forget_device)
        _forget_device()
        yield CUDA


def _forget_device() -> None:
    """Hugging Face's accelerate looks for a device once in a process."""
    from accelerate.state import AcceleratorState, PartialState

    AcceleratorState._reset_state()
    PartialState._reset_state()
