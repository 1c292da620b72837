"""The deliberate differences from pytorch-metric-learning that docs/pytorch-metric-learning.md lists, as facts."""

import pytest
import torch

from fastpair import losses as ours

theirs = pytest.importorskip("pytorch_metric_learning.losses")
distances = pytest.importorskip("pytorch_metric_learning.distances")
reducers = pytest.importorskip("pytorch_metric_learning.reducers")


@pytest.fixture
def batch():
    return torch.randn(8, 4), torch.arange(8) % 2


def test_copies_of_labels(batch):
    x, labels = batch
    alone = ours.SupConLoss()(x, labels)
    torch.testing.assert_close(theirs.SupConLoss()(x, labels, ref_emb=x, ref_labels=labels), alone)
    assert not theirs.SupConLoss()(x, labels, ref_emb=x, ref_labels=labels.clone()).isclose(alone)
    torch.testing.assert_close(ours.SupConLoss()(x, labels, ref_emb=x, ref_labels=labels.clone()), alone)


def test_means_over_losses_above_zero():
    x = torch.tensor([[1.0, 0.0], [1.0, 0.0], [-0.9, 0.1], [0.8, 0.6], [0.7, 0.7]])
    labels = torch.tensor([0, 0, 1, 2, 2])
    per_anchor = ours.SupConLoss(0.002, reduction="none")(x, labels)
    zero = per_anchor[[0, 1, 3, 4]] == 0
    assert 0 < zero.sum() < 4
    torch.testing.assert_close(ours.SupConLoss(0.002)(x, labels), per_anchor.sum() / 4)
    torch.testing.assert_close(theirs.SupConLoss(0.002)(x, labels), per_anchor.sum() / (~zero).sum())


def test_dot_products(batch):
    normalised = theirs.SupConLoss(distance=distances.DotProductSimilarity())(*batch)
    torch.testing.assert_close(normalised, ours.SupConLoss(distance="cosine")(*batch))
    plain = theirs.SupConLoss(distance=distances.DotProductSimilarity(normalize_embeddings=False))(*batch)
    torch.testing.assert_close(plain, ours.SupConLoss(distance="dot")(*batch))


def test_half_precision(batch):
    x, labels = batch
    assert theirs.SupConLoss()(x.bfloat16(), labels).dtype == torch.bfloat16
    assert ours.SupConLoss()(x.bfloat16(), labels).dtype == torch.float32


def test_supcon_without_negatives(batch):
    x, _ = batch
    labels = torch.zeros(8, dtype=torch.long)
    assert theirs.SupConLoss()(x, labels) == 0
    assert ours.SupConLoss()(x, labels) > 1


def test_ntxent_at_small_temperatures():
    x, labels = torch.tensor([[1.0, 0], [-1, 0], [1, 0.01], [-1, 0.01]]), torch.tensor([0, 0, 1, 1])
    assert theirs.NTXentLoss(0.001)(x, labels).item() == pytest.approx(87.34, abs=0.01)
    assert ours.NTXentLoss(0.001)(x, labels).item() == pytest.approx(2000, abs=1)


def test_nca_of_far_anchors():
    far = torch.tensor([[0.0, 0], [30, 0], [0, 1], [30, 1]])
    some = torch.cat([far, torch.tensor([[0.0, 0.5], [0.1, 0.5]])])
    their_nca = theirs.NCALoss(distance=distances.LpDistance(normalize_embeddings=False, power=2))
    our_nca = ours.NCALoss(distance="sqeuclidean")
    assert their_nca(far, torch.tensor([0, 0, 1, 1])).isnan()
    assert our_nca(far, torch.tensor([0, 0, 1, 1])).item() == pytest.approx(899, abs=0.1)
    assert their_nca(some, torch.tensor([0, 0, 1, 1, 2, 2])) < 2
    assert our_nca(some, torch.tensor([0, 0, 1, 1, 2, 2])) > 500


def test_nca_of_a_single_anchor(batch):
    x, labels = batch
    assert theirs.NCALoss()(x[:1], labels[:1], ref_emb=x[1:], ref_labels=labels[1:]) == 0
    assert ours.NCALoss()(x[:1], labels[:1], ref_emb=x[1:], ref_labels=labels[1:]) > 0


def test_nca_over_listed_pairs(batch):
    x, labels = batch
    pairs = (torch.tensor([0, 0]), torch.tensor([2, 4]), torch.tensor([0]), torch.tensor([1]))
    d = torch.cdist(torch.nn.functional.normalize(x), torch.nn.functional.normalize(x)).square()[0]
    want = torch.stack([-d[2], -d[4], -d[1]]).logsumexp(0) - torch.stack([-d[2], -d[4]]).logsumexp(0)
    torch.testing.assert_close(ours.NCALoss()(x, labels, pairs), want)
    assert not theirs.NCALoss()(x, labels, pairs).isclose(want)


def test_lifted_structure_of_lone_anchors(batch):
    x, labels = batch[0], torch.tensor([0, 0, 1, 1, 2, 3, 4, 5])
    got = ours.GeneralizedLiftedStructureLoss(reduction="none")(x, labels)
    assert (got[4:] == 0).all() and (got[:4] > 0).all()
    torch.testing.assert_close(ours.GeneralizedLiftedStructureLoss()(x, labels), got.sum() / 4)
    assert not theirs.GeneralizedLiftedStructureLoss()(x, labels).isclose(got.sum() / 4)


def test_dtype_of_class_vectors(batch):
    x, labels = batch
    for name in ("CosFaceLoss", "ProxyAnchorLoss", "NormalizedSoftmaxLoss"):
        their_loss, our_loss = getattr(theirs, name)(3, 4), getattr(ours, name)(3, 4)
        their_loss(x.bfloat16(), labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            our_loss(x.bfloat16(), labels)
        assert next(their_loss.parameters()).dtype == torch.bfloat16
        assert next(our_loss.parameters()).dtype == torch.float32


@pytest.mark.parametrize("backend", ["cpu", "reference"])
def test_arcface_along_the_class_vector(backend):
    import fastpair

    their_loss, our_loss = theirs.ArcFaceLoss(3, 4), ours.ArcFaceLoss(3, 4)
    # Whose cosine with itself is 1 however it is rounded.
    our_loss.weight.data = torch.eye(3, 4)
    their_loss.W.data = our_loss.weight.data.T.clone()
    x = (our_loss.weight[:2] * 2).detach().requires_grad_()
    (gradient,) = torch.autograd.grad(their_loss(x, torch.tensor([0, 1])), x)
    # Later PyTorch stops a gradient at the ends of a clamp.
    assert gradient.isnan().any() == (torch.__version__ < "2.14")
    with fastpair.use_backend(backend):
        (gradient,) = torch.autograd.grad(our_loss(x, torch.tensor([0, 1])), x)
    assert gradient.isfinite().all()


def test_state_of_the_memory(batch):
    x, labels = batch
    state = {}
    for module in (theirs, ours):
        memory = module.CrossBatchMemory(module.ContrastiveLoss(), 4, 16)
        memory(x, labels)
        again = module.CrossBatchMemory(module.ContrastiveLoss(), 4, 16)
        again.load_state_dict(memory.state_dict())
        state[module] = again.queue_idx
    assert state == {theirs: 0, ours: 8}


def test_nca_against_the_memory(batch):
    x, labels = batch
    assert theirs.CrossBatchMemory(theirs.NCALoss(), 4, 16)(x, labels) < theirs.NCALoss()(x, labels)
    torch.testing.assert_close(ours.CrossBatchMemory(ours.NCALoss(), 4, 16)(x, labels), ours.NCALoss()(x, labels))


@pytest.mark.parametrize("name", ["SupConLoss", "ContrastiveLoss", "NCALoss", "TripletMarginLoss"])
def test_labels_that_are_no_integers(name, batch):
    x, labels = batch
    for others in (labels.float(), labels.bool()):
        torch.testing.assert_close(getattr(theirs, name)()(x, others), getattr(theirs, name)()(x, labels))
        with pytest.raises(TypeError, match="labels must have an integer dtype, got torch"):
            getattr(ours, name)()(x, others)


def test_labels_of_no_class(batch):
    x, labels = batch[0], batch[1].clone()
    labels[0] = -100
    counted = 7 / 8
    for name, classes in (("NormalizedSoftmaxLoss", 4), ("CosFaceLoss", 200), ("ArcFaceLoss", 200)):
        their_loss = getattr(theirs, name)(classes, 4)
        torch.testing.assert_close(their_loss(x, labels), counted * their_loss(x[1:], labels[1:]))
        with pytest.raises(ValueError, match="labels must lie in .* got -100 at position 0"):
            getattr(ours, name)(classes, 4)(x, labels)


def test_lists_of_one_pair(batch):
    x, labels = batch
    for name in ("SupConLoss", "ContrastiveLoss", "MultiSimilarityLoss"):
        triplet = tuple(map(torch.tensor, ([0], [2], [1])))
        assert getattr(theirs, name)()(x, labels, triplet) == 0
        assert getattr(ours, name)()(x, labels, triplet) > 0


def test_dtypes_of_the_memory(batch):
    x, labels = batch
    memories = [module.CrossBatchMemory(module.SupConLoss(), 4, 16) for module in (theirs, ours)]
    for memory in memories:
        memory(x.bfloat16(), labels.int())
    dtypes = [(memory.embedding_memory.dtype, memory.label_memory.dtype) for memory in memories]
    assert dtypes == [(torch.bfloat16, torch.int32), (torch.float32, torch.int64)]


def test_logits_of_proxy_nca(batch):
    x, _ = batch
    their_loss, our_loss = theirs.ProxyNCALoss(3, 4, softmax_scale=5), ours.ProxyNCALoss(3, 4, softmax_scale=5)
    our_loss.load_state_dict(their_loss.state_dict())
    distance, logits = their_loss.get_logits(x), our_loss.get_logits(x)
    assert torch.equal(logits.argmax(1), distance.argmin(1))
    torch.testing.assert_close(logits.softmax(1), (-5 * distance).softmax(1))


def test_losses_that_are_not_reduced(batch):
    x, labels = batch
    unreduced = theirs.SupConLoss(reducer=reducers.DoNothingReducer())(x, labels)
    torch.testing.assert_close(unreduced["loss"]["losses"].flatten(), ours.SupConLoss(reduction="none")(x, labels))
    term = {"embedding_regularizer": lambda x: x.norm()}
    assert "embedding_reg_loss" in theirs.SupConLoss(reducer=reducers.DoNothingReducer(), **term)(x, labels)
    with pytest.raises(ValueError, match="embedding_regularizer must be None"):
        ours.SupConLoss(reduction="none", **term)(x, labels)


def test_states_of_their_memory(batch):
    x, labels = batch
    memory = theirs.CrossBatchMemory(theirs.SupConLoss(), 4, 32)
    memory(x, labels), memory(x.flip(1), labels)
    resumed = [module.CrossBatchMemory(theirs.SupConLoss(), 4, 32) for module in (theirs, ours)]
    for of in resumed:
        of.load_state_dict(memory.state_dict())
    new = theirs.CrossBatchMemory(theirs.SupConLoss(), 4, 32)
    torch.testing.assert_close(resumed[0](-x, labels), new(-x, labels))
    torch.testing.assert_close(resumed[1](-x, labels), memory(-x, labels))
