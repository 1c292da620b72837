"""A seeded fuzzer of the public functions: ``python tests/fuzz.py --calls 5000 --seed 1``.

Three calls in four are legal: sizes, strides, dtypes, labels, settings and values drawn over wide ranges. Truth is the
reference in float64 on the same rounded inputs. A kernel may be wrong by twice what the reference is in the dtype of
the inputs, by a few changes of the truth when the inputs move by one rounding, or by some tens of eps. The others have
one argument that is no good, and must raise an exception that names it.

Calls run in a child process, so that a crash or a hang is found and is not the end. ``--only N`` runs one call.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import multiprocessing
import random
import re
import sys
from collections.abc import Callable

import torch

import fastpair
import fastpair.functional as FP
from fastpair import losses, retrieval

TIME_LIMIT = 60  # seconds a call
DTYPES = (torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
METRICS = ("sqeuclidean", "euclidean", "unit_sqeuclidean", "unit_euclidean", "cosine", "dot")
SIMILARITIES = ("cosine", "dot")
MATRICES = ("embeddings", "ref_emb", "weight", "proxies", "centers", "probabilities", "x", "y", "query", "gallery")
VECTORS_OF_LABELS = ("labels", "ref_labels", "query_labels", "gallery_labels")


def described(t: torch.Tensor) -> str:
    layout = "" if t.layout == torch.strided else f"{t.layout} "
    return f"{layout}{t.dtype}{tuple(t.shape)}".replace("torch.", "")


@dataclasses.dataclass
class Call:
    function: Callable
    inputs: dict  # tensors by argument
    settings: dict
    trained: tuple[str, ...] = ()
    module: bool = False  # through the twin of fastpair.losses

    def __str__(self):
        shown = {k: v if v is None else f"{described(v)}/{v.stride()}" for k, v in self.inputs.items()} | self.settings
        kind = " as a module" if self.module else ""
        return f"{self.function.__name__}{kind}({', '.join(f'{k}={v}' for k, v in shown.items())})"

    @property
    def looks_at_directions(self) -> bool:
        distance = self.settings.get("distance", self.settings.get("metric", "cosine"))
        lengths = (FP.linear_cross_entropy, FP.center_loss, FP.spce_loss, FP.pce_loss)
        return self.function not in lengths and (distance == "cosine" or distance.startswith("unit_"))

    @property
    def always_flat(self) -> bool:
        """Unit vectors of one dimension are 1 or -1: nothing changes with the rows but by rounding."""
        return self.looks_at_directions and next(iter(self.inputs.values())).shape[1] == 1

    def norms(self) -> torch.Tensor:
        """Those of the rows that are finite and not zero."""
        rows = torch.cat([v.double() for k, v in self.inputs.items() if k in MATRICES and k != "probabilities"])
        norms = rows[rows.isfinite().all(1)].norm(dim=1)
        return norms[norms > 0]

    def sharpness(self) -> float:
        """About the most that a score is multiplied by."""
        factors = [abs(v) for v in self.settings.values() if isinstance(v, float)]
        return max([1.0, *factors, 1 / self.settings.get("temperature", 1.0)])

    def steepness(self) -> float:
        """About the largest logit."""
        largest = 0.0 if self.looks_at_directions or not len(self.norms()) else self.norms().max().item()
        return self.sharpness() * max(1.0, largest) ** (4 if self.function is FP.circle_loss else 2)

    def run(self, inputs: dict):
        if not self.module:
            return self.function(**inputs, **self.settings)
        settings = {k: v for k, v in self.settings.items() if k not in ("indices_tuple", "exclude_self")}
        module = next(c for n, c in vars(losses).items() if n.lower() == self.function.__name__.replace("_", ""))
        return module(**settings)(**inputs, **{k: v for k, v in self.settings.items() if k not in settings})


# ---- legal calls


class Draw(random.Random):
    """What one call is made of."""

    def __init__(self, seed: int, number: int):
        super().__init__(f"{seed} {number}")
        self.generator = torch.Generator().manual_seed(self.getrandbits(60))
        self.dtype = self.choice(DTYPES)
        self.n = self.size()
        self.d = self.choice((1, 2, 3, 4, 5, 8, 16, 17, 31, 64, 70))
        self.scale = self.choice((self.d**-0.5, self.d**-0.5, 1.0, self.log_uniform(1e-3, 1e3)))
        if self.maybe(0.05):
            self.scale = self.log_uniform(1e-12, 1e12)
        self.offset = self.scale * (self.log_uniform(1, 1e3) if self.maybe(0.1) else 0) * self.normal(1, self.d)
        self.alike = self.choice((0.0, self.log_uniform(1e-8, 0.1))) if self.maybe(0.2) else None
        self.spoiled = self.maybe(0.04)

    def maybe(self, p: float) -> bool:
        return self.random() < p

    def log_uniform(self, low: float, high: float) -> float:
        return math.exp(self.uniform(math.log(low), math.log(high)))

    def normal(self, *shape: int) -> torch.Tensor:
        return torch.randn(shape, generator=self.generator, dtype=torch.float64)

    def size(self) -> int:
        if self.maybe(0.04):
            return self.choice((127, 128, 129, 200, 255, 256, 257, 300))
        return self.choice((0, 1, 1, 2, 2, 3, 5, 7, 8, 13, 16, 17, 31, 33, 40))

    def rows(self, n: int, like: torch.Tensor | None = None, d: int | None = None) -> torch.Tensor:
        """Some of them near others or of ``like``, some zero, one NaN or infinite, where the call is to have that."""
        d = self.d if d is None else d
        rows = self.scale * self.normal(n, d) + (self.offset if d == self.d else 0)
        pool = rows if like is None else like.double()
        if self.alike is not None and n and len(pool):
            copied = torch.randint(len(pool), ((n + 1) // 2,), generator=self.generator)
            rows[: len(copied)] = pool[copied] * (1 + self.alike * self.normal(len(copied), d))
        if self.maybe(0.08) and n:
            rows[self.randrange(n)] = 0
        if self.spoiled and n and self.maybe(0.7):
            rows[self.randrange(n), self.randrange(d)] = self.choice((math.nan, math.inf, -math.inf))
        return self.strided(rows.to(self.dtype))

    def strided(self, t: torch.Tensor) -> torch.Tensor:
        kind = self.choice(("plain",) * 5 + ("transposed", "sliced", "offset", "misaligned", "expanded"))
        if kind == "transposed":
            return t.T.contiguous().T
        if kind == "sliced":
            return t.repeat_interleave(3, dim=t.ndim - 1)[..., 1::3]
        if kind == "offset":
            return torch.cat([t[:1], t, t[:1]])[1 : 1 + len(t)]
        if kind == "misaligned" and t.numel():
            data = bytearray(1) + t.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            return torch.frombuffer(data, dtype=t.dtype, offset=1).view(t.shape)
        if kind == "expanded" and len(t) and self.maybe(0.3):
            return t[:1].expand(t.shape)
        return t

    def labels(self, n: int, classes: int | None = None) -> torch.Tensor:
        count = self.choice((1, 2, 3, max(n // 2, 1), max(n, 1))) if classes is None else classes
        labels = torch.randint(count, (n,), generator=self.generator)
        dtype = self.choice((torch.int64,) * 4 + (torch.int32, torch.int16, torch.int8, torch.uint8))
        if classes is None and dtype == torch.int64:
            labels = labels * self.choice((1, 1, -1, 2**52)) - self.choice((0, 2**62))
        elif count > torch.iinfo(dtype).max:
            dtype = torch.int64
        return self.strided(labels.to(dtype))

    def reduction(self, totals: bool = False) -> str:
        return self.choice(("mean", "mean", "sum", "none") + ("totals",) * totals)

    def temperature(self) -> float:
        return self.choice((0.05, 0.1, 1.0, self.log_uniform(1e-3, 10)))


def pair_settings(draw: Draw, name: str) -> dict:
    distance = draw.choice(METRICS if name != "circle_loss" else SIMILARITIES)
    size = draw.scale if distance in ("euclidean", "dot") and draw.scale > 1e-6 else 1.0
    margin = draw.choice((0.0, 0.5, 1.0, draw.uniform(0, 3))) * draw.choice((1, size))
    signed = draw.uniform(-1, 1) * draw.choice((1, size))
    settings = {
        "contrastive_loss": lambda: {
            "pos_margin": draw.choice((0.0, draw.uniform(0, 1))),
            "neg_margin": margin,
            "power": draw.choice((1, 2)),
        },
        "nca_loss": lambda: {"softmax_scale": draw.log_uniform(1e-2, 1e3)},
        "multi_similarity_loss": lambda: {
            "alpha": draw.log_uniform(0.1, 50),
            "beta": draw.log_uniform(0.1, 100),
            "base": signed,
        },
        "circle_loss": lambda: {"m": draw.uniform(-0.5, 1), "gamma": draw.log_uniform(0.1, 300)},
        "generalized_lifted_structure_loss": lambda: {"neg_margin": signed, "pos_margin": draw.uniform(-1, 1)},
        "triplet_margin_loss": lambda: {
            "margin": signed,
            "smooth_loss": draw.maybe(0.3),
            "triplets_per_anchor": draw.choice(("all", "semihard", "hard")),
        },
    }.get(name, lambda: {"temperature": draw.temperature()})()
    return {**settings, "distance": distance, "reduction": draw.reduction(totals=True)}


def pair_loss(draw: Draw, name: str) -> Call:
    settings = pair_settings(draw, name)
    n = draw.n = min(draw.n, 70) if name == "triplet_margin_loss" else draw.n  # the reference takes n^3 memory
    x, labels = draw.rows(n), draw.labels(n)
    inputs, trained = {"embeddings": x, "labels": labels}, ("embeddings",)
    y, y_labels = x, labels
    if draw.maybe(0.4):
        y = x if draw.maybe(0.2) else draw.rows(draw.choice((n, n + 3, max(n // 2, 1))), like=x)
        picked = torch.randint(max(n, 1), (len(y),), generator=draw.generator)
        y_labels = draw.strided(labels[picked]) if n else draw.labels(len(y))
        inputs |= {"ref_emb": y, "ref_labels": y_labels}
        trained += ("ref_emb",) if y is not x else ()
    if draw.maybe(0.1):
        del inputs["labels"]
        inputs.pop("ref_labels", None)
        settings["indices_tuple"] = mined(draw, labels, y_labels)
        inputs["labels"] = None
        if name == "triplet_margin_loss" and draw.maybe(0.5):
            settings["swap"] = True
    elif draw.maybe(0.3):
        settings["exclude_self"] = draw.choice((None, False, *((True,) if len(y) >= n else ())))
        if "ref_emb" in inputs and len(y) and draw.maybe(0.3):
            settings["exclude_self"] = torch.randint(-1, len(y), (n,), generator=draw.generator)
    return Call(getattr(FP, name), inputs, settings, trained, draw.maybe(0.1))


def mined(draw: Draw, labels: torch.Tensor, ref_labels: torch.Tensor) -> tuple:
    same = labels[:, None] == ref_labels[None, :]
    positive, negative = same.nonzero(), (~same).nonzero()
    positive = positive[torch.randperm(len(positive), generator=draw.generator)[: draw.randrange(1, 60)]]
    negative = negative[torch.randperm(len(negative), generator=draw.generator)[: draw.randrange(1, 60)]]
    if draw.maybe(0.5):
        return (*positive.T, *negative.T)
    pairs = (positive[:, None, 0] == negative[None, :, 0]).nonzero()[:200]
    return (*positive[pairs[:, 0]].T, negative[pairs[:, 1], 1])


def views(draw: Draw, name: str) -> Call:
    x = draw.rows(draw.n)
    settings = {"reduction": draw.reduction()}
    more = draw.choice((0, 3))
    inputs, trained = {"embeddings": x}, ("embeddings", "ref_emb")
    if name == "siglip_loss":
        settings |= {"scale": draw.log_uniform(0.1, 100), "bias": draw.uniform(-20, 5)}
    else:
        settings |= {"temperature": draw.temperature(), "distance": draw.choice(METRICS), "symmetric": more == 0}
    inputs["ref_emb"] = draw.rows(draw.n + more, like=x)
    return Call(getattr(FP, name), inputs, settings, trained)


def classes(draw: Draw, name: str) -> Call:
    vectors = {"proxy_nca_loss": "proxies", "proxy_anchor_loss": "proxies", "center_loss": "centers"}
    vectors = vectors.get(name, "weight")
    count = draw.choice((1, 2, 3, 10, 33, 100))
    x = draw.rows(draw.n)
    inputs = {"embeddings": x, vectors: draw.rows(count, like=x), "labels": draw.labels(draw.n, count)}
    settings = {
        "normalized_softmax_loss": lambda: {"temperature": draw.temperature()},
        "cosface_loss": lambda: {"margin": draw.uniform(-0.5, 1), "scale": draw.log_uniform(0.1, 300)},
        "arcface_loss": lambda: {
            "margin": draw.choice((0, 28.6, draw.uniform(0, 179))),
            "scale": draw.log_uniform(0.1, 300),
        },
        "proxy_nca_loss": lambda: {"softmax_scale": draw.log_uniform(1e-2, 100)},
        "proxy_anchor_loss": lambda: {"margin": draw.uniform(-0.5, 1), "alpha": draw.log_uniform(0.1, 100)},
        "linear_cross_entropy": lambda: {
            "label_smoothing": draw.choice((0, 0, 1, draw.random())),
            "ignore_index": draw.choice((-100, 0, count - 1)),
        },
    }.get(name, dict)()
    trained = ("embeddings", vectors)
    if name == "linear_cross_entropy" and draw.maybe(0.5):
        inputs["bias"] = draw.rows(1, d=count)[0]
        trained += ("bias",)
    settings["reduction"] = draw.reduction(totals=name == "proxy_anchor_loss")
    return Call(getattr(FP, name), inputs, settings, trained)


def bounds(draw: Draw, name: str) -> Call:
    inputs = {"embeddings": draw.rows(draw.n), "labels": draw.labels(draw.n)}
    settings = {"reduction": draw.reduction()}
    if name == "pce_loss":
        inputs["probabilities"] = draw.normal(draw.n, draw.choice((1, 2, 7))).softmax(1).to(draw.dtype)
        settings["lam"] = draw.log_uniform(1e-2, 10)
    return Call(getattr(FP, name), inputs, settings, ("embeddings",))


def distances(draw: Draw, name: str) -> Call:
    x = draw.rows(draw.n)
    inputs = {"x": x} | ({"y": draw.rows(draw.size(), like=x)} if draw.maybe(0.6) else {})
    return Call(FP.pairwise_distance, inputs, {"metric": draw.choice(METRICS)}, tuple(inputs))


def nearest(draw: Draw, name: str) -> Call:
    x = draw.rows(max(draw.n, 2))
    inputs = {"query": x} | ({"gallery": draw.rows(5, like=x)} if draw.maybe(0.5) else {})
    most = 5 if "gallery" in inputs else len(x) - 1

    def nearest_neighbors(**arguments):
        return retrieval.nearest_neighbors(**arguments)[0]

    return Call(nearest_neighbors, inputs, {"k": draw.randint(1, most), "metric": draw.choice(METRICS)})


def recalls(draw: Draw, name: str) -> Call:
    x, metric = draw.rows(max(draw.n, 2)), draw.choice(METRICS)

    def recall_and_map(**arguments):
        found = retrieval.recall_at_k(**arguments, k=(1, 3))
        return torch.tensor([found[1], found[3], retrieval.map_at_r(**arguments)], dtype=torch.float64)

    return Call(recall_and_map, {"query": x, "query_labels": torch.arange(len(x)) % (len(x) // 2)}, {"metric": metric})


FAMILIES = {
    **dict.fromkeys((
        "contrastive_loss", "snca_loss", "nca_loss", "supcon_loss", "ntxent_loss", "multi_similarity_loss",
        "circle_loss", "generalized_lifted_structure_loss", "triplet_margin_loss",
    ), pair_loss),
    **dict.fromkeys(("info_nce_loss", "siglip_loss"), views),
    **dict.fromkeys((
        "linear_cross_entropy", "normalized_softmax_loss", "cosface_loss", "arcface_loss", "proxy_nca_loss",
        "proxy_anchor_loss", "center_loss",
    ), classes),
    **dict.fromkeys(("spce_loss", "pce_loss"), bounds),
    "pairwise_distance": distances,
    "nearest_neighbors": nearest,
    "recall_and_map": recalls,
}  # fmt: skip


# ---- what a legal call must come to


def evaluate(call: Call, inputs: dict, backend: str, seed: int) -> dict:
    """The value and, where one can be, its gradients against a random incoming one."""
    leaves = {k: v if v is None else v.detach().requires_grad_(k in call.trained) for k, v in inputs.items()}
    if "ref_emb" in leaves and inputs["ref_emb"] is inputs["embeddings"]:
        leaves["ref_emb"] = leaves["embeddings"]
    with fastpair.use_backend(backend):
        value = call.run(leaves)
        if not call.trained:
            return {"value": value}
        incoming = torch.randn(value.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        gradients = torch.autograd.grad(value, [leaves[k] for k in call.trained], incoming.to(value.dtype))
    return {"value": value.detach(), **dict(zip(call.trained, gradients))}


def map_floating(f: Callable, inputs: dict) -> dict:
    """The same object of two arguments stays one."""
    done = {id(v): f(v) if v is not None and v.is_floating_point() else v for v in inputs.values()}
    return {k: done[id(v)] for k, v in inputs.items()}


def moved(t: torch.Tensor, variant: int, equals_stay_equal: bool) -> torch.Tensor:
    """By about one rounding; equal elements alike, or every one for itself."""
    wide = t.double().contiguous()
    if equals_stay_equal:
        size, noise = wide, torch.sin(wide.view(torch.int64).remainder(1000003 + variant) * 12.9898)
    else:
        size = torch.where(wide == 0, wide.abs().mean(), wide)
        noise = torch.rand(wide.shape, generator=torch.Generator().manual_seed(variant), dtype=torch.float64) * 2 - 1
    return (wide + size * noise * 1.5 * torch.finfo(t.dtype).eps).to(t.dtype)


def distance_between(a: torch.Tensor, b: torch.Tensor, where: torch.Tensor) -> float:
    return (a.double() - b.double())[where].norm().item()


def check(call: Call, seed: int) -> list[str]:
    dtype = next(iter(call.inputs.values())).dtype

    def truth_of(inputs):
        return evaluate(call, map_floating(torch.Tensor.double, inputs), "reference", seed)

    truth = truth_of(call.inputs)
    plain = evaluate(call, call.inputs, "reference", seed)
    got = evaluate(call, call.inputs, "cpu", seed)
    clean = all(v is None or v.isfinite().all() for v in call.inputs.values())
    others, problems = [], []
    for name, want in truth.items():
        have, usual = got[name], plain[name]
        if have.shape != want.shape or have.dtype != usual.dtype:
            problems.append(f"{name}: {described(have)} for {described(usual)}")
            continue
        sound = want.isfinite() & usual.isfinite()
        if name != "value" and not clean:
            continue  # which zeros a NaN makes NaN of is not said
        if not have[sound].isfinite().all():
            problems.append(f"{name}: not finite where the reference is, {show(have, sound)} for {show(want, sound)}")
            continue
        if name == "value" and have[~want.isfinite() & ~usual.isfinite()].isfinite().any():
            problems.append(f"{name}: finite where the truth is not, {show(have, ~sound)} for {show(want, ~sound)}")
            continue
        if (name != "value" or call.function is FP.arcface_loss) and (call.always_flat or call.steepness() > 1e11):
            continue  # only rounding, or what float64 itself has too few digits for
        if not sound.all() and call.settings.get("reduction") == "totals":
            continue  # what is counted beside a sum that is NaN is nobody's
        size = want[sound].norm().item()
        rounding = rounding_of(call, have.dtype, size) + torch.finfo(have.dtype).tiny * math.sqrt(want.numel())
        error, allowed = distance_between(have, want, sound), 2 * distance_between(usual, want, sound) + rounding
        if error <= allowed:
            continue
        # Was the reference lucky, or do the inputs decide no more than this?
        others = others or list(neighbours(call, dtype, truth_of, seed))
        for near_truth, near_plain in others:
            both = sound & near_truth[name].isfinite() & near_plain[name].isfinite()
            noise = 4 * distance_between(near_plain[name], near_truth[name], both) + rounding
            change = distance_between(near_truth[name], want, both)
            allowed = max(allowed, noise + (256 if dtype == torch.float64 else 4) * change)
            allowed = allowed if both.equal(sound) else math.inf
        if error > allowed:
            problems.append(f"{name}: error {error:.3g}, allowed {allowed:.3g}, norm {size:.3g}")
    return problems


def rounding_of(call: Call, dtype: torch.dtype, size: float) -> float:
    """Some tens of eps; more in float64, where the truth is no better than what is held against it. A result that
    cancels to nothing has the rounding of its terms, whose size is reckoned from the settings and the rows."""
    eps = torch.finfo(dtype).eps * (10000 + 16 * call.steepness() if dtype == torch.float64 else 32)
    norms = call.norms()
    terms = call.sharpness() * (norms.max() + 1 / norms.min()).item() if len(norms) else 0.0
    return eps * (terms if size < 1e-6 * terms else max(size, 1e-3 * terms))


def neighbours(call: Call, dtype: torch.dtype, truth_of: Callable, seed: int):
    """The truth, and the reference, at inputs moved by a rounding. Triplets choose: equal distances are ties there."""
    together = call.function not in (FP.triplet_margin_loss,)
    for variant in range(4):
        inputs = map_floating(lambda t, v=variant: moved(t, v, together), call.inputs)
        yield truth_of(inputs), evaluate(call, inputs, "reference", seed)


def show(t: torch.Tensor, where: torch.Tensor) -> str:
    return str(t[where].flatten()[:3].tolist())


# ---- illegal calls

HUGE = 10**400
NO_TENSOR = (3, "a", [[1.0, 2.0]], HUGE, {}, lambda: None)
NO_NUMBER = ("a", None, [0.1], 1j, HUGE, -HUGE, math.nan, torch.ones(2), b"1")
NO_CHOICE = (None, "", "l1", 3, ["cosine"], b"mean", HUGE, {}, torch.ones(2))


def spoil(draw: Draw, call: Call) -> tuple[str, object] | None:
    """An argument of the call and what it must not be; None where the call has nothing of that kind."""
    names = [k for k in (*call.inputs, *call.settings, "backend") if k not in ("swap", "symmetric", "smooth_loss")]
    name = draw.choice(names)
    value = call.inputs.get(name)
    if name in MATRICES and value is not None:
        if len(value) == 0:
            return None
        bad = [*NO_TENSOR, value[0], value[None], value.long(), value.cfloat(), value.to("meta"), value.to_sparse()]
        bad.append(value > 0)
        if name not in ("ref_emb", "y", "gallery"):
            bad.append(None)
        if name not in ("embeddings", "x", "query", "probabilities"):
            bad += [value[:, :-1], value.to(torch.float64 if value.dtype != torch.float64 else torch.float32)]
        return name, draw.choice(bad)
    if name in VECTORS_OF_LABELS and value is not None:
        bad = [*NO_TENSOR, None, value.tolist(), value.float(), value > 0, value[:, None], value.to("meta")]
        bad += [torch.cat([value, value[:1]]), value.cfloat(), value.to_sparse()]
        if any(k in call.inputs for k in ("weight", "proxies", "centers")):
            bad += [torch.full_like(value, 101).long(), torch.full_like(value, 1).long() * -(2**62), value.long() - 120]
        return (name, draw.choice(bad)) if len(value) else None
    if name == "bias" and "bias" in call.inputs:
        return name, draw.choice((3, "a", [1.0], value[:, None], value.long(), torch.cat([value, value]), value > 0))
    if name == "exclude_self":
        return name, draw.choice(("yes", 3, [0], torch.zeros(1000).long(), torch.full((draw.n,), 10**6), 0.5))
    if name == "indices_tuple":
        lists = call.settings[name]
        bad = (3, "abc", (), lists[:2], (*lists, lists[0]), (*lists[:-1], [0]), (*lists[:-1], lists[-1].float()))
        return name, draw.choice((*bad, tuple(torch.full((2,), 10**6) for _ in lists), (None,) * 3))
    if name == "reduction":
        return name, draw.choice((*NO_CHOICE, "MEAN"))
    if name in ("distance", "metric", "triplets_per_anchor"):
        return name, draw.choice(NO_CHOICE)
    if name == "backend":
        return (name, draw.choice(("gpu", 3, ["cpu"], b"cpu", {}, HUGE))) if takes_backend(call) else None
    if name == "power":
        return name, draw.choice((3, 0, "1", None, HUGE, math.nan, 1.5, [1]))
    if name == "k":
        return name, draw.choice((0, -1, 10**6, HUGE, "1", 1.5, None, [1]))
    if name == "ignore_index":
        return name, draw.choice((0.5, "a", None, HUGE, [1], math.nan))
    if name == "lam":
        return name, draw.choice((*(v for v in NO_NUMBER if v is not None), 0, -1.0, math.inf))
    if name == "margin" and call.function is FP.arcface_loss:
        return name, draw.choice((*NO_NUMBER, 180.0, -0.1, math.inf))
    positive = ("temperature", "softmax_scale", "alpha", "beta", "gamma")
    if name in positive or (name == "scale" and call.function is not FP.siglip_loss):
        # What a temperature divides is 0 where it is beyond all floats.
        bad = [v for v in NO_NUMBER if not (v is HUGE and name == "temperature")]
        return name, draw.choice((*bad, 0, 0.0, -1.0, math.inf, -math.inf))
    if name in call.settings:
        return name, draw.choice(NO_NUMBER)
    return None


def takes_backend(call: Call) -> bool:
    return call.function.__name__ not in ("nearest_neighbors", "recall_and_map") and not call.module


def refuse(call: Call, name: str, value) -> list[str]:
    call = dataclasses.replace(call, settings=call.settings | {name: value}, module=False)
    inputs = {k: v for k, v in call.inputs.items() if k != name}
    got = described(value) if isinstance(value, torch.Tensor) else str(value)[:60]
    about = f"{name}={got} ({type(value).__name__})"
    try:
        call.run(inputs)
    except (TypeError, ValueError, RuntimeError) as error:
        message = str(error)
        if re.search(r"csrc|\.(cpp|h|cu)\b", message):
            return [f"{about}: the message names a source file: {message[:300]}"]
        if not re.search(rf"\b{name}\b", message):
            return [f"{about}: the message does not name it: {type(error).__name__}: {message[:200]}"]
        return []
    except BaseException as error:  # whatever it is, it is what is looked for
        return [f"{about}: {type(error).__name__}: {str(error)[:200]}"]
    return [f"{about}: no exception"]


# ---- running


def run_call(seed: int, number: int) -> tuple[str, list[str]]:
    """What kind of call it was, and its findings."""
    draw = Draw(seed, number)
    name = draw.choice(list(FAMILIES))
    call = FAMILIES[name](draw, name)
    torch.set_num_threads(draw.choice((1, 1, 2, 3)) if draw.n > 70 else 1)
    bad = spoil(draw, call) if draw.maybe(0.25) else None
    try:
        problems = refuse(call, *bad) if bad else check(call, number)
    except Exception as error:
        problems = [f"{type(error).__name__}: {str(error)[:300]}"]
    return ("illegal" if bad else "legal"), [f"{call}: {problem}" for problem in problems]


def child(pipe, seed: int, numbers: range) -> None:
    for number in numbers:
        pipe.send(run_call(seed, number))


def fuzz(seed: int, numbers: range, report: Callable = print) -> dict[str, int]:
    """Runs the calls and reports findings; returns how many calls of each kind ran, and how many had findings."""
    context = multiprocessing.get_context("spawn")
    counts = {"legal": 0, "illegal": 0, "findings": 0}
    process = None
    for number in numbers:
        if process is None:
            pipe, far_end = context.Pipe()
            process = context.Process(target=child, args=(far_end, seed, numbers[numbers.index(number) :]))
            process.start()
            far_end.close()
        try:
            if not pipe.poll(TIME_LIMIT):
                raise TimeoutError
            kind, findings = pipe.recv()
        except (EOFError, ConnectionError, TimeoutError) as error:
            ended = not isinstance(error, TimeoutError)
            if not ended:
                process.kill()
            process.join()
            kind = "legal"
            findings = [f"the process ended with {process.exitcode}" if ended else f"no answer in {TIME_LIMIT} s"]
            process = None
        counts[kind] += 1
        counts["findings"] += bool(findings)
        for finding in findings:
            report(f"seed {seed} call {number}: {finding}")
    if process is not None:
        process.join()
    return counts


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=1000)
    parser.add_argument("--first", type=int, default=0, help="number of the first call")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, help="run this call alone, in this process")
    arguments = parser.parse_args()
    if arguments.only is not None:
        kind, findings = run_call(arguments.seed, arguments.only)
        print(kind, *(findings or ["no finding"]), sep="\n")
        return int(bool(findings))
    counts = fuzz(arguments.seed, range(arguments.first, arguments.first + arguments.calls))
    print(f"seed {arguments.seed}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    return int(counts["findings"] > 0)


if __name__ == "__main__":
    sys.exit(main())
