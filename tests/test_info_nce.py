"""What InfoNCE takes beside two views: against formulas of dense logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from support import BACKENDS, METRICS

import fastpair.functional as FP
from fastpair.losses import InfoNCELoss
from fastpair.losses.info_nce import DIRECTIONS

T = 0.3


def closeness(x, y, distance):
    if distance.startswith("unit_") or distance == "cosine":
        x, y = F.normalize(x, dim=1), F.normalize(y, dim=1)
    if distance in ("cosine", "dot"):
        return x @ y.T
    squared = (x[:, None] - y[None]).square().sum(2)
    return (
        -squared if distance.endswith("sqeuclidean") else -torch.where(squared > 0, squared, 1).sqrt() * (squared > 0)
    )


def expected(
    x, y, *, temperature=T, distance="cosine", directions=DIRECTIONS[:1], partition_mode="per_direction",
    hardness_mode=None, hardness_strength=0.0, decoupled=False, ignore_above=None, label_smoothing=0.0, debias=0.0,
    positive_sigma=None, hard_negatives=None, ids=None, ref_ids=None, ref_bias=None,
):  # fmt: skip
    """The losses of the queries, one row of logits after the other."""
    n = len(x)
    ref_ids = ids if ref_ids is None and ids is not None else ref_ids
    qd, qq, dd = (closeness(*sides, distance) for sides in ((x, y), (x, x), (y, y)))
    losses = []
    for i in range(n):
        own, limit = qd[i, i], math.inf if ignore_above is None else float(qd[i, i].detach()) + ignore_above
        columns = {}
        for name in directions:
            scores, mine, theirs = {
                "query_to_doc": (qd[i], ids, ref_ids),
                "doc_to_query": (qd[:, i], ref_ids, ids),
                "query_to_query": (qq[i], ids, ids),
                "doc_to_doc": (dd[i], ref_ids, ref_ids),
            }[name]
            logits = []
            for j, s in enumerate(scores):
                same = j % n == i if name == "doc_to_doc" else j == i
                if same or float(s.detach()) > limit or (mine is not None and mine[i] == theirs[j]):
                    continue
                logit = s / temperature
                if name == "query_to_doc":
                    of_own = j % n == i
                    hardened = {None: False, "in_batch_negatives": not of_own, "hard_negatives": of_own}
                    if hardened.get(hardness_mode, True):
                        logit = logit + hardness_strength * s.detach()
                    if ref_bias is not None:
                        logit = logit + ref_bias[j]
                logits.append(logit)
            if name == "query_to_doc" and hard_negatives is not None:
                for row in hard_negatives[i]:
                    s = closeness(x[i : i + 1], row[None], distance)[0, 0]
                    if float(s.detach()) <= limit:
                        hardened = hardness_mode in ("hard_negatives", "all_negatives")
                        logits.append(s / temperature + hardness_strength * s.detach() * hardened)
            if debias and logits:
                terms = torch.stack(logits).exp()
                estimate = (terms.sum() - debias * len(logits) * (own / temperature).exp()) / (1 - debias)
                logits = [torch.maximum(estimate, len(logits) * (-1 / temperature).exp()).log()]
            if name in DIRECTIONS[:2] and not decoupled:
                logits.append(own / temperature)
            columns[name] = logits
        if partition_mode == "joint":
            columns = {"query_to_doc": [logit for of in columns.values() for logit in of]}
        parts = []
        for name, logits in columns.items():
            part = torch.stack(logits).logsumexp(0) - own / temperature
            if label_smoothing:
                scores = qd[i] if name == "query_to_doc" else qd[:, i]
                part = part + label_smoothing * (own - scores.mean()) / temperature
            parts.append(part)
        losses.append(sum(parts) / len(parts))
    losses = torch.stack(losses)
    if positive_sigma is not None:
        shares = (qd.diagonal().detach() / positive_sigma).exp()
        # The positive score comes with a weight in place of 1.
        losses = losses + (1 - (2 - n * shares / shares.sum())) * qd.diagonal() / temperature
    return losses


N, D = 7, 5
BIAS = torch.linspace(-1, 1, 3 * N, dtype=torch.float64)
REPEATED = {"ids": torch.tensor([0, 1, 2, 0, 4, 5, 1]), "ref_ids": torch.tensor([0, 1, 2, 0, 4, 5, 1] + [4, 9] * N)}
CASES = {
    "documents": (3 * N, {}),
    "both": (N, {"directions": DIRECTIONS[:2]}),
    "both-more": (2 * N, {"directions": DIRECTIONS[:2]}),
    "joint": (N, {"directions": DIRECTIONS, "partition_mode": "joint"}),
    "joint-more": (3 * N, {"directions": DIRECTIONS, "partition_mode": "joint"}),
    "joint-euclidean": (N, {"directions": DIRECTIONS, "partition_mode": "joint", "distance": "euclidean"}),
    "each": (2 * N, {"directions": DIRECTIONS}),
    "in-batch": (3 * N, {"hardness_mode": "in_batch_negatives", "hardness_strength": 3.0}),
    "hard": (3 * N, {"hardness_mode": "hard_negatives", "hardness_strength": 3.0}),
    "all": (3 * N, {"hardness_mode": "all_negatives", "hardness_strength": 3.0}),
    "all-joint": (N, {"hardness_mode": "all_negatives", "hardness_strength": 3.0, "directions": DIRECTIONS,
                      "partition_mode": "joint"}),
    "decoupled": (N, {"decoupled": True, "directions": DIRECTIONS[:2]}),
    "dclw": (N, {"decoupled": True, "directions": DIRECTIONS[:2], "positive_sigma": 0.5}),
    "ignore": (3 * N, {"ignore_above": -0.1}),
    "ignore-joint": (N, {"ignore_above": 0.05, "directions": DIRECTIONS, "partition_mode": "joint"}),
    "smooth": (3 * N, {"label_smoothing": 0.2}),
    "smooth-both": (N, {"label_smoothing": 0.2, "directions": DIRECTIONS[:2], "distance": "dot"}),
    "debias": (3 * N, {"debias": 0.1}),
    "debias-more": (2 * N, {"debias": 0.4, "directions": DIRECTIONS[:2]}),
    "ids": (3 * N, REPEATED),
    "ids-joint": (N, {"ids": REPEATED["ids"], "directions": DIRECTIONS, "partition_mode": "joint"}),
    "bias": (3 * N, {"ref_bias": BIAS}),
    "private": (2 * N, {"hard_negatives": True}),
    "private-hard": (2 * N, {"hard_negatives": True, "hardness_mode": "hard_negatives", "hardness_strength": 2.0}),
    "private-ignore": (N, {"hard_negatives": True, "ignore_above": 0.0, "distance": "sqeuclidean"}),
}  # fmt: skip


def views(m, seed=0, **settings):
    generator = torch.Generator().manual_seed(seed)
    x, y, more = (
        torch.randn(*shape, generator=generator, dtype=torch.float64) for shape in ((N, D), (m, D), (N, 3, D))
    )
    if "hard_negatives" in settings:
        settings["hard_negatives"] = more
    return x, y, torch.tensor(T, dtype=torch.float64), settings


def differentiated(run, *inputs):
    leaves = [t.detach().clone().requires_grad_() for t in inputs]
    value = run(*leaves)
    weights = torch.linspace(0.5, 1.5, value.numel(), dtype=value.dtype).view(value.shape)
    return value.detach(), *torch.autograd.grad(value, leaves, weights)


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
