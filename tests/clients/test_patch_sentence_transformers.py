"""fastpair.patch("sentence_transformers"): its losses patched against not patched, alone and with a tiny model."""

import copy
import functools
import pickle
import warnings

import pytest
import torch
from patched import assert_same, counted
from tiny_models import WORDS, save_bert

import fastpair

st = pytest.importorskip("sentence_transformers")
theirs = pytest.importorskip("sentence_transformers.sentence_transformer.losses")

NAME = "sentence_transformers"
RANKING = "MultipleNegativesRankingLoss.compute_loss_from_embeddings"
CACHED = "CachedMultipleNegativesRankingLoss.calculate_loss"
HARD = "BatchHardTripletLoss.batch_hard_triplet_loss"
SOFT = "BatchHardSoftMarginTripletLoss.batch_hard_triplet_soft_margin_loss"
ALL = "BatchAllTripletLoss.batch_all_triplet_loss"
SEMI_HARD = "BatchSemiHardTripletLoss.batch_semi_hard_triplet_loss"
SYMMETRIC = {"directions": ("query_to_doc", "doc_to_query"), "partition_mode": "per_direction"}
FURTHER = [
    {"directions": ("query_to_doc", "doc_to_query")},
    {"directions": ("query_to_doc", "query_to_query")},
    {"directions": ("query_to_doc", "query_to_query", "doc_to_query", "doc_to_doc")},
    {"hardness_mode": "in_batch_negatives", "hardness_strength": 2.0},
    {"hardness_mode": "hard_negatives", "hardness_strength": 2.0},
    {
        "hardness_mode": "all_negatives",
        "hardness_strength": 2.0,
        "directions": ("query_to_doc", "doc_to_query"),
        "partition_mode": "per_direction",
    },
]
Distances = theirs.BatchHardTripletLossDistanceFunction


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory):
    folder = str(tmp_path_factory.mktemp("bert"))
    save_bert(folder)
    return folder


@pytest.fixture
def model(model_folder):
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer

    word_vectors = Transformer(model_folder)
    pooling = Pooling(word_vectors.get_embedding_dimension())
    return st.SentenceTransformer(modules=[word_vectors, pooling], device="cpu")


@pytest.fixture
def no_model():
    """For losses that are called with embeddings."""
    return torch.nn.Sequential(torch.nn.Identity())


def columns(count, n=16, d=8, dtype=torch.float64):
    return [torch.randn(n, d, dtype=dtype).requires_grad_() for _ in range(count)]


def sentences(n, seed):
    generator = torch.Generator().manual_seed(seed)
    picked = torch.randint(len(WORDS), (n, 5), generator=generator)
    return [" ".join(WORDS[i] for i in row) for row in picked.tolist()]


def features(model, count, n=12, seed=0):
    return [model.preprocess(sentences(n, seed + column)) for column in range(count)]


# ---- in-batch negatives


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("documents", [1, 2, 4])
@pytest.mark.parametrize("settings", [{}, {"partition_mode": "per_direction"}, SYMMETRIC, *FURTHER], ids=str)
@pytest.mark.parametrize("similarity", ["cos_sim", "dot_score"])
def test_ranking_loss(no_model, similarity, settings, documents, dtype):
    scale = 20.0 if similarity == "cos_sim" else 1.0
    similarity = getattr(st.util, similarity)
    loss = theirs.MultipleNegativesRankingLoss(no_model, scale, similarity, **settings)
    x = columns(1 + documents, dtype=dtype)
    assert_same(NAME, RANKING, lambda: loss.compute_loss_from_embeddings(x, None), x)


@pytest.mark.parametrize("documents", [1, 3])
@pytest.mark.parametrize("settings", [{}, SYMMETRIC, *FURTHER[2:4]], ids=str)
def test_cached_ranking_loss(no_model, settings, documents):
    loss = theirs.CachedMultipleNegativesRankingLoss(no_model, 20.0, mini_batch_size=5, **settings)
    parts = [list(x.detach().split(5)) for x in columns(1 + documents)]
    leaves = [part.requires_grad_() for of_column in parts for part in of_column]
    assert_same(NAME, CACHED, lambda: loss.calculate_loss(parts), leaves)

    def backward():
        for leaf in leaves:
            leaf.grad = None
        value = loss.calculate_loss(parts, with_backward=True)
        assert not value.requires_grad
        return [value, *(leaf.grad for leaf in leaves)]

    want = backward()
    with counted(NAME, CACHED, None):
        got = backward()
    for ours, its in zip(got, want):
        torch.testing.assert_close(ours, its)


def test_deprecated_symmetric_classes(no_model):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loss = theirs.MultipleNegativesSymmetricRankingLoss(no_model)
        cached = theirs.CachedMultipleNegativesSymmetricRankingLoss(no_model)
    x = columns(2)
    assert_same(NAME, RANKING, lambda: loss.compute_loss_from_embeddings(x, None), x)
    assert_same(NAME, CACHED, lambda: cached.calculate_loss([[part] for part in x]), x)


def manhattan(a, b):
    return -torch.cdist(a, b, p=1)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"similarity_fct": manhattan}, "similarity_fct"),
        ({"similarity_fct": functools.partial(st.util.cos_sim)}, "similarity_fct"),
    ],
)
def test_ranking_settings_that_stay(no_model, cached, settings, reason):
    x = columns(3)
    if cached:
        loss, title = theirs.CachedMultipleNegativesRankingLoss(no_model, **settings), CACHED
        assert_same(NAME, title, lambda: loss.calculate_loss([[part] for part in x]), x, reason)
    else:
        loss, title = theirs.MultipleNegativesRankingLoss(no_model, **settings), RANKING
        assert_same(NAME, title, lambda: loss.compute_loss_from_embeddings(x, None), x, reason)
    report = fastpair.patch(NAME, loss)
    assert reason in report.kept[title]
    assert title not in report.replaced


def test_settings_that_change(no_model):
    """They decide at every call."""
    loss, x = theirs.MultipleNegativesRankingLoss(no_model), columns(2)
    assert_same(NAME, RANKING, lambda: loss.compute_loss_from_embeddings(x, None), x)
    loss.similarity_fct = manhattan
    assert_same(NAME, RANKING, lambda: loss.compute_loss_from_embeddings(x, None), x, "similarity_fct")
    loss.similarity_fct, loss.scale = st.util.cos_sim, 5.0
    assert_same(NAME, RANKING, lambda: loss.compute_loss_from_embeddings(x, None), x)


def test_attributes_stay(no_model):
    loss = theirs.MultipleNegativesRankingLoss(no_model, 10.0)
    cached = theirs.CachedMultipleNegativesRankingLoss(no_model, 10.0)
    triplets = theirs.BatchHardTripletLoss(no_model)

    def seen():
        return (
            [x.get_config_dict() for x in (loss, cached, triplets)],
            [x.citation for x in (loss, cached, triplets)],
            [x.state_dict() for x in (loss, cached, triplets)],
            (loss.temperature, cached.temperature, cached.scale),
        )

    before = seen()
    with fastpair.patch(NAME):
        assert seen() == before
        assert b"fastpair" not in pickle.dumps(loss)
        cached.scale = 4.0
        assert cached.loss.scale == 4.0
        with pytest.raises(ValueError, match="at least 2 embeddings"):
            loss.compute_loss_from_embeddings(columns(1), None)


# ---- triplets


def labelled(n=18, d=5, dtype=torch.float64, classes=4):
    labels = torch.cat([torch.arange(classes), torch.arange(classes), torch.randint(classes, (n - 2 * classes,))])
    return torch.randn(n, d, dtype=dtype).requires_grad_(), labels


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("distance", ["euclidean_distance", "cosine_distance", "eucledian_distance"])
@pytest.mark.parametrize("margin", [0.2, 5])
def test_triplet_losses(no_model, margin, distance, dtype):
    x, labels = labelled(dtype=dtype)
    distance = getattr(Distances, distance)
    hard = theirs.BatchHardTripletLoss(no_model, distance, margin)
    soft = theirs.BatchHardSoftMarginTripletLoss(no_model, distance)
    every = theirs.BatchAllTripletLoss(no_model, distance, margin)
    semi_hard = theirs.BatchSemiHardTripletLoss(no_model, distance, margin)
    for loss, title in ((hard, HARD), (soft, SOFT), (every, ALL), (semi_hard, SEMI_HARD)):
        assert_same(NAME, title, lambda loss=loss: loss.compute_loss_from_embeddings([x], labels[:, None]), [x])


@pytest.mark.parametrize("labels", [[0, 0, 1, 1, 2], [3, 3, 3, 3, 3], [0, 1, 2, 3, 4]], ids=["lone", "one", "distinct"])
def test_anchors_that_lack_pairs(no_model, labels):
    x, labels = labelled()[0][:5].detach().requires_grad_(), torch.tensor(labels)
    for loss, title in ((theirs.BatchHardTripletLoss, HARD), (theirs.BatchHardSoftMarginTripletLoss, SOFT)):
        loss = loss(no_model)
        assert_same(NAME, title, lambda loss=loss: loss.compute_loss_from_embeddings([x], labels), [x], "a label")
    every = theirs.BatchAllTripletLoss(no_model)
    assert_same(NAME, ALL, lambda: every.compute_loss_from_embeddings([x], labels), [x])
    semi_hard, reason = theirs.BatchSemiHardTripletLoss(no_model), None if labels.unique().numel() > 1 else "one label"
    assert_same(NAME, SEMI_HARD, lambda: semi_hard.compute_loss_from_embeddings([x], labels), [x], reason)


def test_triplet_settings_that_stay(no_model):
    x, labels = labelled()
    squared = functools.partial(Distances.euclidean_distance, squared=True)
    loss = theirs.BatchAllTripletLoss(no_model, squared)
    assert_same(NAME, ALL, lambda: loss.compute_loss_from_embeddings([x], labels), [x], "distance_metric")
    assert "distance_metric" in fastpair.patch(NAME, loss).kept[ALL]
    with fastpair.patch(NAME), pytest.raises(ValueError, match="expects 18 labels"):
        loss.compute_loss_from_embeddings([x], labels[1:])


def test_margins_that_learn(no_model):
    x, labels = labelled()
    margin = torch.tensor(0.5, requires_grad=True)
    for loss, title in ((theirs.BatchAllTripletLoss, ALL), (theirs.BatchHardTripletLoss, HARD)):
        loss = loss(no_model, margin=margin)

        def run(loss=loss):
            return loss.compute_loss_from_embeddings([x], labels)

        assert_same(NAME, title, run, [x, margin], "margin")


def test_what_differs(no_model):
    loss, (x, y) = theirs.MultipleNegativesRankingLoss(no_model), columns(2)
    with torch.no_grad():
        x[0] = 0

    def run():
        return loss.compute_loss_from_embeddings([x, y], None)

    assert torch.autograd.grad(run(), x)[0][0].norm() > 1e9, "of a length that is clamped"
    with fastpair.patch(NAME):
        (gradient,) = torch.autograd.grad(run(), x, create_graph=True)
        assert gradient[0].norm() == 0
        with pytest.raises(RuntimeError, match="differentiated once"):
            gradient.sum().backward()
        half = loss.compute_loss_from_embeddings([x.bfloat16(), y.bfloat16()], None)
    assert half.dtype == torch.float32


# ---- with a model


def test_losses_of_a_model(model):
    model.double()
    weights = [p for p in model.parameters() if p.requires_grad]
    pairs = features(model, 3)
    loss = theirs.MultipleNegativesRankingLoss(model)
    assert_same(NAME, RANKING, lambda: loss(copy.deepcopy(pairs), None), weights)
    labels = torch.arange(6).repeat(2)
    loss = theirs.BatchHardTripletLoss(model)
    assert_same(NAME, HARD, lambda: loss(copy.deepcopy(pairs[:1]), labels), weights)


def gradients(model, loss, inputs):
    model.zero_grad()
    value = loss(copy.deepcopy(inputs), None)
    value.backward()
    return [value.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_gradients_are_cached(model, dropout):
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = dropout
    model.train()
    loss = theirs.CachedMultipleNegativesRankingLoss(model, mini_batch_size=4)
    inputs = features(model, 3)
    torch.manual_seed(7)
    want = gradients(model, loss, inputs)
    embedded = []
    model.register_forward_hook(lambda module, arguments, output: embedded.append(len(output["sentence_embedding"])))
    torch.manual_seed(7)
    with counted(NAME, CACHED, None):
        got = gradients(model, loss, inputs)
    assert embedded == [4] * 18, "three columns of three mini-batches, twice"
    for ours, its in zip(got, want, strict=True):
        torch.testing.assert_close(ours, its, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("cached", [False, True])
def test_matryoshka(model, cached):
    """Calls a loss at several dimensions: a decorator of the method, or of the model."""
    inputs = features(model, 2)
    cls = theirs.CachedMultipleNegativesRankingLoss if cached else theirs.MultipleNegativesRankingLoss
    made_before = theirs.MatryoshkaLoss(model, cls(model), [16, 8])
    want = gradients(model, made_before, inputs)
    with counted(NAME, CACHED if cached else RANKING, None):
        made_inside = theirs.MatryoshkaLoss(model, cls(model), [16, 8])
        inside = gradients(model, made_inside, inputs)
        for ours, its in zip(inside, want, strict=True):
            torch.testing.assert_close(ours, its, rtol=1e-3, atol=1e-6)
    after = gradients(model, made_inside, inputs)
    assert all(map(torch.equal, after, want)), "it is the original again"


@pytest.mark.parametrize("name", ["MultipleNegativesRankingLoss", "CachedMultipleNegativesRankingLoss", "triplets"])
def test_training(model, name, tmp_path):
    start = copy.deepcopy(model.state_dict())

    def run():
        model.load_state_dict(start)
        loss = theirs.BatchAllTripletLoss(model) if name == "triplets" else getattr(theirs, name)(model)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        values = []
        for step in range(5):
            inputs = features(model, 1 if name == "triplets" else 2, seed=10 * step)
            value = loss(inputs, torch.arange(4).repeat(3))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        return values

    title = {"triplets": ALL, "CachedMultipleNegativesRankingLoss": CACHED}.get(name, RANKING)
    want = run()
    with counted(NAME, title, None):
        assert run() == pytest.approx(want, rel=1e-3)
        model.save(str(tmp_path / "saved"))
    again = st.SentenceTransformer(str(tmp_path / "saved"), device="cpu")
    torch.testing.assert_close(again.encode("a red cat"), model.encode("a red cat"))
