"""Terms that are added to a loss, and what losses on classes say of themselves."""

import pickle

import pytest
import torch
import torch.nn.functional as F
from support import TOLERANCE, error

import fastpair
from fastpair import losses


def lengths(x):
    return x.norm(dim=1).mean()


class Lengths(torch.nn.Module):
    def forward(self, x):
        return lengths(x)


CLASSES = [cls for cls in (getattr(losses, name) for name in losses.__all__) if isinstance(cls, type)]
PAIR_LOSSES = [
    cls for cls in CLASSES if issubclass(cls, losses.PairLoss) and cls not in (losses.PairLoss, losses.CustomPairLoss)
]
CLASS_LOSSES = [cls for cls in CLASSES if issubclass(cls, losses.ClassLoss) and cls is not losses.ClassLoss]


def custom(**settings):
    return losses.CustomPairLoss(
        positive=lambda s, p: -s, negative=lambda s, p: s, anchor=lambda P, N, p: P.sum + N.sum, **settings
    )


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 5, generator=generator, dtype=torch.float64)
    return x.requires_grad_(), torch.arange(12) % 4


@pytest.mark.parametrize("make", [*PAIR_LOSSES, custom])
@pytest.mark.parametrize("regularizer", [lengths, Lengths()], ids=["function", "module"])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_regularizers_of_embeddings(make, regularizer, reduction, batch):
    x, labels = batch
    with fastpair.use_backend("reference"):
        plain = make(reduction=reduction)(x, labels)
        loss = make(reduction=reduction, embedding_regularizer=regularizer, embedding_reg_weight=0.3)
        want, got = plain + 0.3 * lengths(x), loss(x, labels)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(value, x) for value in (got, want)))


@pytest.mark.parametrize("make", CLASS_LOSSES)
def test_regularizers_of_class_vectors(make, batch):
    x, labels = batch
    loss = make(4, 5, dtype=torch.float64, embedding_regularizer=lengths, weight_regularizer=Lengths())
    plain = make(4, 5, dtype=torch.float64)
    plain.load_state_dict(loss.state_dict())
    loss.weight_reg_weight = 0.2
    vectors, others = (getattr(of, of.vectors) for of in (loss, plain))
    got, want = loss(x, labels), plain(x, labels) + lengths(x) + 0.2 * lengths(others)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(torch.autograd.grad(got, (x, vectors)), torch.autograd.grad(want, (x, others)))


def test_regularizers_in_half_precision_and_copies(batch):
    x, labels = batch[0].detach().bfloat16(), batch[1]
    loss = losses.SupConLoss(embedding_regularizer=lengths)
    assert loss(x, labels).dtype == torch.float32
    assert torch.equal(pickle.loads(pickle.dumps(loss))(x, labels), loss(x, labels))
    assert torch.equal(torch.compile(loss, fullgraph=True, backend="eager")(x, labels), loss(x, labels))


def test_regularizers_that_are_none(batch):
    with pytest.raises(TypeError, match="embedding_regularizer must be a function of a tensor, got str"):
        losses.SupConLoss(embedding_regularizer="l2")
    with pytest.raises(TypeError, match="weight_reg_weight must be a number, got str"):
        losses.ArcFaceLoss(4, 5, weight_regularizer=lengths, weight_reg_weight="1")
    with pytest.raises(ValueError, match="embedding_regularizer must be None where reduction .* got 'none'"):
        losses.SupConLoss(embedding_regularizer=lengths, reduction="none")(*batch)
    with pytest.raises(TypeError, match=r"weight_regularizer must return a tensor of one element, got a tensor \(4,\)"):
        losses.ProxyNCALoss(4, 5, dtype=torch.float64, weight_regularizer=lambda w: w.norm(dim=1))(*batch)
    with pytest.raises(TypeError, match="embedding_regularizer must return a tensor of one element, got dict"):
        losses.SupConLoss(embedding_regularizer=lambda x: {"loss": x})(*batch)
    with pytest.raises(ValueError, match="embedding_regularizer must be None.* got function"):
        fastpair.distributed.GlobalBatchLoss(losses.SupConLoss(embedding_regularizer=lengths))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_logits(dtype, batch):
    x, labels = batch
    x = x.detach().to(dtype).requires_grad_()
    scales = {
        losses.NormalizedSoftmaxLoss(4, 5, temperature=0.1): 10,
        losses.CosFaceLoss(4, 5, scale=7.0): 7,
        losses.ArcFaceLoss(4, 5, scale=7.0): 7,
        losses.ProxyNCALoss(4, 5, softmax_scale=3.0): 6,
        losses.ProxyAnchorLoss(4, 5): 1,
    }
    for loss, scale in scales.items():
        vectors = getattr(loss, loss.vectors)
        want = scale * F.normalize(x) @ F.normalize(vectors.to(dtype)).T
        got = loss.get_logits(x)
        gradients = (torch.autograd.grad(logits.square().sum(), (x, vectors)) for logits in (got, want))
        for a, b in zip((got, *next(gradients)), (want, *next(gradients))):
            assert a.dtype == b.dtype and error(a, b) <= TOLERANCE[dtype]
    # Without margins they are the logits of the cross-entropy.
    for loss in (losses.NormalizedSoftmaxLoss(4, 5, dtype=dtype), losses.ProxyNCALoss(4, 5, dtype=dtype)):
        torch.testing.assert_close(loss(x, labels), F.cross_entropy(loss.get_logits(x), labels))
    with pytest.raises(TypeError, match="CenterLoss has no logits"):
        losses.CenterLoss(4, 5).get_logits(x)


@pytest.mark.parametrize("make", CLASS_LOSSES)
def test_names_of_class_vectors(make):
    loss = make(4, 5)
    assert (loss.num_classes, loss.embedding_size) == (4, 5)
    assert hasattr(loss, "W") == (loss.vectors == "weight")
    if hasattr(loss, "W"):
        torch.nn.init.zeros_(loss.W)
        assert loss.W.shape == (5, 4) and not loss.weight.any()
