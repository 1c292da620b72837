"""Arguments that do not fit: the exception's type, and that its message names the argument."""

from functools import partial

import pytest
import torch
from support import BACKENDS, DTYPES, needs_cpu_kernels

import fastpair
import fastpair.functional as FP
from fastpair import retrieval
from fastpair.losses import ContrastiveLoss, CrossBatchMemory, LinearCrossEntropyLoss, PCELoss, SPCELoss, SupConLoss
from fastpair.ops import checks

X, Y = torch.ones(4, 3), torch.ones(5, 3)
LABELS, REF_LABELS = torch.arange(4), torch.arange(5)
W, P = torch.ones(6, 3), torch.full((4, 2), 0.5)
META = {"x": torch.ones(4, 3, device="meta"), "labels": torch.arange(4, device="meta")}

# What every function makes of embeddings and labels: the arguments (embeddings, labels, ...) and the message.
BATCHES = {
    "rank-1": ((X[0], LABELS), ValueError, "embeddings must"),
    "rank-3": ((X[None], LABELS), ValueError, "embeddings must"),
    "no-tensor": (([[1.0, 2.0]], LABELS), TypeError, "embeddings must"),
    "integers": ((X.long(), LABELS), TypeError, "embeddings must"),
    "complex": ((X.cfloat(), LABELS), TypeError, "embeddings must"),
    "labels-n": ((X, LABELS[:3]), ValueError, "labels must"),
    "labels-rank": ((X, LABELS[:, None]), ValueError, "labels must"),
    "labels-float": ((X, LABELS.float()), TypeError, "labels must"),
    "labels-bool": ((X, LABELS > 1), TypeError, "labels must"),
    "labels-list": ((X, [0, 1, 2, 3]), TypeError, "labels must"),
    "labels-None": ((X, None), TypeError, "labels must"),
    "labels-device": ((X, META["labels"]), ValueError, "labels must"),
}
FUNCTIONS = {
    "contrastive_loss": FP.contrastive_loss,
    "linear_cross_entropy": lambda z, y, **settings: FP.linear_cross_entropy(z, W, y, **settings),
    "spce_loss": FP.spce_loss,
    "pce_loss": lambda z, y, **settings: FP.pce_loss(z, y, P, lam=1.0, **settings),
}
each_backend = pytest.mark.parametrize("backend", BACKENDS)


@each_backend
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
@pytest.mark.parametrize(("arguments", "error", "message"), BATCHES.values(), ids=BATCHES.keys())
def test_batches(function, arguments, error, message, backend):
    with pytest.raises(error, match=message):
        function(*arguments, backend=backend)


@each_backend
@pytest.mark.parametrize("function", FUNCTIONS.values(), ids=FUNCTIONS.keys())
def test_reductions_and_backends(function, backend):
    for reduction in ("average", "", None, "MEAN"):
        with pytest.raises(ValueError, match="reduction must be one of"):
            function(X, LABELS, reduction=reduction, backend=backend)
    with pytest.raises(ValueError, match="backend must be one of"):
        function(X, LABELS, backend="gpu")


MIXED = {
    "pairs": (lambda x, y, **of: FP.supcon_loss(x, LABELS, y, REF_LABELS, **of), len(Y)),
    "mined": (lambda x, y, **of: FP.supcon_loss(x, None, y, indices_tuple=LISTED, **of), len(Y)),
    "views": (lambda x, y, **of: FP.info_nce_loss(x, y, **of), len(X)),
    "sigmoid": (lambda x, y, **of: FP.siglip_loss(x, y, **of), len(X)),
    "classes": (lambda x, w, **of: FP.arcface_loss(x, w, LABELS, **of), len(W)),
    "proxies": (lambda x, w, **of: FP.proxy_anchor_loss(x, w, LABELS, **of), len(W)),
    "linear": (lambda x, w, **of: FP.linear_cross_entropy(x, w, LABELS, **of), len(W)),
}
LISTED = tuple(torch.tensor(rows) for rows in ([0, 1], [1, 2], [0, 1], [3, 0]))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtypes", [("bfloat16", "float32"), ("float32", "float16"), ("float32", "float64")], ids=str)
@pytest.mark.parametrize("name", MIXED)
def test_mixed_dtypes(name, dtypes, backend):
    """As autocast leaves one side in half precision: the loss of both in the wider, gradients in the dtype of each."""
    loss, rows = MIXED[name]
    generator = torch.Generator().manual_seed(0)
    shapes = ((len(X), 3), (rows, 3))
    sides = [
        torch.randn(shape, generator=generator).to(DTYPES[of]).requires_grad_() for shape, of in zip(shapes, dtypes)
    ]
    wide = torch.promote_types(*(t.dtype for t in sides))
    widened = [t.detach().to(wide).requires_grad_() for t in sides]
    got, want = loss(*sides, backend=backend), loss(*widened, backend=backend)
    torch.testing.assert_close(got, want, rtol=0, atol=0)
    got.backward()
    want.backward()
    for narrow, t in zip(sides, widened):
        assert narrow.grad.dtype == narrow.dtype
        torch.testing.assert_close(narrow.grad, t.grad.to(narrow.dtype), rtol=0, atol=0)


def test_totals_are_of_one_side_of_pairs():
    calls = (
        *(lambda function=function: function(X, LABELS, reduction="totals") for function in FUNCTIONS.values()),
        lambda: FP.arcface_loss(X, W, LABELS, reduction="totals"),
        lambda: FP.center_loss(X, LABELS, W, reduction="totals"),
        lambda: FP.info_nce_loss(X, X, reduction="totals"),
    )
    assert calls[0]().shape == (4,)  # contrastive
    for call in calls[1:]:
        with pytest.raises(ValueError, match="reduction must be one of 'mean', 'sum', 'none', got 'totals'"):
            call()


def contrastive(**settings):
    return lambda backend: FP.contrastive_loss(X, LABELS, backend=backend, **settings)


def linear(*arguments, **settings):
    return lambda backend: FP.linear_cross_entropy(*arguments, backend=backend, **settings)


def pce(*arguments, **settings):
    return lambda backend: FP.pce_loss(*arguments, backend=backend, **settings)


def distances(*arguments, **settings):
    return lambda backend: FP.pairwise_distance(*arguments, backend=backend, **settings)


CALLS = {
    "refs-without-labels": (contrastive(ref_emb=Y), ValueError, "ref_labels must"),
    "ref-labels-without-refs": (contrastive(ref_labels=REF_LABELS), ValueError, "ref_emb must"),
    "refs-d": (contrastive(ref_emb=Y[:, :2], ref_labels=REF_LABELS), ValueError, "ref_emb must"),
    "refs-rank": (contrastive(ref_emb=Y[0], ref_labels=REF_LABELS), ValueError, "ref_emb must"),
    "refs-device": (contrastive(ref_emb=META["x"], ref_labels=META["labels"]), ValueError, "ref_emb must"),
    "ref-labels-m": (contrastive(ref_emb=Y, ref_labels=LABELS), ValueError, "ref_labels must"),
    "ref-labels-float": (contrastive(ref_emb=Y, ref_labels=REF_LABELS.float()), TypeError, "ref_labels must"),
    "distance": (contrastive(distance="manhattan"), ValueError, "distance must be one of"),
    "distance-None": (contrastive(distance=None), ValueError, "distance must be one of"),
    "power-3": (contrastive(power=3), ValueError, "power must"),
    "power-str": (contrastive(power="1"), ValueError, "power must"),
    "pos-margin-negative": (contrastive(pos_margin=-0.1), ValueError, "pos_margin must"),
    "neg-margin-negative": (contrastive(neg_margin=-0.1, distance="sqeuclidean"), ValueError, "neg_margin must"),
    "neg-margin-nan": (contrastive(neg_margin=float("nan")), ValueError, "neg_margin must"),
    "neg-margin-None": (contrastive(neg_margin=None), TypeError, "neg_margin must"),
    "pos-margin-str": (contrastive(pos_margin="1"), TypeError, "pos_margin must"),
    "weight-d": (linear(X, W[:, :2], LABELS), ValueError, "weight must"),
    "weight-rank": (linear(X, W[0], LABELS), ValueError, "weight must"),
    "weight-None": (linear(X, None, LABELS), TypeError, "weight must"),
    "weight-device": (linear(X, META["x"], LABELS), ValueError, "weight must"),
    "no-class": (linear(X, W[:0], LABELS), ValueError, "weight must"),
    "bias-K": (linear(X, W, LABELS, torch.ones(5)), ValueError, "bias must"),
    "bias-rank": (linear(X, W, LABELS, torch.ones(6, 1)), ValueError, "bias must"),
    "bias-dtype": (linear(X, W, LABELS, torch.ones(6, dtype=torch.float64)), TypeError, "bias must"),
    "bias-bool": (linear(X, W, LABELS, True), TypeError, "bias must"),
    "smoothing-below": (linear(X, W, LABELS, label_smoothing=-0.1), ValueError, "label_smoothing must"),
    "smoothing-above": (linear(X, W, LABELS, label_smoothing=1.5), ValueError, "label_smoothing must"),
    "smoothing-nan": (linear(X, W, LABELS, label_smoothing=float("nan")), ValueError, "label_smoothing must"),
    "smoothing-str": (linear(X, W, LABELS, label_smoothing="a"), TypeError, "label_smoothing must"),
    "ignore-index-float": (linear(X, W, LABELS, ignore_index=0.5), TypeError, "ignore_index must"),
    "ignore-index-huge": (linear(X, W, LABELS, ignore_index=2**70), ValueError, "ignore_index must fit 64 bits"),
    "label-K": (linear(X, W, LABELS + 3), (ValueError, RuntimeError), "labels must lie"),
    "label-negative": (linear(X, W, LABELS - 1), (ValueError, RuntimeError), "labels must lie"),
    "probabilities-n": (pce(X, LABELS, P[:3], lam=1.0), ValueError, "probabilities must"),
    "probabilities-K": (pce(X, LABELS, P[:, :0], lam=1.0), ValueError, "probabilities must"),
    "probabilities-rank": (pce(X, LABELS, P[0], lam=1.0), ValueError, "probabilities must"),
    "probabilities-None": (pce(X, LABELS, None, lam=1.0), TypeError, "probabilities must"),
    "probabilities-device": (pce(X, LABELS, META["x"], lam=1.0), ValueError, "probabilities must"),
    "lam-0": (pce(X, LABELS, P, lam=0.0), ValueError, "lam must"),
    "lam-negative": (pce(X, LABELS, P, lam=-1.0), ValueError, "lam must"),
    "lam-inf": (pce(X, LABELS, P, lam=float("inf")), ValueError, "lam must"),
    "lam-nan": (pce(X, LABELS, P, lam=float("nan")), ValueError, "lam must"),
    "lam-str": (pce(X, LABELS, P, lam="1"), TypeError, "lam must"),
    "lam-default-small-batch": (pce(X[:3], LABELS[:3], P[:3]), ValueError, "lam must"),
    "lam-default-flat": (pce(X, LABELS, P), ValueError, "lam must"),
    "x-rank": (distances(X[0]), ValueError, "x must"),
    "x-integers": (distances(X.int()), TypeError, "x must"),
    "y-d": (distances(X, Y[:, :2]), ValueError, "y must"),
    "y-dtype": (distances(X, Y.double()), TypeError, "y must"),
    "y-device": (distances(X, META["x"]), ValueError, "y must"),
    "y-list": (distances(X, [1.0]), TypeError, "y must"),
    "metric": (distances(X, Y, metric="hamming"), ValueError, "metric must be one of"),
}


@each_backend
@pytest.mark.parametrize(("call", "error", "message"), CALLS.values(), ids=CALLS.keys())
def test_calls(call, error, message, backend):
    with pytest.raises(error, match=message):
        call(backend)


MODULES = {
    "distance": (lambda: ContrastiveLoss(distance="l1"), ValueError, "distance must"),
    "reduction": (lambda: ContrastiveLoss(reduction="avg"), ValueError, "reduction must"),
    "power": (lambda: ContrastiveLoss(power=0), ValueError, "power must"),
    "margin": (lambda: ContrastiveLoss(neg_margin=-1.0), ValueError, "neg_margin must"),
    "num_classes": (lambda: LinearCrossEntropyLoss(0, 3), ValueError, "num_classes must"),
    "embedding_size": (lambda: LinearCrossEntropyLoss(3, 0), ValueError, "embedding_size must"),
    "smoothing": (lambda: LinearCrossEntropyLoss(3, 4, label_smoothing=2), ValueError, "label_smoothing must"),
    "linear-reduction": (lambda: LinearCrossEntropyLoss(3, 4, reduction="x"), ValueError, "reduction must"),
    "spce-reduction": (lambda: SPCELoss("x"), ValueError, "reduction must"),
    "pce-reduction": (lambda: PCELoss(reduction="x"), ValueError, "reduction must"),
    "pce-lam": (lambda: PCELoss(lam=-1), ValueError, "lam must"),
    "pairwise": (lambda: fastpair.distance.PairwiseDistance("l1"), ValueError, "metric must"),
    "one-tensor-of-references": (lambda: ContrastiveLoss()(X, LABELS, ref_emb=Y), ValueError, "ref_labels must"),
}


@pytest.mark.parametrize(("call", "error", "message"), MODULES.values(), ids=MODULES.keys())
def test_modules(call, error, message):
    with pytest.raises(error, match=message):
        call()


RETRIEVAL = {
    "query-rank": (lambda: retrieval.nearest_neighbors(X[0]), ValueError, "query must"),
    "gallery-d": (lambda: retrieval.nearest_neighbors(X, Y[:, :2]), ValueError, "gallery must"),
    "gallery-dtype": (lambda: retrieval.nearest_neighbors(X, Y.double()), TypeError, "gallery must"),
    "k-0": (lambda: retrieval.nearest_neighbors(X, k=0), ValueError, "k must"),
    "k-n": (lambda: retrieval.nearest_neighbors(X, k=4), ValueError, "k must"),
    "k-above-m": (lambda: retrieval.nearest_neighbors(X, Y, k=6), ValueError, "k must"),
    "alone": (lambda: retrieval.nearest_neighbors(X[:1]), ValueError, "k must"),
    "empty-gallery": (lambda: retrieval.nearest_neighbors(X, Y[:0]), ValueError, "k must"),
    "metric": (lambda: retrieval.nearest_neighbors(X, metric="l1"), ValueError, "metric must"),
    "recall-k": (lambda: retrieval.recall_at_k(X, LABELS % 2, k=(1, 0)), ValueError, "k must"),
    "recall-no-k": (lambda: retrieval.recall_at_k(X, LABELS % 2, k=()), ValueError, "k must"),
    "query-labels": (lambda: retrieval.recall_at_k(X, LABELS[:2]), ValueError, "query_labels must"),
    "query-labels-float": (lambda: retrieval.map_at_r(X, LABELS.float()), TypeError, "query_labels must"),
    "gallery-alone": (lambda: retrieval.map_at_r(X, LABELS, Y), ValueError, "gallery_labels must"),
    "gallery-labels-alone": (
        lambda: retrieval.map_at_r(X, LABELS, gallery_labels=REF_LABELS),
        ValueError,
        "gallery must",
    ),
    "gallery-labels-m": (lambda: retrieval.map_at_r(X, LABELS, Y, LABELS), ValueError, "gallery_labels must"),
    "no-common-class": (lambda: retrieval.map_at_r(X, LABELS), ValueError, "query_labels must"),
    "no-queries": (lambda: retrieval.recall_at_k(X[:0], LABELS[:0]), ValueError, "query_labels must"),
}


@pytest.mark.parametrize(("call", "error", "message"), RETRIEVAL.values(), ids=RETRIEVAL.keys())
def test_retrieval(call, error, message):
    with pytest.raises(error, match=message):
        call()


@each_backend
def test_no_dimensions(backend):
    """Embeddings without a column are all equal, or refused: nothing is read from memory that nobody wrote."""
    z = torch.ones(3, 0)
    calls = {
        "x": (lambda: FP.pairwise_distance(z, metric="dot", backend=backend), torch.zeros(3, 3)),
        "embeddings": (
            lambda: FP.linear_cross_entropy(z, torch.ones(5, 0), torch.arange(3), backend=backend),
            torch.tensor(5.0).log(),
        ),
    }
    for name, (call, want) in calls.items():
        try:
            got = call()
        except ValueError as refusal:
            got, want = str(refusal)[: len(name)], name
        assert got == want if isinstance(got, str) else torch.allclose(got, want)


SPARSE, TRIPLE = X.to_sparse(), (LABELS, LABELS, LABELS)
UNREADABLE = {
    "huge-margin": (lambda: FP.triplet_margin_loss(X, LABELS, margin=10**400), ValueError, "margin must"),
    "huge-m": (lambda: FP.circle_loss(X, LABELS, m=-(10**400)), ValueError, "m must"),
    "no-inverse": (lambda: FP.supcon_loss(X, LABELS, temperature=1e-310), ValueError, "temperature must"),
    "no-float32": (lambda: FP.cosface_loss(X, W, LABELS, scale=1e39), ValueError, "scale must"),
    "numpy": (lambda: FP.info_nce_loss(X, X.numpy()), TypeError, "ref_emb must"),
    "list": (lambda: FP.siglip_loss(X, X.tolist()), TypeError, "ref_emb must"),
    "none": (lambda: FP.info_nce_loss(X, None), TypeError, "ref_emb must"),
    "sparse": (lambda: FP.supcon_loss(SPARSE, LABELS), TypeError, "embeddings must be a dense tensor"),
    "sparse-labels": (lambda: FP.spce_loss(X, LABELS.to_sparse()), TypeError, "labels must be a dense tensor"),
    "sparse-p": (lambda: FP.pce_loss(X, LABELS, P.to_sparse(), lam=1.0), TypeError, "probabilities must be a dense"),
    "sparse-centers": (lambda: FP.center_loss(X, LABELS, W.to_sparse()), TypeError, "centers must be a dense tensor"),
    "sparse-query": (lambda: retrieval.recall_at_k(SPARSE, LABELS), TypeError, "query must be a dense tensor"),
    "mkldnn": (lambda: FP.pairwise_distance(X.to_mkldnn()), TypeError, "x must be a dense tensor"),
    "nested": (
        lambda: FP.supcon_loss(torch.nested.nested_tensor([X, X], layout=torch.jagged), LABELS),
        TypeError,
        "embeddings must be a dense tensor",
    ),
    "list-reduction": (lambda: FP.supcon_loss(X, LABELS, reduction=["mean"]), ValueError, "reduction must"),
    "list-backend": (lambda: FP.supcon_loss(X, LABELS, backend=["cpu"]), ValueError, "backend must"),
    "list-triplets": (
        lambda: FP.triplet_margin_loss(X, LABELS, triplets_per_anchor=["hard"]),
        ValueError,
        "triplets_per_anchor must",
    ),
    "dict-use-backend": (lambda: fastpair.use_backend({}).__enter__(), ValueError, "backend must"),
    "k-string": (lambda: retrieval.recall_at_k(X, LABELS, k="12"), ValueError, "k must"),
    "k-strings": (lambda: retrieval.recall_at_k(X, LABELS, k=["1"]), ValueError, "k must"),
    "k-fraction": (lambda: retrieval.nearest_neighbors(X, k=1.5), TypeError, "k must"),
    "class": (
        lambda: FP.linear_cross_entropy(X, W, LABELS + 4),
        ValueError,
        r"labels must lie in \[0, 6\) or be ignore_index = -100, got 6 at position 2",
    ),
    # Losses on cosines have no ignore_index.
    "class-100": (lambda: FP.arcface_loss(X, W, LABELS - 100), ValueError, r"labels must lie in \[0, 6\), got -100"),
    "proxy-100": (lambda: FP.proxy_nca_loss(X, W, LABELS - 100), ValueError, r"labels must lie in \[0, 6\), got -100"),
    "listed-labels": (lambda: FP.supcon_loss(X, "junk", indices_tuple=TRIPLE), TypeError, "labels must"),
    "listed-refs": (lambda: FP.supcon_loss(X, None, None, LABELS, indices_tuple=TRIPLE), ValueError, "ref_emb must"),
    "listed-self": (
        lambda: FP.supcon_loss(X, None, indices_tuple=TRIPLE, exclude_self=True),
        ValueError,
        "exclude_self must",
    ),
    "listed-backend": (lambda: FP.supcon_loss(X, None, indices_tuple=TRIPLE, backend="b"), ValueError, "backend must"),
    "memory-of-another": (lambda: CrossBatchMemory(torch.nn.CosineEmbeddingLoss(), 3), TypeError, "loss must"),
}


@pytest.mark.parametrize(("call", "error", "message"), UNREADABLE.values(), ids=UNREADABLE.keys())
def test_what_kernels_cannot_read(call, error, message):
    with pytest.raises(error, match=message) as caught:
        call()
    assert "csrc" not in str(caught.value)


def test_a_refused_batch_leaves_the_memory_as_it_was():
    memory = CrossBatchMemory(SupConLoss(), 3, 8)
    with pytest.raises(ValueError, match=r"indices_tuple\[0\] must hold rows"):
        memory(X, LABELS, (LABELS + 9, LABELS, LABELS))
    with pytest.raises(TypeError, match="enqueue_mask must be a tensor of booleans, got list"):
        memory(X, LABELS, enqueue_mask=[True] * 4)
    assert memory.filled == memory.queue_idx == 0


@needs_cpu_kernels
def test_transforms_of_torch_func():
    def loss(x, backend=None):
        return FP.supcon_loss(x, LABELS % 2, backend=backend) + FP.pairwise_distance(x, backend=backend).sum()

    x = torch.randn(4, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for transformed in (torch.func.grad(loss), torch.func.jacrev(loss)):
        with pytest.raises(RuntimeError, match="fastpair's kernels do not run inside the transforms of torch.func"):
            transformed(x)
    leaf = x.clone().requires_grad_()
    (want,) = torch.autograd.grad(loss(leaf), leaf)
    torch.testing.assert_close(torch.func.grad(loss)(x, "reference"), want)


def test_the_default_dtype_decides_nothing():
    x = torch.randn(12, 5, generator=torch.Generator().manual_seed(0))
    labels, weight = torch.arange(12) // 2, torch.randn(6, 5, generator=torch.Generator().manual_seed(1))
    triplets = (labels, labels + 1, labels + 2)
    calls = [
        *(partial(FP.contrastive_loss, x, labels, reduction=reduction) for reduction in ("mean", "totals")),
        *(partial(FP.supcon_loss, x, labels, backend=backend) for backend in BACKENDS),
        partial(FP.triplet_margin_loss, x, None, indices_tuple=triplets),
        partial(FP.siglip_loss, x, x.flip(0)),
        partial(FP.arcface_loss, x, weight, labels),
        partial(FP.spce_loss, x, labels),
        partial(FP.pce_loss, x, labels, torch.ones(12, 2) / 2, lam=0.1),
        lambda: torch.tensor(list(retrieval.recall_at_k(x, labels).values()), dtype=torch.float64),
        lambda: torch.tensor(retrieval.map_at_r(x.requires_grad_(), labels), dtype=torch.float64),
    ]
    want = [call() for call in calls]
    torch.set_default_dtype(torch.bfloat16)
    try:
        got = [call() for call in calls]
    finally:
        torch.set_default_dtype(torch.float32)
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_export_with_any_number_of_rows():
    class Model(torch.nn.Module):
        def forward(self, x, labels):
            return FP.supcon_loss(x, labels) + FP.pairwise_distance(x).sum() + FP.linear_cross_entropy(x, x, labels)

    rows = torch.export.Dim("rows")
    program = torch.export.export(Model(), (X, LABELS), dynamic_shapes=({0: rows}, {0: rows})).module()
    x, labels = torch.randn(1100, 3, generator=torch.Generator().manual_seed(0)), torch.arange(1100) // 2
    torch.testing.assert_close(program(x, labels), Model()(x, labels))


def test_labels_on_another_device_are_moved():
    """As data loaders leave them. The device that every machine has beside the CPU holds no data."""
    rows, labels = torch.empty(3, 2, device="meta"), torch.arange(3)
    moved, again, none = checks.beside(rows, labels, labels, None)
    assert moved is again and moved.device == rows.device and none is None
    assert checks.beside(torch.empty(3, 2), labels)[0] is labels
