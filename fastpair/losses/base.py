"""The base classes of the loss modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn


class FunctionLoss(nn.Module):
    """A loss that calls a function of :mod:`fastpair.functional` with its settings, which are attributes."""

    def __init__(self, function: Callable, **settings):
        super().__init__()
        self._function = function
        self._settings = tuple(settings)
        for name, value in settings.items():
            setattr(self, name, value)

    def settings(self) -> dict:
        return {name: getattr(self, name) for name in self._settings}

    def extra_repr(self) -> str:
        shown = {k: x.item() if isinstance(x, Tensor) and x.is_cpu else x for k, x in self.settings().items()}
        return ", ".join(f"{name}={value!r}" for name, value in shown.items())


class PairLoss(FunctionLoss):
    """The base of the pair losses, called ``loss(embeddings, labels, indices_tuple=None, ref_emb=None,
    ref_labels=None, exclude_self=None, *, pairs=None, ids=None, ref_ids=None, weights=None, ref_bias=None,
    ignore_above=None)``, with the arguments of the functions in :mod:`fastpair.functional`."""

    # The arguments for numbers of rows that the formula reads.
    of_rows: tuple[str, ...] = ()

    def forward(
        self,
        embeddings: Tensor,
        labels: Tensor | None = None,
        indices_tuple: tuple[Tensor, ...] | None = None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        exclude_self: bool | Tensor | None = None,
        *,
        pairs: Tensor | None = None,
        ids: Tensor | None = None,
        ref_ids: Tensor | None = None,
        weights: Tensor | None = None,
        ref_bias: Tensor | None = None,
        ignore_above: float | None = None,
        **of_rows: Mapping[str, Tensor] | None,
    ) -> Tensor:
        if unknown := of_rows.keys() - self.of_rows:
            raise TypeError(f"{type(self).__name__} has no argument {min(unknown)!r}")
        return self._function(
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            indices_tuple=indices_tuple,
            exclude_self=exclude_self,
            pairs=pairs,
            ids=ids,
            ref_ids=ref_ids,
            weights=weights,
            ref_bias=ref_bias,
            ignore_above=ignore_above,
            **of_rows,
            **self.settings(),
        )
