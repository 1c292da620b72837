"""What the fuzzer calls: public functions with drawn arguments, and arguments that are no good."""

from __future__ import annotations

import dataclasses
import math
import random
from collections.abc import Callable

import torch

import fastpair.functional as FP
from fastpair import losses, retrieval
from fastpair.formulas.pair_losses import DEFINITIONS, Definition

DTYPES = (torch.float32, torch.float32, torch.float32, torch.float64, torch.bfloat16, torch.float16)
SMALL, LARGE = (0, 1, 1, 2, 2, 3, 5, 8, 13, 16, 17, 33, 40), (127, 128, 129, 255, 256, 257, 300)
SIMILARITIES = ("cosine", "dot")
METRICS = ("sqeuclidean", "euclidean", "unit_sqeuclidean", "unit_euclidean", *SIMILARITIES)
MATRICES = ("embeddings", "ref_emb", "weight", "proxies", "centers", "probabilities", "x", "y", "query", "gallery")
# Losses whose scores depend on the lengths of the rows whatever the distance.
OF_LENGTHS = (FP.linear_cross_entropy, FP.center_loss, FP.spce_loss, FP.pce_loss)


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

    def below(self, limit: int, count: int) -> torch.Tensor:
        return torch.randint(limit, (count,), generator=self.generator)

    def size(self) -> int:
        return self.choice(LARGE if self.maybe(0.04) else SMALL)

    def rows(self, n: int, like: torch.Tensor | None = None, d: int | None = None) -> torch.Tensor:
        """Some of them near others or of ``like``, some zero, one NaN or infinite, where the call is to have that."""
        d = self.d if d is None else d
        rows = self.scale * self.normal(n, d) + (self.offset if d == self.d else 0)
        pool = rows if like is None else like.double()
        if self.alike is not None and n and len(pool):
            copied = pool[self.below(len(pool), (n + 1) // 2)]
            rows[: len(copied)] = copied * (1 + self.alike * self.normal(len(copied), d))
        if self.maybe(0.08) and n:
            rows[self.randrange(n)] = 0
        if self.spoiled and n and self.maybe(0.7):
            rows[self.randrange(n), self.randrange(d)] = self.choice((math.nan, math.inf, -math.inf))
        return self.strided(rows.to(self.dtype))

    def strided(self, t: torch.Tensor) -> torch.Tensor:
        kind = self.choice(("plain",) * 5 + ("transposed", "sliced", "misaligned", "expanded"))
        if kind == "transposed":
            return t.T.contiguous().T
        if kind == "sliced":
            return t.repeat_interleave(3, dim=t.ndim - 1)[..., 1::3]
        if kind == "misaligned" and t.numel():
            data = bytearray(1) + t.contiguous().flatten().view(torch.uint8).numpy().tobytes()
            return torch.frombuffer(data, dtype=t.dtype, offset=1).view(t.shape)
        if kind == "expanded" and len(t) and self.maybe(0.3):
            return t[:1].expand(t.shape)
        return t

    def labels(self, n: int, classes: int | None = None) -> torch.Tensor:
        count = classes or self.choice((1, 2, 3, max(n // 2, 1), max(n, 1)))
        labels = self.below(count, n)
        dtype = self.choice((torch.int64,) * 4 + (torch.int32, torch.int16, torch.int8, torch.uint8))
        if classes is None and dtype == torch.int64:
            labels = labels * self.choice((1, 1, -1, 2**52)) - self.choice((0, 2**62))
        return self.strided(labels.to(dtype if count <= torch.iinfo(dtype).max else torch.int64))

    def margin(self, low: float = 0.0) -> float:
        """Of the size of the scores, or about 1."""
        margin = self.choice((0.0, 0.5, 1.0, self.uniform(0, 3))) if low == 0 else self.uniform(low, 1)
        return margin * self.choice((1.0, min(max(self.scale, 1e-6), 1e6)))


# ---- legal calls


def between(low: float, high: float) -> Callable:
    return lambda draw: draw.choice((1.0, draw.log_uniform(low, high)))


def from_to(low: float, high: float) -> Callable:
    return lambda draw: draw.uniform(low, high)


# What the settings are drawn from: choices, or a function of the draw.
TEMPERATURE = {"temperature": lambda draw: draw.choice((0.05, 0.1, 1.0, draw.log_uniform(1e-3, 10)))}
TOTALS = {"reduction": ("mean", "mean", "sum", "none", "totals")}
PAIRS = {"distance": METRICS, **TOTALS}
REDUCED = {"reduction": ("mean", "mean", "sum", "none")}


def drawn(of: Definition) -> dict:
    ranges = {
        "positive": lambda default: lambda draw: draw.choice((1.0, default, default * draw.log_uniform(1e-2, 1e2))),
        "margin": lambda default: Draw.margin,
        "finite": lambda default: lambda draw: draw.margin(-1),
    }
    settings = {x.name: ranges[x.check](x.default) for x in of.settings}
    choice = {of.choice.name: tuple(of.choice.formulas)} if of.choice else {}
    return {**settings, **choice, **PAIRS, "distance": SIMILARITIES if of.similarities else METRICS}


SETTINGS = {
    **{f"{name}_loss": drawn(of) for name, of in DEFINITIONS.items()},
    "triplet_margin_loss": {"margin": lambda draw: draw.margin(-1), "smooth_loss": (False, False, True),
                            "triplets_per_anchor": ("all", "semihard", "facenet", "hard"), **PAIRS},
    "info_nce_loss": {**TEMPERATURE, "distance": METRICS, "symmetric": (True, False), **REDUCED},
    "siglip_loss": {"scale": between(0.1, 100), "bias": from_to(-20, 5), **REDUCED},
    "linear_cross_entropy": {"label_smoothing": lambda draw: draw.choice((0, 0, 1, draw.random())),
                             "ignore_index": (-100, 0), **REDUCED},
    "normalized_softmax_loss": {**TEMPERATURE, **REDUCED},
    "cosface_loss": {"margin": from_to(-0.5, 1), "scale": between(0.1, 300), **REDUCED},
    "arcface_loss": {"margin": lambda draw: draw.choice((0, 28.6, draw.uniform(0, 179))), "scale": between(0.1, 300),
                     **REDUCED},
    "proxy_nca_loss": {"softmax_scale": between(1e-2, 100), **REDUCED},
    "proxy_anchor_loss": {"margin": from_to(-0.5, 1), "alpha": between(0.1, 100), **TOTALS},
    "center_loss": REDUCED,
    "spce_loss": REDUCED,
    "pce_loss": {"lam": between(1e-2, 10), **REDUCED},
    "pairwise_distance": {"metric": METRICS},
    "nearest_neighbors": {"metric": METRICS},
    "recall_and_map": {"metric": METRICS},
}  # fmt: skip


def nearest_neighbors(**arguments):
    return retrieval.nearest_neighbors(**arguments)[0]


def recall_and_map(**arguments):
    found = retrieval.recall_at_k(**arguments, k=(1, 3))
    return torch.tensor([found[1], found[3], retrieval.map_at_r(**arguments)], dtype=torch.float64)


def described(value) -> str:
    if isinstance(value, tuple):
        return f"({', '.join(map(described, value))})"
    if not isinstance(value, torch.Tensor):
        return str(value)[:60]
    layout = f"/{value.stride()}" if value.layout == torch.strided else f" {value.layout}"
    return f"{value.dtype}{tuple(value.shape)}{layout}".replace("torch.", "")


@dataclasses.dataclass
class Call:
    function: Callable
    inputs: dict  # tensors by argument
    settings: dict
    trained: tuple[str, ...] = ()
    module: bool = False  # through the twin of fastpair.losses

    def __str__(self):
        shown = ", ".join(f"{k}={described(v)}" for k, v in (self.inputs | self.settings).items())
        return f"{self.function.__name__}{' as a module' if self.module else ''}({shown})"

    def run(self, inputs: dict) -> torch.Tensor:
        if not self.module:
            return self.function(**inputs, **self.settings)
        settings = {k: v for k, v in self.settings.items() if k not in ("indices_tuple", "exclude_self")}
        module = next(c for n, c in vars(losses).items() if n.lower() == self.function.__name__.replace("_", ""))
        return module(**settings)(**inputs, **{k: v for k, v in self.settings.items() if k not in settings})

    @property
    def first(self) -> torch.Tensor:
        return next(iter(self.inputs.values()))

    @property
    def of_directions(self) -> bool:
        distance = self.settings.get("distance", self.settings.get("metric", "cosine"))
        return self.function not in OF_LENGTHS and (distance == "cosine" or distance.startswith("unit_"))

    def magnitudes(self) -> tuple[float, float]:
        """About the largest logit, and the largest derivative of a logit."""
        factors = [abs(v) for v in self.settings.values() if isinstance(v, float)]
        sharpness = max([1.0, *factors, 1 / self.settings.get("temperature", 1.0)])
        rows = torch.cat([v.double() for k, v in self.inputs.items() if k in MATRICES and k != "probabilities"])
        norms = rows[rows.isfinite().all(1)].norm(dim=1)
        norms = norms[norms > 0].tolist() or [1.0]
        length = 1.0 if self.of_directions else max(1.0, *norms)
        return sharpness * length ** (4 if self.function is FP.circle_loss else 2), sharpness * (
            max(norms) + 1 / min(norms)
        )


def draw_call(draw: Draw) -> Call:
    name = draw.choice(list(SETTINGS))
    settings = {k: v(draw) if callable(v) else draw.choice(v) for k, v in SETTINGS[name].items()}
    function = globals().get(name) or getattr(FP, name)
    if "distance" in settings and function is not FP.info_nce_loss:
        return pair_call(draw, function, settings)
    first = {"pairwise_distance": "x", "nearest_neighbors": "query", "recall_and_map": "query"}.get(name, "embeddings")
    inputs = {first: draw.rows(max(draw.n, 2) if first == "query" else draw.n)}
    n, x = len(inputs[first]), inputs[first]
    trained = (first,)
    if name in ("info_nce_loss", "siglip_loss"):
        inputs["ref_emb"] = draw.rows(n if settings.get("symmetric") else n + draw.choice((0, 3)), like=x)
        trained += ("ref_emb",)
    elif name == "pairwise_distance" and draw.maybe(0.6):
        inputs["y"] = draw.rows(draw.size(), like=x)
        trained += ("y",)
    elif name == "nearest_neighbors":
        inputs |= {"gallery": draw.rows(5, like=x)} if draw.maybe(0.5) else {}
        settings["k"], trained = draw.randint(1, 5 if "gallery" in inputs else n - 1), ()
    elif name == "recall_and_map":
        inputs["query_labels"], trained = torch.arange(n) % (n // 2), ()
    elif name in ("spce_loss", "pce_loss"):
        inputs["labels"] = draw.labels(n)
        if name == "pce_loss":
            inputs["probabilities"] = draw.normal(n, draw.choice((1, 2, 7))).softmax(1).to(draw.dtype)
    elif first == "embeddings":
        vectors = {"proxy_nca_loss": "proxies", "proxy_anchor_loss": "proxies", "center_loss": "centers"}
        vectors, classes = vectors.get(name, "weight"), draw.choice((1, 2, 3, 10, 33, 100))
        inputs |= {vectors: draw.rows(classes, like=x), "labels": draw.labels(n, classes)}
        trained += (vectors,)
        if name == "linear_cross_entropy" and draw.maybe(0.5):
            inputs["bias"] = draw.rows(1, d=classes)[0]
            trained += ("bias",)
    return Call(function, inputs, settings, trained)


def pair_call(draw: Draw, function: Callable, settings: dict) -> Call:
    n = draw.n = min(draw.n, 70) if function is FP.triplet_margin_loss else draw.n  # the reference takes n^3 memory
    x = y = draw.rows(n)
    labels = y_labels = draw.labels(n)
    inputs, trained = {"embeddings": x, "labels": labels}, ("embeddings",)
    if draw.maybe(0.4):
        y = x if draw.maybe(0.2) else draw.rows(draw.choice((n, n + 3, max(n // 2, 1))), like=x)
        y_labels = draw.strided(labels[draw.below(n, len(y))]) if n else draw.labels(len(y))
        inputs |= {"ref_emb": y, "ref_labels": y_labels}
        trained += ("ref_emb",) if y is not x else ()
    if draw.maybe(0.1):
        inputs |= {"labels": None, **({"ref_labels": None} if "ref_emb" in inputs else {})}
        settings["indices_tuple"] = mined(draw, labels, y_labels)
        if function is FP.triplet_margin_loss:
            settings["swap"] = draw.maybe(0.5)
    elif draw.maybe(0.3):
        settings["exclude_self"] = draw.choice((None, False, *((True,) if len(y) >= n else ())))
        if "ref_emb" in inputs and len(y) and draw.maybe(0.3):
            settings["exclude_self"] = draw.below(len(y) + 1, n) - 1
    if "indices_tuple" not in settings and draw.maybe(0.4):
        inputs |= known(draw, inputs, n, len(y))
    return Call(function, inputs, settings, trained, draw.maybe(0.1))


def known(draw: Draw, inputs: dict, n: int, m: int) -> dict:
    """What says which pairs there are, beside the labels or in their place, and what an anchor counts."""
    more, others = {}, "ref_emb" in inputs
    if draw.maybe(0.3):
        more["weights"] = draw.strided(draw.normal(n).abs().to(draw.dtype))
    if draw.maybe(0.6):
        ids = draw.labels(n)
        more |= {
            "ids": ids,
            **({"ref_ids": draw.strided(ids[draw.below(n, m)]) if n else draw.labels(m)} if others else {}),
        }
    if draw.maybe(0.3):
        columns = draw.choice((0, 1, 5, 31, 32, 80))
        sets = [draw.normal(rows, columns) > draw.choice((0.5, 2.0)) for rows in (n, m)]
        more |= {"labels": sets[0], **({"ref_labels": sets[1]} if others else {})}
    elif draw.maybe(0.3):
        pairs = draw.strided((draw.below(3, n * m).view(n, m) - 1).to(draw.choice((torch.int8, torch.int64))))
        more |= {"pairs": pairs, "labels": None, **({"ref_labels": None} if others else {})}
    return more


def mined(draw: Draw, labels: torch.Tensor, ref_labels: torch.Tensor) -> tuple:
    same = labels[:, None] == ref_labels[None, :]
    positive, negative = (
        pairs[torch.randperm(len(pairs), generator=draw.generator)[: draw.randrange(1, 60)]]
        for pairs in (same.nonzero(), (~same).nonzero())
    )
    if draw.maybe(0.5):
        return (*positive.T, *negative.T)
    met = (positive[:, None, 0] == negative[None, :, 0]).nonzero()[:200]
    return (*positive[met[:, 0]].T, negative[met[:, 1], 1])


# ---- illegal calls

HUGE = 10**400
NO_TENSOR = (3, "a", [[1.0, 2.0]], HUGE, {}, len)
NO_NUMBER = ("a", None, [0.1], 1j, HUGE, -HUGE, math.nan, torch.ones(2), b"1")
NOT_POSITIVE = (*NO_NUMBER, 0, -1.0, math.inf)
NO_CHOICE = (None, "", "l1", 3, ["cosine"], b"mean", HUGE, {}, torch.ones(2))
BAD = {
    **dict.fromkeys(("reduction", "distance", "metric", "triplets_per_anchor"), NO_CHOICE),
    **dict.fromkeys(("softmax_scale", "alpha", "beta", "gamma"), NOT_POSITIVE),
    "temperature": tuple(v for v in NOT_POSITIVE if v is not HUGE),  # divided by it, all is 0
    "lam": tuple(v for v in NOT_POSITIVE if v is not None),
    "exclude_self": ("yes", 3, [0], torch.zeros(1000).long(), torch.full((7,), 10**6), 0.5),
    "backend": ("gpu", 3, ["cpu"], b"cpu", {}, HUGE),
    "power": (3, 0, "1", None, HUGE, math.nan, 1.5, [1]),
    "k": (0, -1, 10**6, HUGE, "1", 1.5, None, [1]),
    "ignore_index": (0.5, "a", None, HUGE, [1], math.nan),
}


def spoil(draw: Draw, call: Call) -> tuple[str, object] | None:
    """An argument of the call and what it must not be; None where it may be anything."""
    choices = [*call.inputs, *call.settings, *(("backend",) if hasattr(FP, call.function.__name__) else ())]
    name = draw.choice([name for name in choices if name not in ("swap", "symmetric", "smooth_loss")])
    value = call.inputs.get(name)
    if isinstance(value, torch.Tensor):
        if len(value) == 0 or name in ("ids", "ref_ids", "pairs", "weights") or value.dtype == torch.bool:
            return None  # what these may not be is tested by itself
        bad = [value.to("meta"), value.to_sparse(), value.cfloat(), value > 0, value[None]]
        if name == "bias":
            bad += [3, "a", [1.0], value.long(), torch.cat([value, value])]
        elif name not in MATRICES:
            bad += [*NO_TENSOR, None, value.tolist(), value.float(), value[:, None], torch.cat([value, value[:1]])]
            if call.inputs.keys() & {"weight", "proxies", "centers"}:
                bad += [torch.full_like(value, fill, dtype=torch.int64) for fill in (101, -(2**62), -120)]
        else:
            bad += [*NO_TENSOR, value[0], value.long(), *((None,) if name not in ("ref_emb", "y", "gallery") else ())]
            if name not in ("embeddings", "x", "query", "probabilities"):
                bad += [value[:, :-1]]
            if name in ("y", "gallery"):  # the sides of losses are promoted
                bad += [value.to(torch.float64 if value.dtype != torch.float64 else torch.float32)]
    elif name == "indices_tuple":
        lists = call.settings[name]
        bad = [
            3,
            "abc",
            (),
            lists[:2],
            (*lists, lists[0], lists[0]),
            (*lists[:-1], [0]),
            (*lists[:-1], lists[-1].float()),
        ]
        bad += [tuple(torch.full((2,), 10**6) for _ in lists), (None,) * 3]
    elif name in call.inputs:
        return None
    elif name == "scale" and call.function is not FP.siglip_loss:
        bad = NOT_POSITIVE
    else:
        bad = BAD.get(name, (*NO_NUMBER, 180.0, -0.1) if call.function is FP.arcface_loss else NO_NUMBER)
    return name, draw.choice(bad)
