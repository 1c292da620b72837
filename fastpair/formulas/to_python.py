"""Prints the losses as functions and modules, documentation included."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Mapping

from .class_losses import ClassDefinition
from .pair_losses import Choice, PairDefinition, Setting

HEADER = '''\
"""The losses over the pairs that labels make, over triplets, and on one vector per class, as {what}. Made by
``python -m fastpair.formulas`` from the definitions in fastpair/formulas: not to be edited."""

from __future__ import annotations

{imports}

__all__ = [
{names}]


'''
FUNCTION_IMPORTS = """\
from torch import Tensor, nn

from fastpair.losses.classes import class_loss
from fastpair.losses.pair import pair_loss"""
FUNCTION = '''\
def {name}_loss(
{tensors}    *,
{typed}{options}    backend: str | None = None,
) -> Tensor:
    """{documentation}
    """
    settings = {{
{given}    }}
    return {family}_loss(
        "{name}",
        settings,
{passed}        backend,
    )
'''
MODULE_IMPORTS = """\
from collections.abc import Callable

import torch
from torch import Tensor, nn

from fastpair.formulas.class_losses import CLASS_LOSSES
from fastpair.losses import generated_functions
from fastpair.losses.base import PairLoss
from fastpair.losses.classes import ClassLoss
from fastpair.losses.options import module_settings"""
MODULE = '''\
class {module}({base}):
    """{title}.

{text}

    See :func:`fastpair.functional.{name}_loss`.
    """

{attributes}    def __init__(
        self,
{sizes}{typed}{place}        *,
        reducer: nn.Module | None = None,
{regularizers}    ):
        settings = {{
{given}        }}
        super().__init__(
            generated_functions.{name}_loss,
{sized}{regularized}            **module_settings("{name}", settings, reducer),
        )
'''
# The arguments that pair losses share, and all losses; what is in braces differs from loss to loss.
PAIR_ARGUMENTS = """\
embeddings: anchors (n, d), float32, float64, bfloat16 or float16.
labels: integers (n,), or sets of labels, boolean (n, L): a pair is positive where both have the same label, or have \
one in common. May be None where ``indices_tuple`` is given.
ref_emb, ref_labels: references (m, d), of the embeddings' dtype, and their labels. Default: the anchors themselves.
{settings}
indices_tuple: the pairs (anchor, positive, anchor, negative) or triplets (anchor, positive, negative), integer \
tensors of row numbers as miners make them, used in place of those that the labels make. {repeats} On a CPU a \
kernel gathers the listed rows; elsewhere the loss is then plain PyTorch on the listed scores.
exclude_self: which pairs are left out because both sides are one sample. None: the pairs (i, i), when and only when \
``ref_emb`` is None or ``embeddings`` itself. True: the first n references are the anchors. False: none. A tensor \
(n,): the row of ``ref_emb`` that each anchor is, -1 for none.
pairs: in place of labels, integers (n, m): 1 for a positive pair, -1 for a negative one, 0 for none.
ids, ref_ids: integers (n,) and (m,), false-negative masking: samples with equal ids, as duplicates have, are no pair. \
``ref_ids`` goes with ``ref_emb``.
weights: floating (n,), not negative: the anchors' losses and counts are multiplied by them, so that the mean is a \
weighted one. Constants of the gradient.
ref_bias: floating (m,), or (n,) without references: added to the terms of negatives, of losses that sum their \
exponentials, as the correction −log q of sampled softmax is (Yi et al., RecSys 2019). Constants of the gradient.
ignore_above: a negative whose closeness is above that of the anchor's closest positive plus this number, in units of \
the score, is no pair: it may be a positive without the label (as in Qwen3-Embedding, arXiv 2506.05176, and GISTEmbed, \
arXiv 2402.16829, with the model itself as the guide). For the same losses.
"""
LEARNS = " Or a floating tensor of one element, such as a Parameter, which may require a gradient."
BACKEND = "backend: the kernels, see :func:`fastpair.use_backend`."
SYMBOLS = (
    "P are the anchor's positives among the references, N its negatives; s is the closeness of a pair, a similarity or "
    "−d for a distance d."
)
ERRORS = "TypeError: an argument of a wrong type. ValueError: one of a wrong shape or value."
# The parameters that the losses of a family have besides their settings, and their types.
PAIR_TENSORS = {
    "embeddings": "Tensor",
    "labels": "Tensor | None",
    "ref_emb": "Tensor | None = None",
    "ref_labels": "Tensor | None = None",
}
PAIR_OPTIONS = {
    "indices_tuple": "tuple[Tensor, ...] | None = None",
    "exclude_self": "bool | Tensor | None = None",
    **dict.fromkeys(("pairs", "ids", "ref_ids", "weights", "ref_bias"), "Tensor | None = None"),
    "ignore_above": "float | None = None",
}
SIZES = {"num_classes": "int", "embedding_size": "int"}
REGULARIZERS = {
    "embedding_regularizer": "Callable[[Tensor], Tensor] | None = None",
    "embedding_reg_weight": "float = 1.0",
}
WEIGHT_REGULARIZERS = {name.replace("embedding", "weight"): kind for name, kind in REGULARIZERS.items()}
PLACE = {"device": "torch.device | str | None = None", "dtype": "torch.dtype | None = None"}


def paragraph(text: str, indent: int = 0) -> str:
    """Wraps a text; where it is indented, as arguments are, further lines are indented more."""
    first, rest = " " * indent, " " * (indent + 4 * (indent > 0))
    return textwrap.fill(text, 112, break_on_hyphens=False, initial_indent=first, subsequent_indent=rest)


def documentation(of: PairDefinition | ClassDefinition) -> str:
    """The docstring of the function, without indentation."""
    learnable = getattr(of, "learnable", None)
    settings = "".join(f"{x.name}: {x.what}{LEARNS if x is learnable else ''}\n" for x in of.arguments)
    if isinstance(of, PairDefinition):
        arguments = PAIR_ARGUMENTS.format(settings=settings.rstrip(), repeats=of.repeats)
    else:
        arguments = "".join(f"{name}: {what}\n" for name, what in of.tensors.items()) + settings
    parts = [
        f"{of.title}.",
        textwrap.indent(of.text, "    "),
        *map(paragraph, [SYMBOLS] if isinstance(of, PairDefinition) else []),
        *map(paragraph, [of.notes] if of.notes else []),
        "\n".join(["Args:", *(paragraph(line, 4) for line in (arguments + BACKEND).splitlines())]),
        f"Raises:\n{paragraph(ERRORS, 4)}",
        paragraph(f"Source: {of.source}."),
    ]
    return "\n\n".join(parts)


def shown(value: float | str) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def kind(of: Setting | Choice, learns: bool) -> str:
    """The type of an argument. ``learns``: whether it may be a tensor."""
    named = isinstance(of, Setting) and of.check in ("distance", "similarity")
    return "str | nn.Module" if named else type(of.default).__name__ + " | Tensor" * learns


def listed(lines: Iterable[str], indent: int) -> str:
    return "".join(f"{' ' * indent}{line},\n" for line in lines)


def typed(parameters: Mapping[str, str], indent: int) -> str:
    return listed((f"{name}: {kind}" for name, kind in parameters.items()), indent)


def blanks(of: PairDefinition | ClassDefinition, indent: int) -> dict[str, str]:
    """The texts that fill in the templates, for a signature with this indentation."""
    learnable = getattr(of, "learnable", None)
    settings = {x.name: f"{kind(x, x is learnable)} = {shown(x.default)}" for x in of.arguments}
    is_pair = isinstance(of, PairDefinition)
    regularizers = REGULARIZERS if is_pair else REGULARIZERS | WEIGHT_REGULARIZERS
    common = {
        **{name: getattr(of, name) for name in ("name", "module", "title")},
        "text": textwrap.indent(of.text, " " * 8),
        "typed": typed(settings, indent),
        "regularizers": typed(regularizers, 8),
        "regularized": listed((f"{name}={name}" for name in regularizers), 12),
        "given": listed((f'"{name}": {name}' for name in settings), indent + 4),
        "documentation": textwrap.indent(documentation(of), "    ").lstrip(),
    }
    if is_pair:
        family = {
            "family": "pair",
            "base": "PairLoss",
            "tensors": typed(PAIR_TENSORS, 4),
            "options": typed(PAIR_OPTIONS, 4),
            "passed": listed([*PAIR_TENSORS, *PAIR_OPTIONS], 8),
            **dict.fromkeys(("attributes", "sizes", "place", "sized"), ""),
        }
    else:
        family = {
            "family": "class",
            "base": "ClassLoss",
            "tensors": typed(dict.fromkeys(of.tensors, "Tensor"), 4),
            "options": "",
            "passed": listed(["embeddings", of.vectors, "labels"], 8),
            "attributes": f'    definition = CLASS_LOSSES["{of.name}"]\n\n',
            "sizes": typed(SIZES, 8),
            "place": typed(PLACE, 8),
            "sized": listed([*SIZES, *PLACE], 12),
        }
    return common | family


def file(what: str, imports: str, parts: Mapping[str, str]) -> str:
    names = listed((f'"{name}"' for name in sorted(parts)), 4)
    return HEADER.format(what=what, imports=imports, names=names) + "\n\n".join(parts.values())


def functions(definitions: Iterable[PairDefinition | ClassDefinition]) -> str:
    parts = {f"{of.name}_loss": FUNCTION.format(**blanks(of, 4)) for of in definitions}
    return file("functions", FUNCTION_IMPORTS, parts)


def modules(definitions: Iterable[PairDefinition | ClassDefinition]) -> str:
    parts = {of.module: MODULE.format(**blanks(of, 8)) for of in definitions}
    return file("modules", MODULE_IMPORTS, parts)
