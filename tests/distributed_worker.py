"""What the processes of test_distributed.py run. Each writes what it computed to a file, which the test compares with
one process on all rows."""

from __future__ import annotations

import contextlib
import datetime
import importlib
import multiprocessing
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from custom_losses import LEARNING, contrastive, multi_similarity
from torch import nn
from torch.distributed.algorithms.ddp_comm_hooks.default_hooks import allreduce_hook
from torch.nn.parallel import DistributedDataParallel

from fastpair import losses
from fastpair.cached import CachedLoss
from fastpair.distributed import GlobalBatchLoss, _Gather
from fastpair.formulas.pair_losses import DEFINITIONS

FEATURES, D, CLASSES = 6, 5, 7

# ---- the losses

SIZES = (CLASSES, D)


def matryoshka(loss, **settings):
    return losses.MatryoshkaLoss(loss(**settings), (3, D), (0.5, 1.0))


PAIR_LOSSES = {
    **{of.option: getattr(losses, of.module) for of in DEFINITIONS.values()},
    "contrastive-p2": partial(losses.ContrastiveLoss, distance="euclidean", power=2),
    "supcon-euclidean": partial(losses.SupConLoss, distance="euclidean"),
    "circle": partial(losses.CircleLoss, gamma=10.0),
    "supcon-learned": lambda **settings: losses.SupConLoss(nn.Parameter(torch.tensor(0.2)), **settings),
    "custom": multi_similarity,
    "custom-parts": contrastive,
    "supcon-sets": losses.SupConLoss,
    "contrastive-ids": losses.ContrastiveLoss,
    "multi_similarity-weights": losses.MultiSimilarityLoss,
    "supcon-bias": losses.SupConLoss,
    "custom-scalars": LEARNING["scaled"].make,
    "multi_similarity-matryoshka": partial(matryoshka, losses.MultiSimilarityLoss),
    "triplet": losses.TripletMarginLoss,
    "triplet-semihard": partial(losses.TripletMarginLoss, 0.2, triplets_per_anchor="semihard"),
    "triplet-facenet": partial(losses.TripletMarginLoss, 0.2, triplets_per_anchor="facenet"),
    "triplet-hard": partial(losses.TripletMarginLoss, triplets_per_anchor="hard", smooth_loss=True),
}
VIEW_LOSSES = {
    "info_nce": losses.InfoNCELoss,
    "info_nce-learned": partial(losses.InfoNCELoss, 0.2, learn_temperature=True),
    "info_nce-one-sided": partial(losses.InfoNCELoss, 0.2, symmetric=False, distance="euclidean"),
    "info_nce-documents": partial(losses.InfoNCELoss, 0.2),
    "info_nce-decoupled": partial(losses.InfoNCELoss, 0.2, decoupled=True),
    "info_nce-hard": partial(
        losses.InfoNCELoss, 0.2, ignore_above=0.5, hardness_mode="all_negatives", hardness_strength=2.0
    ),
    "siglip": partial(losses.SigLIPLoss, 3.0, -1.0),
    "siglip-given": partial(losses.SigLIPLoss, distance="dot"),
    "info_nce-matryoshka": partial(matryoshka, losses.InfoNCELoss),
}
CLASS_LOSSES = {
    "linear_cross_entropy": partial(losses.LinearCrossEntropyLoss, *SIZES),
    "linear_cross_entropy-ignore": partial(losses.LinearCrossEntropyLoss, *SIZES, label_smoothing=0.2, ignore_index=1),
    "normalized_softmax": partial(losses.NormalizedSoftmaxLoss, *SIZES),
    "cosface": partial(losses.CosFaceLoss, *SIZES, scale=8.0),
    "arcface": partial(losses.ArcFaceLoss, *SIZES, scale=8.0),
    "proxy_nca": partial(losses.ProxyNCALoss, *SIZES),
    "proxy_anchor": partial(losses.ProxyAnchorLoss, *SIZES, alpha=8.0),
    "proxy_anchor-two": partial(losses.ProxyAnchorLoss, 2, D, alpha=8.0),  # fewer proxies than ranks
    "center": partial(losses.CenterLoss, *SIZES),
    "spce": losses.SPCELoss,
    "pce": partial(losses.PCELoss, 0.3),
}
LOSSES = {**PAIR_LOSSES, **VIEW_LOSSES, **CLASS_LOSSES}


def make_loss(name: str, dtype: torch.dtype, **settings) -> nn.Module:
    torch.manual_seed(1)
    return LOSSES[name](**settings).to(dtype)


def make_model(dtype: torch.dtype) -> nn.Module:
    """Without biases, whose gradients cancel for losses of differences."""
    torch.manual_seed(2)
    return nn.Sequential(nn.Linear(FEATURES, 8, bias=False), nn.Tanh(), nn.Linear(8, D, bias=False)).to(dtype)


# ---- the batches: labels of the rows of every rank

SHARDS = {
    2: {
        "uneven": ([0, 1, 2, 0, 3], [1, 0, 2, 2, 4, 4, 5]),
        "positives-elsewhere": ([0, 1, 2, 3], [3, 0, 1, 2]),
        "no-positives-on-one": ([0, 0, 1, 1, 2], [3, 4, 5]),
        "no-rows-on-one": ([0, 1, 0, 1, 1, 2], []),
    },
    3: {
        "uneven": ([0, 1, 2, 0, 3], [1, 0, 2], [2, 4, 4, 0]),
        "positives-elsewhere": ([0, 1, 2], [2, 0, 1], [3, 1, 4]),
        "no-rows-on-one": ([2, 2, 1, 0], [], [1, 0, 5]),
        "no-pairs": ([0], [], [0]),
        "nothing": ([], [], []),
    },
}


@dataclass(frozen=True)
class Case:
    loss: str
    shards: str
    dtype: torch.dtype
    reduction: str = "mean"


def cases(world: int, loss: str) -> Iterator[Case]:
    """The losses take turns with shards that are unusual, with reductions and with dtypes."""
    at, unusual = list(LOSSES).index(loss), [shards for shards in SHARDS[world] if shards != "uneven"]
    yield Case(loss, "uneven", (torch.float64, torch.float32)[at % 3 == 2])
    yield Case(loss, unusual[at % len(unusual)], torch.float64)
    yield Case(loss, "uneven", torch.float64, ("none", "sum")[at % 2])


def batch(case: Case, world: int) -> dict[str, torch.Tensor]:
    """All rows: features of two views, labels and probabilities."""
    labels = torch.tensor([label for shard in SHARDS[world][case.shards] for label in shard], dtype=torch.int64)
    if case.loss == "proxy_anchor-two":
        labels = labels % 2
    if case.loss in PAIR_LOSSES or case.loss in ("spce", "pce"):  # where labels are names
        labels = torch.tensor([2**40, -3, 17, 5, -(2**40), 0])[labels]
    n, generator = len(labels), torch.Generator().manual_seed(3)
    further = {}
    if case.loss.endswith("-sets"):
        labels = torch.rand(n, 40, generator=generator) < 0.1
    if case.loss.endswith("-ids"):
        further["ids"] = torch.randint(5, (n,), generator=generator)
    if case.loss.endswith("-weights"):
        further["weights"] = torch.rand(n, generator=generator, dtype=torch.float64).to(case.dtype)
    if case.loss.endswith(("-bias", "-scalars")):
        further["numbers"] = torch.rand(n, 2, generator=generator, dtype=torch.float64).to(case.dtype)
    return {
        **further,
        "features": torch.randn(n, 2, FEATURES, generator=generator, dtype=torch.float64).to(case.dtype),
        "labels": labels,
        "probabilities": torch.randn(n, 4, generator=generator, dtype=torch.float64).softmax(1).to(case.dtype),
    }


def rows_of(rank: int, world: int, shards: str) -> slice:
    first = sum(len(shard) for shard in SHARDS[world][shards][:rank])
    return slice(first, first + len(SHARDS[world][shards][rank]))


def anchors_of(case: Case, rank: int, world: int) -> slice:
    """Of a rank, whose losses it gets."""
    if case.loss.startswith("proxy_anchor"):
        count = len(make_loss(case.loss, case.dtype).proxies)
        return slice(count * rank // world, count * (rank + 1) // world)
    return rows_of(rank, world, case.shards)


def compute(case: Case, model: nn.Module, loss: nn.Module, parameters, inputs: dict, anchors: slice) -> dict:
    """The loss, and the gradients of the ``parameters`` of the model and the loss."""
    features = inputs["features"]
    first, second = model(features.flatten(0, 1)).unflatten(0, features.shape[:2]).unbind(1)
    first.retain_grad()
    arguments = [second] if case.loss in VIEW_LOSSES else [inputs["labels"]]
    if case.loss.endswith("-documents"):  # a further one for each
        arguments = [torch.cat([second, second.roll(1, 1)])]
    arguments += [inputs["probabilities"]] if case.loss == "pce" else []
    further = {name: inputs[name] for name in ("ids", "weights") if name in inputs}
    if case.loss.endswith("-bias"):
        further |= {"ref_bias": inputs["numbers"][:, 0], "ignore_above": 0.1}
    if case.loss.endswith("-scalars"):
        w, q = inputs["numbers"].unbind(1)
        further |= {"anchor_scalars": {"w": w}, "ref_scalars": {"q": q}}
    given = [torch.tensor(x, dtype=first.dtype, requires_grad=True) for x in (0.7, -0.3)]
    if case.loss.endswith("-given"):  # a scale and a bias of the model
        further |= {"scale": given[0], "bias": given[1]}
    value = loss(first, *arguments, **further)
    incoming = torch.linspace(1, 2, 12, dtype=value.dtype)
    value.backward(incoming[anchors][: len(value)] if case.reduction == "none" else incoming[3])
    result = {"value": value.detach(), "embeddings": first.grad.clone()}
    result |= {name: p.grad.clone() for name, p in parameters if p.grad is not None}
    result |= {f"given.{i}": t.grad for i, t in enumerate(given) if t.grad is not None}
    for _, p in parameters:
        p.grad = None
    return result


# ---- the processes


def record_calls(record: list) -> None:
    """Puts the numbers of rows of both sides of every operator that is called into ``record``."""
    for name in ("ops.pair_loss", "ops.linear_cross_entropy", "losses.bounds"):
        module = sys.modules[f"fastpair.{name}"]

        def recorded(name, backend, tensors, settings, *further, fused_loss=module.fused_loss):
            record.append((len(tensors[0]), len(tensors[0] if tensors[1] is None else tensors[1])))
            return fused_loss(name, backend, tensors, settings, *further)

        module.fused_loss = recorded


def run_cases(rank: int, world: int) -> tuple[dict, dict]:
    """Results, and what operators were called with."""
    models = {dtype: DistributedDataParallel(make_model(dtype)) for dtype in (torch.float32, torch.float64)}
    results, calls = {}, {}
    record: list = []
    record_calls(record)
    for name in LOSSES:
        for case in cases(world, name):
            model, loss = models[case.dtype], GlobalBatchLoss(make_loss(name, case.dtype, reduction=case.reduction))
            rows = rows_of(rank, world, case.shards)
            inputs = {key: t[rows] for key, t in batch(case, world).items()}
            parameters = [*model.module.named_parameters(), *loss.loss.named_parameters(prefix="loss")]
            anchors = anchors_of(case, rank, world)
            record.clear()
            results[case] = compute(case, model, loss, parameters, inputs, anchors)
            calls[case] = list(record)
    return results, calls


def run_gather(rank: int, world: int) -> dict:
    """Sums of gathered rows, weighted differently on every rank."""
    results = {}
    for dtype in (torch.float64, torch.bfloat16):
        sizes = [3, 0, 2][:world]
        x = torch.arange(2.0 * sizes[rank]).reshape(-1, 2).to(dtype) + 10 * rank
        x.requires_grad_()
        y = _Gather.apply(x, sizes, None)
        weights = torch.arange(2.0 * sum(sizes)).reshape(-1, 2).to(dtype) * 10.0**rank
        (y * weights).sum().backward()
        results[dtype] = {"rows": y.detach(), "gradient": x.grad}
    return results


def run_ways_of_ddp(rank: int, world: int) -> dict:
    """Both in one module, the loss in a DDP of its own, gradients added up before they are averaged, frozen parts."""
    case = Case("arcface", "uneven", torch.float64)
    rows = rows_of(rank, world, case.shards)
    inputs = {name: t[rows] for name, t in batch(case, world).items()}
    x, labels = inputs["features"][:, 0], inputs["labels"]
    results = {}

    class Both(nn.Module):
        def __init__(self):
            super().__init__()
            self.model, self.loss = make_model(case.dtype), GlobalBatchLoss(make_loss(case.loss, case.dtype))

        def forward(self, x, labels):
            return self.loss(self.model(x), labels)

    def gradients(both):
        return {name.replace("loss.loss", "loss"): p.grad for name, p in both.named_parameters() if p.requires_grad}

    together = Both()
    wrapped = DistributedDataParallel(together)
    wrapped(x, labels).backward()
    results["together"] = gradients(together)

    apart = Both()
    model, loss = DistributedDataParallel(apart.model), DistributedDataParallel(apart.loss)
    loss(model(x), labels).backward()
    results["apart"] = gradients(apart)

    added = Both()
    wrapped = DistributedDataParallel(added)
    with wrapped.no_sync():
        wrapped(x, labels).backward()
    wrapped(x, labels).backward()
    results["added"] = gradients(added)

    frozen = Both()
    frozen.loss.requires_grad_(False)
    model, loss = DistributedDataParallel(frozen.model), frozen.loss
    loss(model(x), labels).backward()
    results["frozen"] = gradients(frozen)

    head = Both()
    head.loss(head.model(x).detach(), labels).backward()  # no gradient of embeddings
    results["head"] = {"loss.weight": head.loss.loss.weight.grad}
    return results


def run_autocast(rank: int, world: int) -> dict:
    results = {}
    for name in ("supcon", "linear_cross_entropy", "proxy_anchor", "siglip", "spce", "pce"):
        case = Case(name, "uneven", torch.float32)
        inputs = {k: t[rows_of(rank, world, case.shards)] for k, t in batch(case, world).items()}
        model, loss = DistributedDataParallel(make_model(case.dtype)), GlobalBatchLoss(make_loss(name, case.dtype))
        parameters = [*model.module.named_parameters(), *loss.loss.named_parameters(prefix="loss")]
        with torch.autocast("cpu", dtype=torch.bfloat16):
            results[name] = compute(case, model, loss, parameters, inputs, slice(None))
    return results


def run_group(rank: int, world: int) -> dict:
    """The last rank is in no group."""
    group = dist.new_group(list(range(world - 1)))
    if rank == world - 1:
        return {}
    case = Case("supcon", "uneven", torch.float64)
    inputs = {k: t[rows_of(rank, world, case.shards)] for k, t in batch(case, world).items()}
    model = DistributedDataParallel(make_model(case.dtype), process_group=group)
    loss = GlobalBatchLoss(make_loss(case.loss, case.dtype), group)
    return compute(case, model, loss, list(model.module.named_parameters()), inputs, slice(None))


# Ways of using a cached loss: with which loss and which rows of every rank.
CACHED = {
    "one": ("supcon", "uneven"),
    "no-rows-on-one": ("supcon", "no-rows-on-one"),
    "class-weights": ("arcface", "uneven"),
    "two": ("info_nce-learned", "uneven"),
    "twice": ("info_nce-learned", "uneven"),
    "added": ("supcon", "uneven"),
}


def cached_models(name: str) -> tuple[nn.Module, ...]:
    """The model of each input."""
    first, second = make_model(torch.float64), make_model(torch.float64)
    with torch.no_grad():
        second[0].weight.mul_(-2)
    return {"two": (first, second), "twice": (first, first)}.get(name, (first,))


def counted_allreduce(state, bucket):
    """``state``: a list, and the number of a model to append to it. A model's gradients fit one bucket. (DDP takes no
    annotations that are strings, as they are here.)"""
    calls, model = state
    calls.append(model)
    return allreduce_hook(None, bucket)


def run_cached(rank: int, world: int) -> dict:
    """Values, gradients of the models and the loss, and how often each model was synchronised."""
    results = {}
    for name, (loss, shards) in CACHED.items():
        case = Case(loss, shards, torch.float64)
        inputs = {k: t[rows_of(rank, world, shards)] for k, t in batch(case, world).items()}
        models = cached_models(name)
        wrapped = {model: DistributedDataParallel(model) for model in models}
        synchronised: list[int] = []
        for i, model in enumerate(wrapped.values()):
            model.register_comm_hook((synchronised, i), counted_allreduce)
        loss = GlobalBatchLoss(make_loss(loss, case.dtype))
        cached = CachedLoss([wrapped[model] for model in models], loss, 2)
        rest = inputs["features"].unbind(1)[: len(models)] + ((inputs["labels"],) if len(models) == 1 else ())
        if name == "added":
            with contextlib.ExitStack() as stack:
                for model in wrapped.values():
                    stack.enter_context(model.no_sync())
                cached(*rest).backward()
        value = cached(*rest)
        value.backward()
        parameters = [p for module in (*wrapped, loss) for p in module.parameters()]
        results[name] = {
            "value": value.detach(),
            "gradients": [p.grad for p in parameters],
            "synchronised": synchronised,
        }
    return results


def run_cached_buffers(rank: int, world: int) -> torch.Tensor:
    """How many batches a batch norm has counted after two steps of different numbers of chunks."""
    model = nn.Sequential(nn.Linear(FEATURES, D), nn.BatchNorm1d(D))
    cached = CachedLoss(DistributedDataParallel(model), GlobalBatchLoss(losses.SupConLoss()), 4)
    for _ in range(2):
        cached(torch.randn(4 * (rank + 2), FEATURES), torch.arange(4 * (rank + 2)) // 2).backward()
    return model[1].num_batches_tracked


def run_errors(rank: int, world: int) -> dict:
    """Messages, which all ranks get before any of them waits for another."""
    x, labels = torch.randn(4, D, requires_grad=True), torch.arange(4) % 2
    lists = (labels,) * 3
    supcon, anchor = GlobalBatchLoss(losses.SupConLoss()), GlobalBatchLoss(losses.ProxyAnchorLoss(*SIZES))
    calls = {
        "indices_tuple": lambda: supcon(x, labels, lists),
        "ref_emb": lambda: supcon(x, labels, ref_emb=x, ref_labels=labels),
        "ref_labels": lambda: supcon(x, labels, ref_labels=labels),
        "exclude_self": lambda: supcon(x, labels, exclude_self=False),
        "proxy_anchor": lambda: anchor(x, labels, lists),
        "class": lambda: GlobalBatchLoss(losses.CenterLoss(*SIZES))(x, labels, lists),
        "labels": lambda: supcon(x, labels[:3]),
        "views": lambda: GlobalBatchLoss(losses.InfoNCELoss())(x, x[:3]),
        "pce": lambda: GlobalBatchLoss(losses.PCELoss())(x, labels, torch.ones(4, 3) / 3),
    }

    def second_derivative(loss, *arguments):
        inputs = [x, *loss.parameters()]
        gradients = torch.autograd.grad(loss(x, *arguments), inputs, create_graph=True)
        torch.autograd.grad(sum(g.square().sum() for g in gradients), inputs)

    for name in ("supcon", "cosface", "center", "info_nce", "spce"):
        other = x.detach().clone() if name in VIEW_LOSSES else labels
        calls[f"twice-{name}"] = partial(second_derivative, GlobalBatchLoss(make_loss(name, x.dtype)), other)
    results = {}
    for name, call in calls.items():
        try:
            call()
            results[name] = "no error"
        except (ValueError, RuntimeError) as error:
            results[name] = f"{type(error).__name__}: {error}"
    return results


def run(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=60),
    )
    results, calls = run_cases(rank, world)
    done = {
        "cases": results,
        "calls": calls,
        "gather": run_gather(rank, world),
        "ddp": run_ways_of_ddp(rank, world),
        "autocast": run_autocast(rank, world),
        "group": run_group(rank, world),
        "cached": run_cached(rank, world),
        "buffers": run_cached_buffers(rank, world),
        "errors": run_errors(rank, world),
    }
    torch.save(done, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def main() -> None:
    """Runs the ranks of all worlds side by side, each world in the folder that has its number as its name."""
    # Forked, since what each would import takes as long as its work: DistributedDataParallel asks for the compiler.
    way = "fork" if "fork" in multiprocessing.get_all_start_methods() else "spawn"
    if way == "fork":
        importlib.import_module("torch._dynamo")
    context = multiprocessing.get_context(way)
    processes = [
        context.Process(target=run, args=(rank, world, folder), daemon=True)
        for world, folder in ((int(Path(folder).name), folder) for folder in sys.argv[1:])
        for rank in range(world)
    ]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    sys.exit(any(process.exitcode for process in processes))
