"""A device that is none: its tensors compute on the CPU, but never together with those of the CPU.

What an Apple GPU refuses is refused: mixed devices and float64. It bears the name "meta", since
torch knows this device on every machine and its autograd needs no driver for it.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

DEVICE = torch.device("meta")
ATEN = torch.ops.aten
COPIES = {ATEN._to_copy.default, ATEN.copy_.default}
# Every device takes indices of the CPU.
PUTS = {ATEN.index_put.default, ATEN.index_put_.default, ATEN._index_put_impl_.default}
INDEXING = PUTS | {ATEN.index.Tensor}


class OnDevice(torch.Tensor):
    """A tensor of the device around one of the CPU."""

    def __new__(cls, data: torch.Tensor) -> "OnDevice":
        made = torch.Tensor._make_wrapper_subclass(
            cls, data.shape, strides=data.stride(), storage_offset=data.storage_offset(),
            dtype=data.dtype, device=DEVICE,
        )  # fmt: skip
        made.inner = data
        return made

    def __repr__(self) -> str:
        return f"OnDevice({self.inner})"

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})


class FakeDevice(TorchDispatchMode):
    """While it is entered, tensors can be made on ``DEVICE``."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return call(function, args, kwargs or {})


class Constants(TorchFunctionMode):
    """Beside ``FakeDevice``: numbers of Python and NumPy reach the device through the CPU."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and "device" in kwargs:
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function is torch.Tensor.new_tensor:
            return torch.tensor(args[1], dtype=args[0].dtype).to(args[0].device)
        return function(*args, **kwargs)


def call(function, args: tuple, kwargs: dict) -> object:
    """Compute on the CPU; refuse what a device refuses."""
    given = tree_leaves((args, kwargs))
    ours = [x for x in given if isinstance(x, OnDevice)]
    theirs = [x for x in given if isinstance(x, torch.Tensor) and not isinstance(x, OnDevice)]
    if ours and function not in COPIES | INDEXING and any(x.dim() for x in theirs):
        raise RuntimeError(f"{function}: tensors of the device and of the CPU")
    if function in PUTS and isinstance(args[0], OnDevice) and theirs:
        values = args[2]
        if values.dim() and not isinstance(values, OnDevice):
            raise RuntimeError(f"{function}: values of the CPU for a tensor of the device")

    def inner(x: object) -> object:
        if isinstance(x, torch.device):
            return torch.device("cpu")
        return x.inner if isinstance(x, OnDevice) else x

    found = function(*tree_map(inner, args), **tree_map(inner, kwargs))
    target = kwargs.get("device")
    if not (ours if target is None else torch.device(target) == DEVICE):
        return found
    known = {id(x.inner): x for x in ours}  # an operation in place returns what it was given

    def outer(x: object) -> object:
        if not isinstance(x, torch.Tensor):
            return x
        if x.dtype == torch.float64:
            raise TypeError(f"{function}: this device has no float64")
        return known[id(x)] if id(x) in known else OnDevice(x)

    return tree_map(outer, found)


class Generator(torch.Generator):
    """Draws for a device, the fake one too."""

    def __new__(cls, device: str | torch.device = "cpu") -> "Generator":
        made = super().__new__(cls)
        made.place = torch.device(device)
        return made

    @property
    def device(self) -> torch.device:
        return self.place


class FakeAccelerator:
    """What the notebooks use of an Accelerator, on the fake device."""

    device, num_processes, process_index, is_main_process = DEVICE, 1, 0, True
    optimizer_step_was_skipped, is_local_main_process = False, True

    def prepare(self, *parts: object) -> object:
        for part in parts:
            if isinstance(part, torch.nn.Module):
                part.to(DEVICE)
        return parts if len(parts) > 1 else parts[0]

    def register_for_checkpointing(self, *_: object) -> None: ...

    def autocast(self) -> AbstractContextManager:
        return nullcontext()

    def backward(self, loss: torch.Tensor) -> None:
        loss.backward()

    def clip_grad_norm_(self, parameters: object, norm: float) -> None:
        torch.nn.utils.clip_grad_norm_(parameters, norm)

    def reduce(self, value: torch.Tensor, reduction: str) -> torch.Tensor:
        return value  # of one process

    def unwrap_model(self, model: torch.nn.Module) -> torch.nn.Module:
        return model
