"""lightly's contrastive losses of two views. A batch is the 2n rows of both, in which each has one positive."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fastpair.functional import dcl_loss, supcon_loss
from fastpair.patching.core import Case, Client, Method
from fastpair.patching.tensors import ranks, tensor_cases


def _both_views(loss, out0: Tensor, out1: Tensor) -> dict:
    """Both views as one batch, and the labels that pair them. With several ranks the references are those of all."""
    n, device = len(out0), out0.device
    labels = torch.arange(n, device=device)
    settings = {"temperature": float(loss.temperature)}
    if not _gathers(loss):
        return {"embeddings": torch.cat([out0, out1]), "labels": labels.repeat(2), **settings}
    from lightly.utils import dist

    out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
    everyone = torch.cat([torch.cat(dist.gather(view), 0) for view in (out0, out1)])
    labels = labels + dist.rank() * n
    of_all = torch.arange(len(everyone) // 2, device=device)
    references = {
        "ref_emb": everyone,
        "ref_labels": of_all.repeat(2),
        "exclude_self": torch.cat([labels, labels + len(of_all)]),
    }
    return {"embeddings": torch.cat([out0, out1]), "labels": labels.repeat(2), **references, **settings}


def _ntxent(loss, out0: Tensor, out1: Tensor) -> Tensor:
    if loss.memory_bank.size[0] > 0:
        return _against_bank(loss, out0, out1)
    return supcon_loss(**_both_views(loss, out0, out1))


def _against_bank(loss, out0: Tensor, out1: Tensor) -> Tensor:
    """Each row of ``out0`` with its own row of ``out1`` against the bank, which is read before its update.

    The positive is a score of the anchor alone. As a further feature of the anchors, with a reference that is 1 there
    and 0 elsewhere, it is one more score of the matrix, whose references then have no gradient.
    """
    memory = loss.memory_bank
    out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
    with torch.no_grad():
        references = F.pad(memory.bank, (0, 1, 0, 1))
        references[-1, -1] = 1
        if out0.requires_grad:
            memory._dequeue_and_enqueue(out1)
        ref_labels = torch.zeros(len(references), dtype=torch.int64, device=out0.device)
        ref_labels[-1] = 1
    anchors = torch.cat([out0, (out0 * out1).sum(1, keepdim=True)], dim=1)
    labels = torch.ones(len(anchors), dtype=torch.int64, device=out0.device)
    return supcon_loss(anchors, labels, references, ref_labels, temperature=float(loss.temperature), distance="dot")


def _dcl(loss, out0: Tensor, out1: Tensor) -> Tensor:
    value = dcl_loss(**_both_views(loss, out0, out1))
    if loss.weight_fn:
        # The weights are those of the positives alone.
        out0, out1 = F.normalize(out0, dim=1), F.normalize(out1, dim=1)
        weights = loss.weight_fn(out0, out1) + loss.weight_fn(out1, out0)
        value = value + ((1 - weights / 2) * (out0 * out1).sum(1)).mean() / float(loss.temperature)
    return value


def _views(out0, out1):
    return out0, out1


def _alone(loss, out0, out1) -> bool:
    return len(out0) < 2 and not _gathers(loss)


def _differ_in_number(loss, out0, out1) -> bool:
    return len(out0) != len(out1)


def _odd_temperature(loss) -> bool:
    return not (isinstance(loss.temperature, (int, float)) and loss.temperature > 0)


def _gathers(loss) -> bool:
    return loss.gather_distributed and ranks() > 1


def _another_bank(loss) -> bool:
    from lightly.models.modules.memory_bank import MemoryBankModule

    return not (type(loss.memory_bank) is MemoryBankModule and loss.memory_bank.feature_dim_first)


def _another_cross_entropy(loss) -> bool:
    ce = loss.cross_entropy
    return not (
        type(ce) is nn.CrossEntropyLoss
        and (ce.weight, ce.ignore_index, ce.reduction, ce.label_smoothing) == (None, -100, "mean", 0.0)
    )


def _bank_elsewhere(loss, out0, out1) -> bool:
    bank = loss.memory_bank.bank
    return loss.memory_bank.size[0] > 0 and (
        (bank.dtype, bank.device, bank.shape[1]) != (out0.dtype, out0.device, out0.shape[1])
    )


TEMPERATURE = Case("temperature is no positive number", _odd_temperature)
COUNTS = Case("the views differ in number", _differ_in_number)
BANK = "lightly.models.modules.memory_bank:MemoryBankModule"

CLIENT = Client(
    "lightly",
    (
        Method(
            "lightly.loss.ntx_ent_loss:NTXentLoss",
            "forward",
            "supcon_loss",
            _ntxent,
            settings=(
                TEMPERATURE,
                Case("memory_bank is another class, or has its dimensions the other way round", _another_bank),
                Case("cross_entropy has weights, smoothing or another reduction", _another_cross_entropy),
            ),
            calls=(
                *tensor_cases(_views),
                COUNTS,
                Case("the memory bank has another dtype, device or number of columns", _bank_elsewhere),
            ),
            reads=(f"{BANK}.forward", f"{BANK}._dequeue_and_enqueue"),
        ),
        Method(
            "lightly.loss.dcl_loss:DCLLoss",
            "forward",
            "dcl_loss",
            _dcl,
            settings=(TEMPERATURE,),
            calls=(*tensor_cases(_views), COUNTS, Case("there is one sample, without a negative", _alone)),
            uses=("_loss",),
        ),
    ),
    known={
        "NTXentLoss.forward": ("f1b2afec142a",),
        "DCLLoss.forward": ("5976311ee071",),
    },
    left={
        "MACLLoss": "its temperature is made from the scores of the batch",
        "DetConSLoss": "its pairs are made from masks of regions",
        "DetConBLoss": "its pairs are made from masks of regions",
    },
)
