"""What InfoNCE takes beside two views: against formulas of dense logits."""

import pytest
import torch
import torch.nn.functional as F
from info_nce_cases import BIAS, CASES, REPEATED, D, N, T, closeness, differentiated, expected, views
from support import BACKENDS, METRICS

import fastpair.functional as FP
from fastpair.losses import InfoNCELoss
from fastpair.losses.info_nce import DIRECTIONS


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", CASES)
def test_losses_and_gradients(name, backend):
    m, settings = CASES[name]
    x, y, temperature, settings = views(m, **settings)
    more = [settings.pop("hard_negatives")] if "hard_negatives" in settings else []

    def of(function, **further):
        def run(x, y, temperature, *more):
            of_queries = {"hard_negatives": more[0]} if more else {}
            return function(x, y, temperature=temperature, **settings, **of_queries, **further)

        return differentiated(run, x, y, temperature, *more)

    of_ours = {"reduction": "none", "backend": backend}
    if "directions" not in settings:
        of_ours["symmetric"] = False
    for got, want in zip(of(FP.info_nce_loss, **of_ours), of(expected)):
        torch.testing.assert_close(got, want, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("name", ["documents", "joint", "in-batch", "ids", "private"])
def test_reductions_and_weights(name):
    m, settings = CASES[name]
    x, y, _, settings = views(m, **settings)
    settings |= {"temperature": T, "symmetric": False}
    weights = torch.linspace(0, 2, N, dtype=torch.float64)
    each = FP.info_nce_loss(x, y, reduction="none", **settings)
    torch.testing.assert_close(FP.info_nce_loss(x, y, **settings), each.mean())
    torch.testing.assert_close(FP.info_nce_loss(x, y, reduction="sum", **settings), each.sum())
    weighted = FP.info_nce_loss(x, y, weights=weights, **settings)
    torch.testing.assert_close(weighted, (weights * each).sum() / weights.sum())
    if "directions" not in settings:
        total = FP.info_nce_loss(x, y, reduction="totals", weights=weights, **settings)
        torch.testing.assert_close(total[:2], torch.stack([(weights * each).sum(), weights.sum()]))


def test_several_positives():
    x, y, temperature, _ = views(2 * N)
    pairs = torch.randint(-1, 2, (N, 2 * N), generator=torch.Generator().manual_seed(3))
    pairs[:, 0] = 1

    def dense(x, y, temperature, pairs=pairs):
        logits = closeness(x, y, "cosine") / temperature
        below = torch.where(pairs != 0, logits, -torch.inf).logsumexp(1)
        losses = below - torch.where(pairs > 0, logits, 0).sum(1) / (pairs > 0).sum(1).clamp(min=1)
        return torch.where((pairs > 0).any(1), losses, 0)

    def both(x, y, temperature):
        columns = (pairs > 0).any(0).sum()
        return (dense(x, y, temperature).mean() + dense(y, x, temperature, pairs.T).sum() / columns) / 2

    settings = {"pairs": pairs, "reduction": "none", "symmetric": False}
    got = differentiated(lambda x, y, t: FP.info_nce_loss(x, y, temperature=t, **settings), x, y, temperature)
    for a, b in zip(got, differentiated(dense, x, y, temperature)):
        torch.testing.assert_close(a, b)
    got = differentiated(lambda x, y, t: FP.info_nce_loss(x, y, temperature=t, pairs=pairs), x, y, temperature)
    for a, b in zip(got, differentiated(both, x, y, temperature)):
        torch.testing.assert_close(a, b)


@pytest.mark.parametrize("distance", METRICS)
@pytest.mark.parametrize("references", [False, True])
def test_row_logsumexp(distance, references):
    x, y, temperature, _ = views(2 * N)
    ids = torch.arange(N) // 2
    of_y = {"ref_ids": torch.arange(2 * N) // 2, "ref_bias": BIAS[: 2 * N]} if references else {}

    def dense(x, y, temperature):
        logits = closeness(x, y if references else x, distance) / temperature
        other = of_y.get("ref_ids", ids)
        return (
            torch.where(ids[:, None] == other, -torch.inf, logits + of_y.get("ref_bias", 0)).logsumexp(1) + 0 * y.sum()
        )

    def ours(x, y, temperature):
        sides = (x, y) if references else (x,)
        z = FP.row_logsumexp(*sides, temperature=temperature, distance=distance, ids=ids, **of_y)
        return z + 0 * y.sum()

    for got, want in zip(differentiated(ours, x, y, temperature), differentiated(dense, x, y, temperature)):
        torch.testing.assert_close(got, want)


def test_row_logsumexp_of_chosen_pairs():
    x, y, _, _ = views(2 * N)
    pairs = torch.rand(N, 2 * N, generator=torch.Generator().manual_seed(4)) < 0.4
    pairs[2] = False
    got = differentiated(lambda x, y: FP.row_logsumexp(x, y, pairs=pairs)[torch.arange(N) != 2], x, y)
    want = differentiated(
        lambda x, y: torch.where(pairs, closeness(x, y, "cosine"), -torch.inf)[torch.arange(N) != 2].logsumexp(1), x, y
    )
    for a, b in zip(got, want):
        torch.testing.assert_close(a, b)
    assert FP.row_logsumexp(x, y, pairs=pairs)[2] == -torch.inf
    torch.testing.assert_close(FP.row_logsumexp(x, exclude_self=False), closeness(x, x, "cosine").logsumexp(1))


def test_sigmoid_of_several_positives():
    x, y, scale, _ = views(2 * N)
    pairs = torch.randint(-1, 2, (N, 2 * N), generator=torch.Generator().manual_seed(5))
    bias = torch.tensor(-0.7, dtype=torch.float64)

    def dense(x, y, scale, bias):
        logits = closeness(x, y, "dot") * scale + bias
        return torch.where(pairs != 0, F.softplus(-pairs * logits), 0).sum(1)

    settings = {"distance": "dot", "pairs": pairs, "reduction": "none"}
    got = differentiated(lambda *of: FP.siglip_loss(*of, **settings), x, y, scale, bias)
    for a, b in zip(got, differentiated(dense, x, y, scale, bias)):
        torch.testing.assert_close(a, b)


def test_one_direction_without_negatives():
    x, y, _, _ = views(3)
    x, y = x[:1], y
    got = FP.info_nce_loss(x, y, temperature=T, decoupled=True)
    s = closeness(x, y, "cosine")[0] / T
    torch.testing.assert_close(got, (s[1:].logsumexp(0) - s[0]) / 2)


@pytest.mark.parametrize("shape", [(), (1,), (1, 1)], ids=str)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("settings", [{}, {"decoupled": True}, {"debias": 0.3}, {"label_smoothing": 0.1}], ids=str)
def test_temperatures_of_any_dtype(settings, dtype, shape):
    """One that is in half precision is as exact as its own rounding."""
    x, y, _, _ = views(N)
    x, y = x.float(), y.float()
    temperature = torch.full(shape, T, dtype=dtype, requires_grad=True)
    value = FP.info_nce_loss(x, y, temperature=temperature, reduction="none", **settings)
    want = FP.info_nce_loss(x, y, temperature=float(temperature.detach()), reduction="none", **settings)
    assert value.dtype == torch.float32
    torch.testing.assert_close(value, want, rtol=1e-6, atol=1e-6)
    value.sum().backward()
    assert temperature.grad.shape == shape and temperature.grad.dtype == dtype


def test_a_locked_tower_gets_no_gradient():
    x, y, _, _ = views(N)
    y.requires_grad_()
    FP.info_nce_loss(x, y, directions=DIRECTIONS, partition_mode="joint").backward()
    assert x.grad is None and y.grad is not None


@pytest.mark.parametrize("settings", [{"decoupled": True}, {"directions": DIRECTIONS, "partition_mode": "joint"}])
@pytest.mark.parametrize("n", [0, 1])
def test_no_negatives(n, settings):
    x, y = (torch.randn(n, D).requires_grad_() for _ in range(2))
    value = FP.info_nce_loss(x, y, **settings)
    value.backward()
    assert value.isfinite() and x.grad.isfinite().all() and y.grad.isfinite().all()
    assert value == 0 or not settings.get("decoupled")


def test_module():
    m, settings = CASES["joint-more"]
    x, y, _, _ = views(m)
    loss = InfoNCELoss(T, learn_temperature=True, **settings)
    value = loss(x, y, ids=REPEATED["ids"], ref_ids=REPEATED["ref_ids"])
    torch.testing.assert_close(
        value,
        FP.info_nce_loss(x, y, temperature=T, ids=REPEATED["ids"], ref_ids=REPEATED["ref_ids"], **settings),
        rtol=1e-6,
        atol=1e-6,
    )
    value.backward()
    assert loss.log_temperature.grad.abs() > 0
    assert "partition_mode='joint'" in repr(loss) and "debias" not in repr(loss)


X = torch.randn(4, 3)
ERRORS = {
    "directions": (lambda: FP.info_nce_loss(X, X, directions=("doc_to_query",)), "directions must be"),
    "word": (lambda: FP.info_nce_loss(X, X, directions="query_to_doc"), "directions must be"),
    "mode": (lambda: FP.info_nce_loss(X, X, partition_mode="all"), "partition_mode must be"),
    "hardness": (lambda: FP.info_nce_loss(X, X, hardness_mode="hard"), "hardness_mode must be"),
    "debias": (lambda: FP.info_nce_loss(X, X, debias=1.0), "debias must be below 1"),
    "twice": (lambda: FP.info_nce_loss(X, X, directions=("query_to_doc",) * 2), "each once"),
    "number": (lambda: FP.info_nce_loss(X, X, directions=5), "directions must be"),
    "strength": (lambda: FP.info_nce_loss(X, X, hardness_strength=2.0), "hardness_mode must be given"),
    "debias-dot": (lambda: FP.info_nce_loss(X, X, debias=0.1, distance="dot"), "distance must be 'cosine'"),
    "smooth-more": (lambda: FP.info_nce_loss(X, X, label_smoothing=0.1, decoupled=True), "label_smoothing must be 0"),
    "both": (lambda: InfoNCELoss(torch.ones(()), learn_temperature=True), "temperature must be a number"),
    "module-totals": (lambda: InfoNCELoss(reduction="totals"), "got 'totals'"),
    "counted": (lambda: FP.info_nce_loss(X, X, debias=0.1, ids=torch.arange(4)), "debias must be 0"),
    "smooth": (
        lambda: FP.info_nce_loss(X, X, label_smoothing=0.1, partition_mode="joint"),
        "label_smoothing must be 0",
    ),
    "smooth-distance": (lambda: FP.info_nce_loss(X, X, label_smoothing=0.1, distance="euclidean"), "distance must be"),
    "few": (lambda: FP.info_nce_loss(X, X[:3], decoupled=True), "ref_emb must have 4 rows or more"),
    "owners": (lambda: FP.info_nce_loss(X, X.repeat(2, 1)[:6], directions=DIRECTIONS), "multiple of 4 rows"),
    "private": (lambda: FP.info_nce_loss(X, X, hard_negatives=X), "hard_negatives must be"),
    "pairs": (lambda: FP.info_nce_loss(X, X, pairs=torch.ones(4, 4), decoupled=True), "pairs must be None"),
    "ids": (lambda: FP.info_nce_loss(X, X.repeat(2, 1), ids=torch.arange(4)), "ref_ids must be given"),
    "ref_ids": (lambda: FP.info_nce_loss(X, X, ref_ids=torch.arange(4)), "ids must be given"),
    "totals": (lambda: FP.info_nce_loss(X, X, reduction="totals"), "got 'totals'"),
}


@pytest.mark.parametrize("name", ERRORS)
def test_errors(name):
    call, message = ERRORS[name]
    with pytest.raises(ValueError, match=message):
        call()
