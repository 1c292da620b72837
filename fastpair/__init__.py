"""Fused kernels for metric-learning losses: value and gradients in one pass, without the matrix of all pairs."""

from fastpair import bounds, cached, distance, distributed, functional, losses, retrieval
from fastpair.backends import use_backend
from fastpair.diagnostics import show_config

__version__ = "0.1.0"

__all__ = [
    "__version__",
    "bounds",
    "cached",
    "distance",
    "distributed",
    "functional",
    "losses",
    "retrieval",
    "show_config",
    "use_backend",
]
