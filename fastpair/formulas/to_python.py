"""Prints the losses as functions and modules, documentation included."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable

from .pair_losses import Definition

HEADER = '''\
"""The losses over the pairs that labels make, as {what}. Made by ``python -m fastpair.formulas`` from
fastpair/formulas/pair_losses.py: not to be edited."""

from __future__ import annotations

{imports}

__all__ = [
{names}]


'''
FUNCTION_IMPORTS = """\
from torch import Tensor

from fastpair.losses.pair import formula_of, pair_loss"""
FUNCTION = '''\
def {name}_loss(
    embeddings: Tensor,
    labels: Tensor | None,
    ref_emb: Tensor | None = None,
    ref_labels: Tensor | None = None,
    *,
{typed}    indices_tuple: tuple[Tensor, ...] | None = None,
    exclude_self: bool | Tensor | None = None,
    pairs: Tensor | None = None,
    ids: Tensor | None = None,
    ref_ids: Tensor | None = None,
    weights: Tensor | None = None,
    backend: str | None = None,
) -> Tensor:
    """{documentation}
    """
    settings = {{{given}}}
    loss, params = formula_of("{name}", settings, distance, reduction)
    return pair_loss(
        loss,
        params,
        embeddings,
        labels,
        ref_emb,
        ref_labels,
        distance=distance,
        reduction=reduction,
        indices_tuple=indices_tuple,
        exclude_self=exclude_self,
        pairs=pairs,
        ids=ids,
        ref_ids=ref_ids,
        weights=weights,
        backend=backend,
    )
'''
MODULE = '''\
class {module}(PairLoss):
    """{title}.

        {text}

    See :func:`fastpair.functional.{name}_loss` for the settings.
    """

    def __init__(
        self,
{typed_further}    ):
        settings = {{{given}}}
        check_settings("{name}", settings, distance, reduction)
        super().__init__(
            generated_functions.{name}_loss,
{all}        )
'''
MODULE_IMPORTS = """\
from fastpair.losses import generated_functions
from fastpair.losses.base import PairLoss
from fastpair.losses.pair import check_settings"""
# The arguments that pair losses share; the names in braces differ from loss to loss.
ARGUMENTS = """\
embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label, or have one in common. May be None where ``indices_tuple`` is given.
ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors themselves.
{settings}
distance: the score of a pair, {distance}.
reduction: "mean": {mean}; "sum": the sum of the anchors' losses; "none": the losses, shape (n,); "totals": what the \
mean is made of, which adds up over parts of a batch: (S, c, S_neg, c_neg) with mean = S / c + S_neg / c_neg, a part \
being 0 where its c is. The last two belong to the negatives where these have a mean of their own, else they are 0; \
counts have no gradient.
indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative), integer \
tensors of row numbers as miners make them, used in place of those that the labels make. {repeats} The loss \
is then plain PyTorch on the listed scores, whose memory grows with the list.
exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and only when \
``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors. False: none. A tensor \
(n,): the row of ``ref_emb`` that each anchor is, -1 for none.
pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have, are no pair. ``ref_ids`` goes with ``ref_emb``.
weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the mean is a \
weighted one. Constants of the gradient.
backend: the kernels, see :func:`fastpair.use_backend`.
"""
REPEATS = "A pair that is listed twice counts once, but twice in contrastive_loss and ntxent_loss."
METRIC = "a metric of :func:`fastpair.functional.pairwise_distance`"
SIMILARITY = '"cosine" or "dot"'
SYMBOLS = (
    "P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity or −d for a "
    "distance d."
)
ERRORS = "TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value."


def paragraph(text: str, indent: int = 0) -> str:
    """Wraps a text; where it is indented, as arguments are, further lines are indented more."""
    first, rest = " " * indent, " " * (indent + 4 * (indent > 0))
    return textwrap.fill(text, 112, break_on_hyphens=False, initial_indent=first, subsequent_indent=rest)


def documentation(title: str, formula: str, notes: str, source: str, named: Iterable[str], **of: str) -> str:
    """A docstring without indentation. ``named``: the lines of the settings; ``of``: the texts for {distance}, {mean}
    and {repeats}."""
    arguments = ARGUMENTS.format(settings="\n".join(named), **of)
    parts = [
        f"{title}.",
        f"    {formula}",
        *map(paragraph, [SYMBOLS, notes] if notes else [SYMBOLS]),
        "\n".join(["Args:", *(paragraph(line, 4) for line in arguments.splitlines())]),
        f"Raises:\n{paragraph(ERRORS, 4)}",
        paragraph(f"Source: {source}."),
    ]
    return "\n\n".join(parts)


def settings(of: Definition) -> dict[str, str]:
    """Types and defaults of the settings, in the order in which modules take them."""
    numbers = {x.name: f"float = {x.default}" for x in of.settings}
    choice = {of.choice.name: f"int = {of.choice.default}"} if of.choice else {}
    return {**numbers, "distance": f'str = "{of.distance}"', **choice, "reduction": 'str = "mean"'}


def blanks(of: Definition) -> dict[str, str]:
    """The texts that fill in the templates."""
    documented = documentation(
        of.title,
        of.text,
        of.notes,
        of.source,
        [f"{x.name}: {x.what}" for x in of.named],
        distance=SIMILARITY if of.similarities else METRIC,
        mean=of.mean,
        repeats=REPEATS,
    )
    typed = "".join(f"    {name}: {kind},\n" for name, kind in settings(of).items())
    return {
        **{name: getattr(of, name) for name in ("name", "module", "title", "text")},
        "typed": typed,
        "typed_further": textwrap.indent(typed, "    "),
        "given": ", ".join(f'"{x.name}": {x.name}' for x in of.named),
        "all": "".join(f"            {name}={name},\n" for name in settings(of)),
        "documentation": textwrap.indent(documented, "    ").lstrip(),
    }


def file(what: str, imports: str, names: Iterable[str], parts: Iterable[str]) -> str:
    listed = "".join(f'    "{name}",\n' for name in sorted(names))
    return HEADER.format(what=what, imports=imports, names=listed) + "\n\n".join(parts)


def functions(definitions: Iterable[Definition]) -> str:
    parts = {f"{of.name}_loss": FUNCTION.format(**blanks(of)) for of in definitions}
    return file("functions", FUNCTION_IMPORTS, parts, parts.values())


def modules(definitions: Iterable[Definition]) -> str:
    parts = {of.module: MODULE.format(**blanks(of)) for of in definitions}
    return file("modules", MODULE_IMPORTS, parts, parts.values())
