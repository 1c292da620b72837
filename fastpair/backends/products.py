"""Products that PyTorch computes for the GPU kernels, summed in float32. For float32 they follow
``torch.backends.cuda.matmul``: TensorFloat-32 where users chose it."""

from __future__ import annotations

import torch
from torch import Tensor


class Factor:
    """A matrix of embeddings as the right factor of products with slopes, which are summed in float32.

    Slopes may be as small as 1/n^2, which float16 cannot hold. For float16 both factors are split into two bfloat16
    parts: the slopes' 16 leading bits and all 11 of the embeddings'. ``fine``: slopes of bfloat16 are split as well,
    for sums that cancel, as those of distances do."""

    def __init__(self, x: Tensor, fine: bool = False):
        self.parts = [x]
        if x.dtype == torch.float16:
            high = x.bfloat16()
            self.parts = [high, (x.float() - high.float()).bfloat16()]
        self.slope_parts = 2 if x.dtype == torch.float16 or (fine and x.dtype == torch.bfloat16) else 1

    @property
    def dtype(self) -> torch.dtype:
        return self.parts[0].dtype

    def products(self, slopes: list[Tensor], transposed: bool = False) -> Tensor:
        """slopes @ x, or slopes.T @ x, with the slopes given in ``slope_parts`` parts."""
        rows = slopes[0].shape[1 if transposed else 0]
        out = slopes[0].new_empty(rows, self.parts[0].shape[1], dtype=torch.float32)
        product(slopes[0].T if transposed else slopes[0], self.parts[0], out)
        self._add_low_parts(out, slopes, slice(None), transposed)
        return out

    def add_products(self, out: Tensor, slopes: list[Tensor], begin: int, end: int, transposed: bool = False) -> None:
        """out += slopes @ x[begin:end]"""
        rows = slice(begin, end)
        add_product(out, slopes[0].T if transposed else slopes[0], self.parts[0][rows])
        self._add_low_parts(out, slopes, rows, transposed)

    def _add_low_parts(self, out: Tensor, slopes: list[Tensor], rows: slice, transposed: bool) -> None:
        # The product of two low parts is below the digits that are kept.
        pairs = [(0, part) for part in self.parts[1:]] + [(i, self.parts[0]) for i in range(1, len(slopes))]
        for i, part in pairs:
            add_product(out, slopes[i].T if transposed else slopes[i], part[rows])


def add_product(out: Tensor, a: Tensor, b: Tensor) -> None:
    """out += a @ b, with out in float32."""
    if a.dtype == torch.float32:
        out.addmm_(a, b)
    elif a.is_cuda:
        torch.addmm(out, a, b, out_dtype=torch.float32, out=out)
    else:
        out.addmm_(a.float(), b.float())


def product(a: Tensor, b: Tensor, out: Tensor) -> Tensor:
    """a @ b in float32."""
    if a.dtype == torch.float32:
        return torch.mm(a, b, out=out)
    if a.is_cuda:
        return torch.mm(a, b, out_dtype=torch.float32, out=out)
    return torch.mm(a.float(), b.float(), out=out)
