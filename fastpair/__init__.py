"""Fused kernels for metric-learning losses: value and gradients in one pass, without the matrix of all pairs."""

from typing import TYPE_CHECKING

from fastpair import bounds, cached, distance, distributed, functional, losses, retrieval
from fastpair.backends import use_backend
from fastpair.diagnostics import show_config

if TYPE_CHECKING:
    from fastpair.patching import patch, unpatch

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "bounds",
    "cached",
    "distance",
    "distributed",
    "functional",
    "losses",
    "patch",
    "retrieval",
    "show_config",
    "unpatch",
    "use_backend",
]

if not TYPE_CHECKING:  # which would take any name for an attribute

    def __getattr__(name: str) -> object:
        """``patch`` and ``unpatch``, which most programs that import the package do not need."""
        if name in ("patch", "unpatch"):
            from fastpair import patching

            return getattr(patching, name)
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
