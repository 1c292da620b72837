"""GlobalBatchLoss: two and three processes against one with all rows."""

from functools import partial
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from distributed_worker import (
    CACHED,
    LOSSES,
    PAIR_LOSSES,
    SHARDS,
    VIEW_LOSSES,
    Case,
    anchors_of,
    batch,
    cached_models,
    cases,
    compute,
    make_loss,
    make_model,
    rows_of,
)
from support import needs_cpu_kernels

import fastpair
from fastpair import losses
from fastpair.distributed import GlobalBatchLoss

pytestmark = [
    needs_cpu_kernels,
    pytest.mark.skipif(not (dist.is_available() and dist.is_gloo_available()), reason="this PyTorch has no gloo"),
]
WORLDS = (2, 3)
TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}
# Gradients that cancel to nothing are held against this instead of against their own norm.
FLOOR = 1e-2


@pytest.fixture(scope="module")
def results(forks, tmp_path_factory):
    """What each rank of each world computed, the worlds side by side."""
    folders = {world: tmp_path_factory.mktemp(str(world), numbered=False) for world in WORLDS}
    # What users write is compiled once, not by each process.
    for name in LOSSES:
        if name.startswith("custom"):
            for case in cases(2, name):
                in_one_process(case, 2)
    call = "import distributed_worker; distributed_worker.main()"
    forks.run(call, *folders.values(), folder=Path(__file__).parent)
    return {
        world: [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(world)]
        for world, folder in folders.items()
    }


def in_one_process(case: Case, world: int) -> dict:
    model, loss = make_model(case.dtype), make_loss(case.loss, case.dtype, reduction=case.reduction)
    parameters = [*model.named_parameters(), *loss.named_parameters(prefix="loss")]
    return compute(case, model, loss, parameters, batch(case, world), slice(None))


def error(got, want) -> float:
    assert got.shape == want.shape and got.dtype == want.dtype
    assert got.isfinite().all()
    return ((got.double() - want.double()).norm() / want.double().norm().clamp(min=FLOOR)).item()


def differences(got: dict, want: dict, world: int, rows: slice) -> dict[str, float]:
    """Errors of a rank's results: its rows get ``world`` times their gradient."""
    want = want | {"embeddings": world * want["embeddings"][rows]}
    return {name: error(got[name], want[name]) for name in want}


each_loss = pytest.mark.parametrize("name", LOSSES)
each_world = pytest.mark.parametrize("world", WORLDS)


@each_loss
@each_world
def test_one_large_batch(name, world, results):
    """Loss and gradients: of the model's parameters after DDP's average, of the loss's own, and of the embeddings."""
    for case in cases(world, name):
        want = in_one_process(case, world)
        assert case.shards != "uneven" or want["embeddings"].any()
        for rank in range(world):
            got = results[world][rank]["cases"][case]
            if case.reduction == "none":
                of_rank = want | {"value": want["value"][anchors_of(case, rank, world)]}
            else:
                of_rank = want
                assert torch.equal(got["value"], results[world][0]["cases"][case]["value"])
            found = differences(got, of_rank, world, rows_of(rank, world, case.shards))
            assert max(found.values()) <= TOLERANCE[case.dtype], (case, rank, found)


@each_loss
@each_world
def test_nobody_does_the_work_of_others(name, world, results):
    """The rows and columns of every operator that was called: own anchors against all rows, or against the classes."""
    of_pairs = name in PAIR_LOSSES or name in VIEW_LOSSES or name.startswith("proxy_anchor")
    for case in cases(world, name):
        for rank in range(world):
            calls = results[world][rank]["calls"][case]
            assert calls or name == "center"  # which is no operator
            anchors = anchors_of(case, rank, world)
            for rows, columns in calls:
                assert rows == anchors.stop - anchors.start
                every = sum(map(len, SHARDS[world][case.shards]))
                assert columns in (every, 2 * every * name.endswith("-documents")) or not of_pairs


@each_world
def test_gather(world, results):
    """Own rows first, and back comes what all ranks say: rank r weighs element k of what it sees by 10^r k."""
    sizes = [3, 0, 2][:world]
    own = [torch.arange(2.0 * n).reshape(-1, 2) + 10 * rank for rank, n in enumerate(sizes)]
    for dtype in (torch.float64, torch.bfloat16):
        said = [torch.zeros(n, 2, dtype=torch.float64) for n in sizes]
        for rank in range(world):
            order = [(rank + i) % world for i in range(world)]
            rows = torch.cat([own[r] for r in order])
            assert torch.equal(results[world][rank]["gather"][dtype]["rows"], rows.to(dtype))
            weights = torch.arange(2.0 * sum(sizes)).reshape(-1, 2).to(dtype) * 10.0**rank
            for r, part in zip(order, weights.double().split([sizes[r] for r in order])):
                said[r] += part
        for rank in range(world):
            gradient = results[world][rank]["gather"][dtype]["gradient"]
            # Added up in float32, rounded once.
            assert gradient.dtype == dtype
            assert torch.equal(gradient, said[rank].to(dtype))


@each_world
def test_ways_of_ddp(world, results):
    case = Case("arcface", "uneven", torch.float64)
    model, loss = make_model(case.dtype), make_loss(case.loss, case.dtype)
    inputs = batch(case, world)
    loss(model(inputs["features"][:, 0]), inputs["labels"]).backward()
    want = {f"model.{name}": p.grad for name, p in model.named_parameters()} | {"loss.weight": loss.weight.grad}
    for rank in range(world):
        ways = results[world][rank]["ddp"]
        assert set(ways["together"]) == set(ways["apart"]) == set(want)
        assert set(ways["frozen"]) == set(want) - {"loss.weight"}
        for way, gradients in ways.items():
            for name, gradient in gradients.items():
                assert error(gradient, want[name] * (2 if way == "added" else 1)) <= 1e-12, (way, name)


@each_world
def test_autocast(world, results):
    for rank in range(world):
        for name, got in results[world][rank]["autocast"].items():
            case = Case(name, "uneven", torch.float32)
            model, loss = make_model(case.dtype), make_loss(name, case.dtype)
            parameters = [*model.named_parameters(), *loss.named_parameters(prefix="loss")]
            with torch.autocast("cpu", dtype=torch.bfloat16):
                want = compute(case, model, loss, parameters, batch(case, world), slice(None))
            # The embeddings' gradients are rounded to 8 bits once for each rank.
            found = differences(got, want, world, rows_of(rank, world, case.shards))
            assert found.pop("value") <= 1e-3, name
            assert max(found.values()) <= 2e-2, (name, found)


def test_some_of_the_processes(results):
    case = Case("supcon", "uneven", torch.float64)
    inputs = {k: t[: rows_of(2, 3, case.shards).start] for k, t in batch(case, 3).items()}
    model, loss = make_model(case.dtype), make_loss(case.loss, case.dtype)
    want = compute(case, model, loss, list(model.named_parameters()), inputs, slice(None))
    for rank in range(2):
        found = differences(results[3][rank]["group"], want, 2, rows_of(rank, 3, case.shards))
        assert max(found.values()) <= 1e-12


@each_world
@pytest.mark.parametrize("name", CACHED)
def test_cached_loss(name, world, results):
    """The whole batch of all processes at once, and one synchronisation of each model."""
    loss, shards = CACHED[name]
    case = Case(loss, shards, torch.float64)
    models, loss, inputs = cached_models(name), make_loss(loss, case.dtype), batch(case, world)
    embeddings = [model(x) for model, x in zip(models, inputs["features"].unbind(1))]
    value = loss(*embeddings, *([inputs["labels"]] if len(models) == 1 else []))
    (value * (2 if name == "added" else 1)).backward()
    parameters = [p for module in (*dict.fromkeys(models), loss) for p in module.parameters()]
    for rank in range(world):
        got = results[world][rank]["cached"][name]
        assert error(got["value"], value.detach()) <= 1e-12
        for gradient, p in zip(got["gradients"], parameters, strict=True):
            assert error(gradient, p.grad) <= 1e-12
        assert sorted(got["synchronised"]) == list(range(len(set(models))))


@each_world
def test_buffers_of_a_cached_loss(world, results):
    """Those of the first process at the start of each step, and then a change for each own chunk."""
    for rank in range(world):
        assert results[world][rank]["buffers"] == 2 + (rank + 2)


@each_world
def test_errors(world, results):
    for rank in range(world):
        errors = results[world][rank]["errors"]
        for name in ("indices_tuple", "ref_emb", "ref_labels", "exclude_self"):
            assert errors.pop(name).startswith(f"ValueError: {name} must be None: the anchors are compared")
        assert errors.pop("proxy_anchor").startswith("ValueError: indices_tuple must be None")
        assert errors.pop("class").startswith("ValueError: indices_tuple must be None")
        assert errors.pop("labels").startswith("ValueError: labels must have shape (4,)")
        assert errors.pop("views").startswith("ValueError: ref_emb must have 4 rows")
        assert errors.pop("pce").startswith("ValueError: lam must be given")
        for name in list(errors):
            assert "differentiated once" in errors.pop(name), name


# ---- one process


def test_one_process_is_the_loss_itself(tmp_path):
    """Without a process group and in one of a single process: the same bits, and all arguments."""
    calls = {name: Case(name, "uneven", torch.float32) for name in LOSSES}

    def check():
        for name, case in calls.items():
            inputs = batch(case, 2)
            run = partial(compute, case, make_model(case.dtype), inputs=inputs, anchors=slice(None))
            loss = make_loss(name, case.dtype)
            want = run(loss, list(loss.named_parameters()))
            got = run(GlobalBatchLoss(loss), list(loss.named_parameters()))
            assert all(torch.equal(got[k], want[k]) for k in want)
        x = torch.randn(6, 4)
        lists = (torch.tensor([0]), torch.tensor([2]), torch.tensor([1]))
        for loss in (losses.SupConLoss(), losses.ContrastiveLoss()):
            assert torch.equal(GlobalBatchLoss(loss)(x, None, lists), loss(x, None, lists))

    check()
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/alone", rank=0, world_size=1)
    try:
        check()
    finally:
        dist.destroy_process_group()


def test_losses_that_there_are():
    kinds = {type(make_loss(name, torch.float32)).__name__ for name in LOSSES}
    assert kinds | {"CrossBatchMemory"} == set(losses.__all__)
    for loss in (losses.CrossBatchMemory(losses.SupConLoss(), 4), torch.nn.CrossEntropyLoss()):
        with pytest.raises(TypeError, match=rf"one of fastpair.losses .* got {type(loss).__name__}"):
            fastpair.distributed.GlobalBatchLoss(loss)
