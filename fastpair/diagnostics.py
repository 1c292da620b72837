"""A report of what was built, found and chosen."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform

import torch

from fastpair import backends

__all__ = ["show_config"]


def _triton_version() -> str:
    try:
        return importlib.metadata.version("triton")
    except importlib.metadata.PackageNotFoundError:  # nightly builds of PyTorch bring it under another name
        return "not installed" if importlib.util.find_spec("triton") is None else "installed"


def show_config() -> None:
    """Print what was built, found and chosen, and why the rest was not: the text to put in a bug report."""
    from fastpair import __version__

    print(f"fastpair {__version__}")
    print(f"  python     {platform.python_version()}, {platform.system()} {platform.machine()}")
    cuda = f"CUDA {torch.version.cuda}, {torch.cuda.device_count()} devices" if torch.version.cuda else "without CUDA"
    print(f"  torch      {torch.__version__}, {torch.get_num_threads()} threads, {cuda}")
    print(f"  triton     {_triton_version()}{', interpreted' if backends.INTERPRETED else ''}")
    if backends.cpu_extension is None:
        print("  extension  none")
    else:
        info = backends.cpu_extension.build_info()
        print(f"  extension  {backends.cpu_extension.__file__}")
        print(f"    built against torch {info['torch_version']}, stable ABI {info['torch_target_version']}")
        print(f"    built by {info['compiler']}, C++ {info['cplusplus']}")
        print(f"    SIMD level {info['simd_level']}, BLAS on tiles: {'yes' if info['has_blas'] else 'no'}")
    if backends.cuda_extension is not None:
        print(f"  extension  {backends.cuda_extension.__file__}")
        print(f"    built by {backends.cuda_extension.compiler}, for {backends.cuda_extension.architectures}")
    print("  backends")
    for name, problem in backends.available_backends().items():
        print(f"    {name:<10} {'available' if problem is None else problem}")
    print("  chosen, unless a backend is asked for")
    requested = backends.requested_backend()
    for device_type in ("cpu", "cuda"):
        if requested is not None:
            chosen = f"{requested} (use_backend)"
        elif device_type in backends.FUSED:
            fused = backends.FUSED[device_type]
            chosen = fused[0] + "".join(f", {name} for large batches" for name in fused[1:])
        else:
            chosen = f"reference: {backends.why_reference(device_type)}"
        print(f"    {device_type + ' tensors':<13} {chosen}")
