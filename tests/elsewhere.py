"""A device that is not there: its tensors are held on the CPU, and know that they must not meet the CPU's.

Whatever a real one would refuse, or would wait for, is an error here, and every number is computed. The device's name
is "meta", the only one that any build of torch lets a tensor bear.
"""

import weakref

import torch
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only

WAITS = {"_local_scalar_dense", "nonzero", "equal", "is_nonzero", "masked_select", "unique_dim", "_unique2"}
MOVES = {"_to_copy", "copy_"}


class Elsewhere(torch.Tensor):
    """A tensor on the device; ``held`` has its numbers."""

    @staticmethod
    def __new__(cls, held):
        kind = {"strides": held.stride(), "storage_offset": held.storage_offset(), "dtype": held.dtype}
        made = torch.Tensor._make_wrapper_subclass(cls, held.shape, device="meta", **kind)
        made.held = held
        return made

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        raise AssertionError(f"{func} on a device that is gone")


class Device(TorchDispatchMode):
    """The device, inside ``with``.

    ``peak`` counts bytes that it held at once, and ``calls`` its operations by name.
    """

    def __init__(self, *, float64):
        super().__init__()
        self.float64, self.calls = float64, []
        self.peak, self._live, self._seen = 0, 0, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs, name = dict(kwargs or {}), func.overloadpacket.__name__
        given = [t for t in tree_leaves((args, kwargs)) if isinstance(t, torch.Tensor)]
        there = any(isinstance(t, Elsewhere) for t in given)
        target = torch.device(kwargs.pop("device", None) or ("meta" if there else "cpu")).type
        if there and name not in MOVES:
            assert all(isinstance(t, Elsewhere) or t.ndim == 0 for t in given), f"{func} mixes devices"
            assert name not in WAITS, f"{func} waits for the device"
        here, options = tree_map_only(Elsewhere, lambda t: t.held, (args, kwargs))
        out = func(*here, **options)
        if target == "cpu":
            return out
        self.calls.append(name)
        return tree_map_only(torch.Tensor, self._lift, out)

    def _lift(self, t):
        assert self.float64 or t.dtype not in (torch.float64, torch.complex128), "this device has no float64"
        storage = t.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen.add(storage._cdata)
            self._live += storage.nbytes()
            self.peak = max(self.peak, self._live)
            weakref.finalize(storage, self._freed, storage._cdata, storage.nbytes())
        return Elsewhere(t)

    def _freed(self, which, size):
        self._seen.discard(which)
        self._live -= size


class Written(TorchFunctionMode):
    """``torch.tensor(..., device=...)`` as a tensor of the CPU that is moved: a mode below sees no numbers of it."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        options = dict(kwargs or {})
        device = options.pop("device", None) if func is torch.tensor else None
        made = func(*args, **options)
        return made if device is None else made.to(device)
