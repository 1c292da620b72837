"""The choice of the backend that runs a call.

A backend is one implementation of the operators: a module with a function for each, which takes a call of ``call``.
Each serves some device types; ``reference`` (dense PyTorch, differentiated by autograd) serves all of them. A call
without a request runs on the first available backend that serves the device of its tensors, and as a last resort on
the reference path, with one warning per device type.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.util
import os
import sys
import warnings
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from types import ModuleType

# The extension links against the libraries that this import loads: torch has to come first.
import torch


def _extension(name: str, advice: str) -> tuple[ModuleType | None, str | None]:
    """A compiled part of the package, or why there is none."""
    try:
        return importlib.import_module(f"fastpair.{name}"), None
    except ImportError as error:
        return None, f"not built or not loadable ({type(error).__name__}: {error}); {advice}"


cpu_extension, _cpu_problem = _extension(
    "_C",
    "to get the fused CPU kernels, reinstall fastpair where a C++ compiler works, without FASTPAIR_BUILD_EXT=0, by "
    "pip's --force-reinstall --no-cache-dir",
)
cuda_extension: ModuleType | None = None
_cuda_problem: str | None = f"of no use to this PyTorch, which is built without CUDA: {torch.__version__}"
if torch.version.cuda is not None:
    cuda_extension, _cuda_problem = _extension(
        "_C_cuda",
        "to get the kernels for small batches, reinstall fastpair where nvcc works, without FASTPAIR_BUILD_CUDA=0, by "
        "pip's --force-reinstall --no-cache-dir --no-build-isolation",
    )

# Triton's interpreter runs kernels on CPU tensors, to test them without a GPU.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if importlib.util.find_spec("triton") is None:
    _triton_problem: str | None = "not installed; to get the fused GPU kernels, pip install triton"
elif torch.version.cuda is None and not INTERPRETED:
    _triton_problem = f"of no use to this PyTorch, which is built without CUDA: {torch.__version__}"
else:
    _triton_problem = None


@dataclass(frozen=True)
class _Backend:
    """``module``: its name in this package. ``device_types``: None for a backend that serves every device. ``problem``:
    why it cannot be used, None if it can."""

    module: str
    device_types: tuple[str, ...] | None
    problem: str | None
    takes_float64: bool = True
    for_small_batches: bool = False

    def serves(self, device_type: str) -> bool:
        return self.device_types is None or device_type in self.device_types

    def takes(self, dtype: torch.dtype | None) -> bool:
        return dtype != torch.float64 or self.takes_float64


# In order of preference.
_BACKENDS: dict[str, _Backend] = {
    "cpu": _Backend("cpu", ("cpu",), problem=_cpu_problem),
    "cuda": _Backend("cuda", ("cuda",), problem=_cuda_problem, takes_float64=False, for_small_batches=True),
    "triton": _Backend(
        "triton", ("cuda", "cpu") if INTERPRETED else ("cuda",), problem=_triton_problem, takes_float64=False
    ),
    "reference": _Backend("dense", None, problem=None),
}


def backend_module(name: str) -> ModuleType:
    """The module of a backend, imported on first use: a process without CUDA tensors does not need Triton."""
    return importlib.import_module(f"fastpair.backends.{_BACKENDS[name].module}")


def _constant_when_traced(function):
    """Makes a function run once, at trace time, rather than break the graph: ``torch.compiler.assume_constant_result``
    without its import of the compiler, which takes a second or more."""
    function._dynamo_marked_constant = True
    return function


# The usable backends by device type, without the reference path.
FUSED: dict[str, list[str]] = {}
for _name, _backend in _BACKENDS.items():
    if _backend.problem is None:
        for _device_type in _backend.device_types or ():
            FUSED.setdefault(_device_type, []).append(_name)

_request: ContextVar[str | None] = ContextVar("fastpair_backend", default=None)
# The same request for code traced by torch.compile, which cannot read a ContextVar in every supported release but
# does guard on a module global: entering use_backend around a compiled function recompiles it.
_request_when_traced: str | None = None


def requested_backend() -> str | None:
    """The backend that an enclosing ``use_backend`` asks for, if any."""
    return _request.get()


_warned_device_types: set[str] = set()


def _usable(name: str) -> _Backend:
    backend = _BACKENDS.get(name) if isinstance(name, str) else None  # an unhashable object is no name either
    if backend is None:
        raise ValueError(f"backend must be one of {', '.join(map(repr, _BACKENDS))}, got {name!r}")
    if backend.problem is not None:
        raise RuntimeError(f"backend {name!r} is not available here: {backend.problem}")
    return backend


@contextlib.contextmanager
def use_backend(name: str) -> Iterator[None]:
    """Run every fastpair call in a ``with`` block (or a decorated function) on one backend.

    Blocks nest, and the previous choice returns when a block ends, even by an exception. The choice is local to the
    thread and to the asyncio task; functions compiled by ``torch.compile`` see the latest choice of any thread. A
    ``backend=`` argument of a call takes precedence.

    Args:
        name: ``"reference"`` (dense PyTorch, any device), ``"cpu"`` (the fused C++ kernels, CPU tensors), ``"cuda"``
            (pair losses in one launch, CUDA tensors) or ``"triton"`` (the fused Triton kernels, CUDA tensors).

    Raises:
        ValueError: if no backend has this name.
        RuntimeError: if the backend cannot be used here; the message says why.
    """
    global _request_when_traced
    _usable(name)
    outer = _request_when_traced
    token = None if torch.compiler.is_compiling() else _request.set(name)
    _request_when_traced = name
    try:
        yield
    finally:
        if token is None:
            _request_when_traced = outer
        else:
            _request.reset(token)
            # Not the value seen on entry: another thread's block may have begun before this one and ended inside it.
            _request_when_traced = _request.get()


def choose_backend(
    device_type: str,
    requested: str | None = None,
    dtype: torch.dtype | None = None,
    *,
    lacking: tuple[str, ...] = (),
    large: bool = False,
) -> str:
    """Name the backend for a call on tensors of ``device_type``.

    Args:
        device_type: ``tensor.device.type`` of the arguments, e.g. ``"cpu"``.
        requested: the ``backend=`` argument of the call. None stands for the enclosing :func:`use_backend`, or the
            fastest available backend outside one.
        dtype: that of the arguments. Float64 CUDA tensors, which no GPU kernel takes, go to the reference path.
        lacking: backends that have no kernel for this call.
        large: whether backends for small batches are used only where there is no other.

    Returns:
        A key of the backend table, ``"reference"`` with one warning per device type if nothing faster serves it.

    Raises:
        ValueError: if ``requested`` names no backend.
        RuntimeError: if the requested backend cannot be used here, does not serve ``device_type`` or lacks the kernel.
    """
    if requested is None:
        requested = _request_when_traced if torch.compiler.is_compiling() else _request.get()
    too_old = device_type == "cuda" and requested in (None, "cuda") and _some_device_is_too_old()
    if requested is None:
        lacking = (*lacking, "cuda") if too_old else lacking
        for_small = None
        for name in FUSED.get(device_type, ()):
            backend = _BACKENDS[name]
            if name in lacking or not backend.takes(dtype):
                continue
            if not (large and backend.for_small_batches):
                return name
            for_small = for_small or name
        if for_small is None:
            _warn_reference(device_type)
        return for_small or "reference"
    if not _usable(requested).serves(device_type):
        served = ", ".join(_BACKENDS[requested].device_types or ())
        raise RuntimeError(f"backend {requested!r} runs on {served} tensors, but got tensors on {device_type!r}")
    if not _BACKENDS[requested].takes(dtype):
        raise RuntimeError(f"backend {requested!r} takes float32, bfloat16 and float16 tensors, but got {dtype}")
    if too_old:
        raise RuntimeError("backend 'cuda' needs GPUs of compute capability 8.0 or newer, and one here is older")
    if requested in lacking:
        others = ", ".join(repr(n) for n in _BACKENDS if n not in lacking and _BACKENDS[n].serves(device_type))
        raise RuntimeError(f"backend {requested!r} has no kernel for this loss; {others} can compute it")
    return requested


# The CUDA kernels need asynchronous copies, and products in tf32 on the tensor cores.
_OLDEST_CAPABILITY = (8, 0)
_has_older_devices: bool | None = None


@_constant_when_traced
def _some_device_is_too_old() -> bool:
    """Whether one of this machine's GPUs cannot run the CUDA kernels. Determined at the first call with a CUDA tensor:
    an import must not initialise CUDA."""
    global _has_older_devices
    if _has_older_devices is None:
        capabilities = map(torch.cuda.get_device_capability, range(torch.cuda.device_count()))
        _has_older_devices = any(capability < _OLDEST_CAPABILITY for capability in capabilities)
    return _has_older_devices


@_constant_when_traced
def _warn_reference(device_type: str) -> None:
    if device_type in _warned_device_types:
        return
    _warned_device_types.add(device_type)
    warnings.warn(
        f"fastpair runs {device_type} tensors on the dense reference path, slowly and with the whole score matrix in "
        f'memory: {why_reference(device_type)}. Ask for backend="reference" to choose it without this warning.',
        RuntimeWarning,
        stacklevel=_depth_of_the_caller(),
    )


def _depth_of_the_caller() -> int:
    """The ``stacklevel``, for a warning of the calling function, of the first frame outside fastpair and torch's
    modules."""
    inner = (
        os.path.dirname(os.path.dirname(__file__)) + os.sep,
        os.path.join(os.path.dirname(torch.__file__), "nn", "modules", ""),
    )
    depth, frame = 1, sys._getframe(1)
    while frame.f_back is not None and frame.f_code.co_filename.startswith(inner):
        depth, frame = depth + 1, frame.f_back
    return depth


def why_reference(device_type: str) -> str:
    reasons = [
        f"backend {name!r} is {backend.problem}"
        for name, backend in _BACKENDS.items()
        if backend.problem is not None and backend.serves(device_type)
    ]
    reasons += [f"backend {name!r} takes no float64 tensors" for name in FUSED.get(device_type, ())]
    return "; ".join(reasons) or f"no backend has kernels for {device_type} tensors"


def available_backends() -> dict[str, str | None]:
    """Map each backend's name to None if it can be used here, and to the reason otherwise."""
    return {name: backend.problem for name, backend in _BACKENDS.items()}
