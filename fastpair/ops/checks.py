"""Checks of tensors. Each raises an exception that names the argument, what it is and what it should be."""

from __future__ import annotations

import functools
from collections.abc import Mapping

import torch
from torch import Tensor

from fastpair.numerics import accumulate_dtype

FLOATING = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
INTEGER = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)


def tensor(name: str, value: Tensor, what: str = "a tensor") -> None:
    """A tensor that the kernels can read: dense, and wholly in this process."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be {what}, got {type(value).__name__}")
    if value.layout is not torch.strided or value.is_nested:
        kind = "a nested tensor" if value.is_nested else f"layout {value.layout}"
        raise TypeError(f"{name} must be a dense tensor (layout torch.strided), got {kind}")
    if type(value) is not Tensor and type(value).__name__ == "DTensor":
        raise TypeError(f"{name} must be a tensor of one process, as DTensor.to_local() gives it, got a DTensor")
    if value.is_meta:
        raise ValueError(f"{name} must have data, got a tensor on the device meta")


def matrix(name: str, value: Tensor, columns: str = "d") -> None:
    tensor(name, value)
    if value.ndim != 2:
        raise ValueError(f"{name} must have two dimensions (n, {columns}), got shape {tuple(value.shape)}")
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {value.dtype}")


def class_labels(name: str, value: Tensor, of: str, owner: Tensor) -> None:
    tensor(name, value, "a tensor of integers")
    if value.dtype not in INTEGER:
        raise TypeError(f"{name} must have an integer dtype, got {value.dtype}")
    if value.ndim != 1 or value.shape[0] != owner.shape[0]:
        raise ValueError(
            f"{name} must have shape ({owner.shape[0]},), one label a row of {of}, got {tuple(value.shape)}"
        )
    same_device(name, value, of, owner)


def labels_or_sets(name: str, value: Tensor, of: str, owner: Tensor) -> None:
    """Integers (n,), or sets of labels as a boolean matrix (n, L)."""
    if isinstance(value, Tensor) and value.dtype == torch.bool and value.ndim == 2:
        tensor(name, value)
        if value.shape[0] != owner.shape[0]:
            raise ValueError(
                f"{name}, as sets of labels, must have shape ({owner.shape[0]}, L), one a row of {of}, got "
                f"{tuple(value.shape)}"
            )
        same_device(name, value, of, owner)
    else:
        class_labels(name, value, of, owner)


def limits(value: Tensor) -> tuple[int, int] | None:
    """The smallest and the largest element, where there are some and reading them does not wait for a device."""
    if value.device.type != "cpu" or torch.compiler.is_compiling() or value.numel() == 0:
        return None
    low, high = value.aminmax()
    return int(low), int(high)


def class_range(labels: Tensor, classes: int, ignore_index: int | None = None) -> None:
    low, high = limits(labels) or (0, -1)
    if low >= 0 and high < classes:
        return
    wrong = (labels < 0) | (labels >= classes)
    if ignore_index is not None:
        wrong &= labels != ignore_index
    if wrong.any():
        place = int(wrong.nonzero()[0])
        others = "" if ignore_index is None else f" or be ignore_index = {ignore_index}"
        raise ValueError(f"labels must lie in [0, {classes}){others}, got {int(labels[place])} at position {place}")


def same_device(name: str, value: Tensor, of: str, owner: Tensor) -> None:
    if value.device != owner.device:
        raise ValueError(f"{name} must be on the device of {of}, {owner.device}, got {value.device}")


def same_columns(name: str, value: Tensor, of: str, owner: Tensor) -> None:
    if value.shape[1] != owner.shape[1]:
        raise ValueError(f"{name} must have {owner.shape[1]} columns like {of}, got {value.shape[1]}")
    same_device(name, value, of, owner)


def like(name: str, value: Tensor, of: str, owner: Tensor) -> None:
    """A second matrix, with the number of columns, dtype and device of the first."""
    matrix(name, value)
    same_columns(name, value, of, owner)
    if value.dtype != owner.dtype:
        raise TypeError(f"{name} must have the dtype of {of}, {owner.dtype}, got {value.dtype}")


def one_dtype(*tensors: Tensor) -> tuple[Tensor, ...]:
    """The tensors in the widest of their dtypes, as autocast, or a model in half precision, leaves them different."""
    dtypes = {t.dtype for t in tensors}
    if len(dtypes) == 1:
        return tensors
    dtype = functools.reduce(torch.promote_types, dtypes)
    return tuple(t.to(dtype) for t in tensors)


def second_side(embeddings: Tensor, ref_emb: Tensor, name: str = "ref_emb") -> None:
    """Two matrices with as many columns, on one device."""
    matrix("embeddings", embeddings)
    matrix(name, ref_emb)
    same_columns(name, ref_emb, "embeddings", embeddings)


def both_sides(embeddings: Tensor, ref_emb: Tensor, name: str = "ref_emb") -> tuple[Tensor, Tensor]:
    """The same, in one dtype."""
    second_side(embeddings, ref_emb, name)
    return one_dtype(embeddings, ref_emb)


def vector_like(name: str, value: Tensor, of: str, owner: Tensor) -> None:
    """A vector with one entry per row of ``owner``, of its dtype and on its device."""
    tensor(name, value, "a tensor or None")
    if value.ndim != 1 or value.shape[0] != owner.shape[0]:
        raise ValueError(f"{name} must have shape ({owner.shape[0]},), got {tuple(value.shape)}")
    if value.dtype != owner.dtype:
        raise TypeError(f"{name} must have the dtype of {of}, {owner.dtype}, got {value.dtype}")
    same_device(name, value, of, owner)


def indices_tuple(value: tuple, embeddings: Tensor, references: Tensor) -> None:
    """Triplets (anchor, positive, negative) or pairs (anchor, positive, anchor, negative) of row numbers, whose values
    :func:`listed_rows` checks."""
    if not isinstance(value, (tuple, list)) or len(value) not in (3, 4):
        got = f"{len(value)} elements" if isinstance(value, (tuple, list)) else type(value).__name__
        raise ValueError(f"indices_tuple must be a tuple of 3 tensors (triplets) or 4 (pairs), got {got}")
    for place, indices in enumerate(value):
        name = f"indices_tuple[{place}]"
        tensor(name, indices, "a tensor of integers")
        if indices.ndim != 1 or indices.dtype not in INTEGER:
            got = f"{indices.dtype} {tuple(indices.shape)}"
            raise TypeError(f"{name} must be a one-dimensional tensor of integers, got {got}")
        same_device(name, indices, "embeddings", embeddings)
        partner = value[place - place % 2] if len(value) == 4 else value[0]
        if len(indices) != len(partner):
            raise ValueError(f"{name} must be as long as its anchors, {len(partner)}, got {len(indices)}")


def listed_rows(value: tuple[Tensor, ...], embeddings: Tensor, references: Tensor) -> None:
    """Numbers of rows that there are, in an ``indices_tuple``."""
    for place, indices in enumerate(value):
        anchors = place == 0 or (place, len(value)) == (2, 4)
        rows = len(embeddings if anchors else references)
        low, high = limits(indices) or (0, -1)
        if low < 0 or high >= rows:
            name = f"indices_tuple[{place}]"
            of = "embeddings" if anchors or references is embeddings else "ref_emb"
            raise ValueError(f"{name} must hold rows of {of}, 0 to {rows - 1}, got values from {low} to {high}")


def unused_by_lists(embeddings: Tensor, labels, ref_emb, ref_labels, of_pairs: tuple) -> None:
    """Arguments that are unused where pairs are listed, but must be valid all the same; ``of_pairs`` must be None."""
    matrix("embeddings", embeddings)
    if labels is not None:
        labels_or_sets("labels", labels, "embeddings", embeddings)
    if ref_labels is not None:
        if ref_emb is None:
            raise ValueError("ref_emb must be given with ref_labels, got None")
        matrix("ref_emb", ref_emb)
        labels_or_sets("ref_labels", ref_labels, "ref_emb", ref_emb)
    for name, value in zip(("exclude_self", "pairs", "ids", "ref_ids"), of_pairs):
        if value is not None:
            raise ValueError(
                f"{name} must be None where indices_tuple lists the pairs, which leaves out what is not listed, "
                f"got {type(value).__name__}"
            )


def no_pairs(indices_tuple=None, ref_emb=None, ref_labels=None) -> None:
    """A loss on classes is called like a loss on pairs, but takes no pairs."""
    for name, value in (("indices_tuple", indices_tuple), ("ref_emb", ref_emb), ("ref_labels", ref_labels)):
        if value is not None:
            raise ValueError(f"{name} must be None, the loss compares samples with classes, got {type(value).__name__}")


def beside(owner: Tensor, *values: Tensor | None) -> tuple[Tensor | None, ...]:
    """Labels and the like on the device of their rows: data loaders leave them on the CPU. One that is given twice
    stays one tensor."""
    device = owner.device
    for value in values:
        if isinstance(value, Tensor) and value.device != device:
            break
    else:
        return values
    moved = {id(value): value.to(owner.device) for value in values if isinstance(value, Tensor) and not value.is_meta}
    return tuple(moved.get(id(value), value) for value in values)


def embeddings_and_labels(embeddings: Tensor, labels: Tensor) -> Tensor:
    """Returns the labels, on the device of the embeddings."""
    matrix("embeddings", embeddings)
    (labels,) = beside(embeddings, labels)
    class_labels("labels", labels, "embeddings", embeddings)
    return labels


def samples(embeddings: Tensor, labels: Tensor, ids: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """A batch that is compared with others: labels or sets of labels, and ids where there are some. Returns these, on
    the device of the embeddings."""
    matrix("embeddings", embeddings)
    labels, ids = beside(embeddings, labels, ids)
    labels_or_sets("labels", labels, "embeddings", embeddings)
    if ids is not None:
        class_labels("ids", ids, "embeddings", embeddings)
    return labels, ids


def self_index(embeddings: Tensor, ref_emb: Tensor, value: Tensor) -> None:
    """The index of the reference that each anchor is itself, -1 for none."""
    class_labels("exclude_self", value, "embeddings", embeddings)
    low, high = limits(value) or (-1, -1)
    if low < -1 or high >= len(ref_emb):
        raise ValueError(
            f"exclude_self must hold rows of ref_emb, 0 to {len(ref_emb) - 1}, or -1 for none, got values from "
            f"{low} to {high}"
        )


def references(embeddings: Tensor, ref_emb: Tensor | None, ref_labels: Tensor | None, labels: Tensor) -> None:
    if ref_emb is None and ref_labels is None:
        return
    if ref_labels is None:
        raise ValueError("ref_labels must be given with ref_emb, got None")
    if ref_emb is None:
        raise ValueError("ref_emb must be given with ref_labels, got None")
    second_side(embeddings, ref_emb)
    labels_or_sets("ref_labels", ref_labels, "ref_emb", ref_emb)
    if ref_labels.shape[1:] != labels.shape[1:]:
        expected = f"sets of {labels.shape[1]} labels" if labels.ndim == 2 else "one integer a row"
        raise ValueError(
            f"ref_labels must be like labels, {expected}, got {ref_labels.dtype} {tuple(ref_labels.shape)}"
        )


def pairs(
    value: Tensor, embeddings: Tensor, ref_emb: Tensor | None, labels: Tensor | None, ref_labels: Tensor | None
) -> None:
    """A matrix (n, m) of 1 for positive pairs, -1 for negative ones and 0, in place of labels."""
    for name, unused in (("labels", labels), ("ref_labels", ref_labels)):
        if unused is not None:
            raise ValueError(f"{name} must be None where pairs says which pairs there are, got {type(unused).__name__}")
    if ref_emb is not None:
        second_side(embeddings, ref_emb)
    tensor("pairs", value, "a tensor of integers")
    if value.dtype not in INTEGER or value.dtype == torch.uint8:
        raise TypeError(f"pairs must have a signed integer dtype, got {value.dtype}")
    shape = len(embeddings), len(embeddings if ref_emb is None else ref_emb)
    if value.shape != shape:
        raise ValueError(f"pairs must have shape {shape}, anchors and references, got {tuple(value.shape)}")
    same_device("pairs", value, "embeddings", embeddings)
    low, high = limits(value) or (-1, 1)
    if low < -1 or high > 1:
        raise ValueError(f"pairs must hold 1 (positive), -1 (negative) and 0 (none), got values from {low} to {high}")


def ids(value: Tensor | None, of_references: Tensor | None, embeddings: Tensor, ref_emb: Tensor | None) -> None:
    if value is not None:
        class_labels("ids", value, "embeddings", embeddings)
    elif of_references is not None:
        raise ValueError(f"ids must be given with ref_ids, got None and {type(of_references).__name__}")
    if of_references is not None:
        if ref_emb is None:
            raise ValueError("ref_emb must be given with ref_ids, got None")
        class_labels("ref_ids", of_references, "ref_emb", ref_emb)
    elif value is not None and ref_emb is not None and ref_emb is not embeddings:
        raise ValueError("ref_ids must be given with ids and ref_emb, got None")


def constants(name: str, value: Tensor, each: str, of: str, owner: Tensor) -> None:
    """Numbers without a gradient, one for each row of ``owner``."""
    tensor(name, value)
    if value.dtype not in FLOATING:
        raise TypeError(f"{name} must be float32, float64, bfloat16 or float16, got {value.dtype}")
    if value.shape != owner.shape[:1]:
        raise ValueError(f"{name} must have shape ({len(owner)},), one {each}, got {tuple(value.shape)}")
    same_device(name, value, of, owner)
    if value.requires_grad:
        raise ValueError(f"{name} must not require a gradient, they are constants: give {name}.detach()")


def anchor_weights(value: Tensor, embeddings: Tensor) -> Tensor:
    """The weights in the dtype that losses are summed in."""
    matrix("embeddings", embeddings)
    constants("weights", value, "an anchor", "embeddings", embeddings)
    on_cpu = value.device.type == "cpu" and not torch.compiler.is_compiling()
    if on_cpu and not (value >= 0).all():
        raise ValueError(f"weights must not be negative or NaN, got a minimum of {value.min().item()}")
    return value.to(accumulate_dtype(embeddings.dtype))


def scalars(
    argument: str, given: Mapping[str, Tensor] | None, names: tuple[str, ...], of: str, owner: Tensor
) -> Tensor | None:
    """The numbers of rows that a formula reads, by name, as one tensor (K, n); None if it reads none."""
    if given is not None and not isinstance(given, Mapping):
        raise TypeError(f"{argument} must be a dictionary of tensors, got {type(given).__name__}")
    if set(given or ()) != set(names):
        wanted, got = (", ".join(map(repr, sorted(x))) or "none" for x in (names, given or ()))
        raise ValueError(f"{argument} must have the numbers that the formula reads, {wanted}, got {got}")
    matrix(of, owner)
    for name in names:
        constants(name, given[name], f"a row of {of}", of, owner)
    dtype = accumulate_dtype(owner.dtype)
    return torch.stack([given[name].to(dtype) for name in names]) if names else None


def probabilities(value: Tensor, embeddings: Tensor) -> None:
    matrix("probabilities", value, "K")
    same_device("probabilities", value, "embeddings", embeddings)
    n = embeddings.shape[0]
    if value.shape[0] != n or value.shape[1] == 0:
        raise ValueError(f"probabilities must have shape ({n}, K) with K >= 1, got {tuple(value.shape)}")


def single(name: str, value: Tensor) -> None:
    tensor(name, value)
    if value.numel() != 1 or value.dtype not in FLOATING:
        raise ValueError(f"{name} must be a floating tensor of one element, got {value.dtype} {tuple(value.shape)}")
