"""Implementations of the operators: dense PyTorch (``reference``) and compiled kernels."""
