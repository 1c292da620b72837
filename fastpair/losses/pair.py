"""The losses over the pairs that labels make, as functions and modules: each is made from its definition in
:mod:`fastpair.formulas.pair_losses`, documentation included. ``pair.pyi`` has their signatures."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from inspect import Parameter, Signature

from torch import Tensor

from fastpair import ops
from fastpair.formulas.pair_losses import DEFINITIONS, Choice, Definition
from fastpair.losses import options
from fastpair.losses.base import PairLoss
from fastpair.losses.mined import mined_pair_loss
from fastpair.metrics import METRICS
from fastpair.ops import checks

# The arguments that pair losses share, but for what {distance} and {mean} are.
ARGUMENTS = """\
embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
labels: integers (n,). May be None where ``indices_tuple`` is given.
ref_emb, ref_labels: references (m, d) and (m,), of the embeddings' dtype. Default: the anchors themselves.
{settings}
distance: the score of a pair, {distance}.
reduction: "mean": {mean}; "sum": the sum of the anchors' losses; "none": the losses, shape (n,); "totals": what the \
mean is made of, to be added up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / max(c, 1) + S_neg / \
max(c_neg, 1). The last two are of the negatives where these have a mean of their own, and 0 elsewhere; counts have \
no gradient.
indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative), integer \
tensors of row numbers as miners make them, to take in place of those that the labels make. A pair that is listed \
twice counts once, but twice in contrastive_loss and ntxent_loss. The loss is then plain PyTorch on the listed \
scores, whose memory grows with the list.
exclude_self: which pairs are no pairs because both sides are one sample. None: the pairs (i, i), when and only when \
``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors. False: none. A tensor \
(n,): the row of ``ref_emb`` that each anchor is, -1 for none.
backend: the kernels, see :func:`fastpair.use_backend`.
"""
ERRORS = """\
TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value.
"""
METRIC = "a metric of :func:`fastpair.functional.pairwise_distance`"
SYMBOLS = (
    "P are the references of the anchor's class, N the others; s is the closeness of a pair, a similarity or −d for a "
    "distance d."
)


def paragraph(text: str, indent: int = 0) -> str:
    return textwrap.fill(
        text,
        116,
        break_on_hyphens=False,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 4 * (indent > 0)),
    )


def documentation(title: str, formula: str, notes: str, arguments: str, source: str) -> str:
    listed = "\n".join(paragraph(line, 4) for line in arguments.splitlines() if line)
    explained = [SYMBOLS, notes] if notes else [SYMBOLS]
    parts = [
        f"{title}.",
        textwrap.indent(formula, " " * 8),
        *map(paragraph, explained),
        f"Args:\n{listed}",
        f"Raises:\n{paragraph(ERRORS.strip(), 4)}",
        paragraph(f"Source: {source}."),
    ]
    return "\n\n".join(parts)


def pair_loss(
    loss: str,
    params: list[float],
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None,
    ref_labels: Tensor | None,
    *,
    distance: str,
    reduction: str,
    indices_tuple: tuple[Tensor, ...] | None,
    exclude_self: bool | Tensor | None,
    backend: str | None,
    swap: bool = False,
) -> Tensor:
    """A formula, over the pairs that labels or lists make."""
    settings = {"distance": distance, "reduction": reduction, "backend": backend}
    if indices_tuple is not None:
        checks.unused_by_lists(embeddings, labels, ref_emb, ref_labels, exclude_self)
        return mined_pair_loss(loss, params, embeddings, ref_emb, indices_tuple, **settings, swap=swap)
    return ops.pair_loss(loss, params, embeddings, labels, ref_emb, ref_labels, exclude_self=exclude_self, **settings)


# ---- from a definition to its function and its module


def rules(of: Definition) -> dict[str, options.Rule]:
    by_name = {"positive": options.positive, "finite": options.finite, "margin": options.not_nan}
    out = {x.name: by_name[x.check] for x in of.settings}
    out["distance"] = options.similarity if of.similarities else options.distance
    if isinstance(of.formula, Choice):
        out[of.formula.name] = options.one_of_numbers(*of.formula.formulas)
    return {**out, "reduction": options.pair_reduction}


def check_margins(of: Definition, settings: dict, distance: str) -> None:
    for x in of.settings:
        if x.check == "margin" and settings[x.name] < 0 and not METRICS[distance].similarity:
            raise ValueError(f"{x.name} must not be negative for the distance {distance!r}, got {settings[x.name]}")


def setting_parameters(of: Definition) -> list[Parameter]:
    """In the order in which modules take them."""
    out = [setting(x.name, "float", x.default) for x in of.settings] + [setting("distance", "str", of.distance)]
    if isinstance(of.formula, Choice):
        out.append(setting(of.formula.name, "int", of.formula.default))
    return [*out, setting("reduction", "str", "mean")]


def setting(name: str, kind: str, default: object) -> Parameter:
    return Parameter(name, Parameter.KEYWORD_ONLY, default=default, annotation=kind)


def make_function(of: Definition) -> Callable[..., Tensor]:
    rule = rules(of)
    defaults = {p.name: p.default for p in setting_parameters(of)}
    choice = of.formula.name if isinstance(of.formula, Choice) else None

    def function(
        embeddings: Tensor,
        labels: Tensor | None,
        ref_emb: Tensor | None = None,
        ref_labels: Tensor | None = None,
        *,
        indices_tuple: tuple[Tensor, ...] | None = None,
        exclude_self: bool | Tensor | None = None,
        backend: str | None = None,
        **settings,
    ) -> Tensor:
        for name in settings:
            if name not in defaults:
                raise TypeError(f"{of.name}_loss() got an unexpected keyword argument {name!r}")
        settings = {**defaults, **settings}
        options.check(rule, **settings)
        distance, reduction = settings["distance"], settings["reduction"]
        check_margins(of, settings, distance)
        formula = of.choices[None if choice is None else settings[choice]]
        return pair_loss(
            formula.name,
            of.params(settings, METRICS[distance].similarity),
            embeddings,
            labels,
            ref_emb,
            ref_labels,
            distance=distance,
            reduction=reduction,
            indices_tuple=indices_tuple,
            exclude_self=exclude_self,
            backend=backend,
        )

    tensors = list(Signature.from_callable(function).parameters.values())
    parameters = [*tensors[:4], *setting_parameters(of), *tensors[4:7]]
    function.__signature__ = Signature(parameters, return_annotation="Tensor")
    function.__name__ = function.__qualname__ = f"{of.name}_loss"
    named = [f"{x.name}: {x.what}" for x in (*of.settings, *((of.formula,) if choice else ()))]
    metric = '"cosine" or "dot"' if of.similarities else METRIC
    arguments = ARGUMENTS.format(settings="\n".join(named), distance=metric, mean=of.mean)
    function.__doc__ = documentation(of.title, of.text, of.notes, arguments, of.source)
    return function


def make_module(of: Definition, function: Callable[..., Tensor]) -> type[PairLoss]:
    positional = [p.replace(kind=Parameter.POSITIONAL_OR_KEYWORD) for p in setting_parameters(of)]
    signature, rule = Signature(positional), rules(of)

    def __init__(self, *args, **kwargs):
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError as error:
            raise TypeError(f"{of.module}() {error}") from None
        bound.apply_defaults()
        options.check(rule, **bound.arguments)
        check_margins(of, bound.arguments, bound.arguments["distance"])
        PairLoss.__init__(self, function, **bound.arguments)

    listed = "\n".join(f"        {x.name}: {x.what}" for x in of.settings)
    return type(
        of.module,
        (PairLoss,),
        {
            "__init__": __init__,
            "__signature__": signature,
            "__module__": __name__,
            "__doc__": f"{of.title}.\n\n        {of.text}\n\n    Args:\n{listed}\n\n    Called as "
            f":class:`PairLoss` is; see :func:`fastpair.functional.{of.name}_loss`.",
        },
    )


FUNCTIONS = {f"{name}_loss": make_function(definition) for name, definition in DEFINITIONS.items()}
MODULES = {of.module: make_module(of, FUNCTIONS[f"{name}_loss"]) for name, of in DEFINITIONS.items()}
globals().update(FUNCTIONS | MODULES)
__all__ = [*FUNCTIONS, *MODULES]
