"""Losses under torch.compile: whole graphs stay whole, and what breaks them breaks them as before."""

import pytest
import torch
from torch import nn

import fastpair

X, Y = (torch.randn(12, 6, generator=torch.Generator().manual_seed(seed)).requires_grad_() for seed in (0, 1))
LABELS = torch.arange(12) // 3


def pml(name, **settings):
    return lambda module: (getattr(module, name)(**settings), (X, LABELS))


def triplets(name):
    def make(module):
        loss = getattr(module, name)(nn.Sequential(nn.Identity()))
        return lambda x: loss.compute_loss_from_embeddings([x], LABELS), (X,)

    return make


def ranking(module):
    loss = module.MultipleNegativesRankingLoss(nn.Sequential(nn.Identity()))
    return lambda x, y: loss.compute_loss_from_embeddings([x, y], None), (X, Y)


ST, PML = "sentence_transformers.sentence_transformer.losses", "pytorch_metric_learning.losses"
LOSSES = {
    "ClipLoss": ("open_clip.loss", lambda module: (module.ClipLoss(), (X, Y, 5.0))),
    "SigLipLoss": ("open_clip.loss", lambda module: (module.SigLipLoss(), (X, Y, 5.0, -2.0))),
    "NTXentLoss": ("lightly.loss", lambda module: (module.NTXentLoss(), (X, Y))),
    "NTXentLoss, bank": ("lightly.loss", lambda module: (module.NTXentLoss(0.5, (64, 6)), (X, Y))),
    "DCLLoss": ("lightly.loss", lambda module: (module.DCLLoss(), (X, Y))),
    "MultipleNegativesRankingLoss": (ST, ranking),
    **{name: (ST, triplets(name)) for name in ("BatchHardTripletLoss", "BatchAllTripletLoss")},
    "SupConLoss": (PML, pml("SupConLoss")),
    "ArcFaceLoss": (PML, pml("ArcFaceLoss", num_classes=4, embedding_size=6)),
}


def value_and_gradients(loss, arguments):
    leaves = [x for x in arguments if isinstance(x, torch.Tensor) and x.requires_grad]
    value = loss(*arguments)
    return [value.detach(), *torch.autograd.grad(value, leaves)]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", LOSSES)
def test_compiled(name):
    module, make = LOSSES[name]
    module = pytest.importorskip(module)
    torch.manual_seed(3)
    loss, arguments = make(module)
    client = module.__name__.partition(".")[0]
    bank = getattr(loss, "memory_bank", None)

    def compiled(fullgraph):
        if bank is not None:
            torch.manual_seed(4)
            if bank.size[0]:
                bank._init_memory_bank(bank.size)
        torch.compiler.reset()
        return value_and_gradients(torch.compile(loss, fullgraph=fullgraph, backend="aot_eager"), arguments)

    whole = True
    try:
        want = compiled(fullgraph=True)
    except Exception:  # whatever the compiler raises: it has many of its own
        whole = False
        want = compiled(fullgraph=False)
    with fastpair.patch(client):
        got = compiled(fullgraph=whole)
    for ours, theirs in zip(got, want):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("of_object", [False, True])
def test_patching_after_compiling(of_object):
    """A compiled loss follows: what it was compiled with is guarded."""
    theirs = pytest.importorskip("open_clip.loss")
    torch.compiler.reset()
    loss = theirs.ClipLoss()
    operators = []

    def backend(graph, inputs):
        operators.append(str(graph.graph))
        return graph

    compiled, views = torch.compile(loss, backend=backend), (X.detach(), Y.detach())
    with fastpair.patch("open_clip", loss if of_object else None):
        compiled(*views, 3.0)
        assert "fastpair" in operators[-1]
    compiled(*views, 3.0)
    assert "fastpair" not in operators[-1]
