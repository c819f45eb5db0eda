"""A make-believe accelerator: tensors that live elsewhere, by the rules of MPS, computed by the CPU's kernels.

What a real one refuses is refused here: float64 (MPS has none), tensors of several devices in one operation, a
generator of another device, NumPy's look into its memory. A tensor without axes may come from the CPU, indices may, and
copying is what moves. Kernels of MPS or CUDA, their rounding, and autocast are not shown.

Its tensors say that they are on "meta", which autograd serves without hardware; real meta tensors are not made.
"""

import contextlib

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
CPU = torch.device("cpu")
MOVES = (torch.ops.aten._to_copy.default, torch.ops.aten.copy_.default)
INDEXED = (
    torch.ops.aten.index.Tensor,
    torch.ops.aten.index_put.default,
    torch.ops.aten.index_put_.default,
    torch.ops.aten._index_put_impl_.default,
)
COUNTED = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.equal.default,
    torch.ops.aten.masked_select.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten._unique2.default,
)


class OnDevice(torch.Tensor):
    """A tensor of the accelerator; `inner` is the one that the kernels see."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, inner):
        if inner.dtype == torch.float64:
            raise TypeError("Cannot convert a tensor to float64: the device does not support it. Use float32")
        made = torch.Tensor._make_wrapper_subclass(
            cls, inner.shape, strides=inner.stride(), storage_offset=inner.storage_offset(), dtype=inner.dtype,
            device=DEVICE,
        )  # fmt: skip
        made.inner = inner
        return made

    def __repr__(self):
        return f"OnDevice({self.inner!r})"

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        return computed(operation, args, kwargs or {})


class Accelerator(TorchDispatchMode):
    """While it is entered, the device is there."""

    def __init__(self):
        super().__init__()
        self.operations = 0  # that were done on the device
        self.waits = 0  # for the device, before the program could go on

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.waits += _waits(operation, args, kwargs or {})
        result = computed(operation, args, kwargs or {})
        self.operations += any(isinstance(leaf, OnDevice) for leaf in tree_leaves(result))
        return result


class _FromNumbers(TorchFunctionMode):
    """What makes tensors of numbers below the sight of a `TorchDispatchMode`, which would be real meta tensors."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        on_device = bool(args) and isinstance(args[0], OnDevice)
        if on_device and function is torch.Tensor.tolist:
            return args[0].cpu().tolist()
        if on_device and function is torch.quantile:  # computes in float64 unless a device is called MPS
            return function(*tree_map(_inner, args), **kwargs).to(DEVICE)
        if on_device and function in (torch.Tensor.__getitem__, torch.Tensor.__setitem__):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            index = tuple(torch.tensor(part).to(DEVICE) if isinstance(part, list) else part for part in index)
            return function(args[0], index, *args[2:])
        if on_device and function is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=kwargs.get("dtype", args[0].dtype)).to(DEVICE)
        device = torch.device(kwargs.get("device") or CPU)
        if function in (torch.tensor, torch.as_tensor) and device.type == DEVICE.type and not on_device:
            return function(*args, **{**kwargs, "device": CPU}).to(DEVICE)
        return function(*args, **kwargs)


def computed(operation, args, kwargs):
    """The result of an operation, on the device if its tensors or its argument `device` are."""
    own = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, OnDevice)]
    device = kwargs.get("device")
    on_device = bool(own) if device is None else torch.device(device).type == DEVICE.type
    if on_device:
        _check(operation, args, kwargs, made_here=not own)
    if device is not None:
        kwargs = {**kwargs, "device": CPU}
    result = operation(*tree_map(_inner, args), **tree_map(_inner, kwargs))
    if operation in MOVES[1:]:
        return args[0]
    known = {id(tensor.inner): tensor for tensor in own}  # what was changed in place stays the same tensor
    return tree_map(lambda leaf: _wrapped(leaf, known) if on_device else leaf, result)


def _waits(operation, args, kwargs):
    """Does the program need the numbers, or how many there are: a value, a copy to the CPU, places of a mask."""
    if not any(isinstance(leaf, OnDevice) for leaf in tree_leaves((args, kwargs))):
        return False
    if operation in INDEXED:
        return any(part is not None and part.dtype == torch.bool for part in args[1])
    if operation is MOVES[0]:
        return kwargs.get("device") is not None and torch.device(kwargs["device"]).type == "cpu"
    return operation in COUNTED


def _wrapped(leaf, known):
    if not isinstance(leaf, torch.Tensor):
        return leaf
    return known[id(leaf)] if id(leaf) in known else OnDevice(leaf)


def _inner(leaf):
    return leaf.inner if isinstance(leaf, OnDevice) else leaf


def _check(operation, args, kwargs, *, made_here):
    if kwargs.get("generator") is not None:
        raise RuntimeError(f"{operation}: a generator of the CPU for a tensor of the device")
    if operation in MOVES or made_here:
        return
    looked_at = args[:1] if operation in INDEXED else (args, kwargs)
    for leaf in tree_leaves(looked_at):
        if isinstance(leaf, torch.Tensor) and not isinstance(leaf, OnDevice) and leaf.ndim:
            raise RuntimeError(f"{operation}: tensors of the CPU and of the device, {tuple(leaf.shape)}")


@contextlib.contextmanager
def accelerator():
    """The device is there."""
    with _FromNumbers(), Accelerator() as entered:
        yield entered
