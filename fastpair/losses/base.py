"""The base classes of the loss modules."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from torch import Tensor, nn

from fastpair.losses import options


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


class RegularizedLoss(FunctionLoss):
    """The base of the losses that take the arguments of pytorch-metric-learning besides their settings, by name.

    Args:
        reducer: a reducer of that library, in place of ``reduction``: SumReducer, or the one that is the loss's default
            there, which is "mean". Any other is a ValueError.
        embedding_regularizer: a function of the embeddings (n, d), such as a regularizer of that library, that returns
            a tensor of one element. ``embedding_reg_weight`` times it is added to the loss, whose reduction must be
            "mean" or "sum".
        embedding_reg_weight: a number.
    """

    def __init__(
        self,
        function: Callable,
        *,
        embedding_regularizer: Callable[[Tensor], Tensor] | None = None,
        embedding_reg_weight: float = 1.0,
        **settings,
    ):
        super().__init__(function, **settings)
        self.set_regularizer("embedding", embedding_regularizer, embedding_reg_weight)

    def set_regularizer(self, of: str, regularizer: Callable[[Tensor], Tensor] | None, weight: float) -> None:
        if regularizer is not None and not callable(regularizer):
            raise TypeError(f"{of}_regularizer must be a function of a tensor, got {type(regularizer).__name__}")
        options.finite(f"{of}_reg_weight", weight)
        setattr(self, f"{of}_regularizer", regularizer)
        setattr(self, f"{of}_reg_weight", weight)

    def regularized(self, loss: Tensor, of: str, x: Tensor) -> Tensor:
        """The loss with the term of the regularizer of ``of``, which is "embedding" or "weight", x being those."""
        name = f"{of}_regularizer"
        regularizer = getattr(self, name)
        if loss.ndim:
            raise ValueError(f"{name} must be None where reduction is not 'mean' or 'sum', got {self.reduction!r}")
        term = regularizer(x)
        if not isinstance(term, Tensor) or term.numel() != 1:
            got = f"a tensor {tuple(term.shape)}" if isinstance(term, Tensor) else type(term).__name__
            raise TypeError(f"{name} must return a tensor of one element, got {got}")
        return loss + getattr(self, f"{of}_reg_weight") * term.reshape(()).to(loss.dtype)


class PairLoss(RegularizedLoss):
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
        if of_rows and (unknown := of_rows.keys() - self.of_rows):
            raise TypeError(f"{type(self).__name__} has no argument {min(unknown)!r}")
        loss = self._function(
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
        return loss if self.embedding_regularizer is None else self.regularized(loss, "embedding", embeddings)
