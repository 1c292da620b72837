"""What keeps a step from being captured in a CUDA graph, and the host from running ahead of the device."""

from __future__ import annotations

from torch.utils._python_dispatch import TorchDispatchMode

READS = ("_local_scalar_dense", "nonzero", "unique", "equal", "is_nonzero", "masked_select", "bincount", "histc")


class no_host_reads(TorchDispatchMode):
    """An operator of PyTorch whose result, or its shape, the host has to wait for is an error in the block."""

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        name = function.overloadpacket.__name__
        if name.startswith(READS):
            raise AssertionError(f"{name} waits for the device")
        return function(*arguments, **(options or {}))
