"""The examples of the documentation: they run, and the losses written in docs/losses.md are those of their papers."""

import importlib.util
import math
import re
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

import fastpair

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", *(str(path.relative_to(ROOT)) for path in sorted(ROOT.glob("docs/*.md")))]
NOTEBOOKS = sorted(ROOT.glob("docs/notebooks/*.ipynb"))


def blocks(page, language="python"):
    return re.findall(f"```{language}\n(.*?)```", (ROOT / page).read_text(encoding="utf-8"), re.DOTALL)


@pytest.fixture(scope="module")
def examples():
    """The names that the examples define, run one after the other as a reader would."""
    torch.manual_seed(0)
    names = {}
    for code in blocks("docs/losses.md"):
        exec(code, names)
    return names


@pytest.fixture
def batch():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(40, 8, generator=generator, dtype=torch.float64).requires_grad_()
    labels = torch.randint(9, (40,), generator=generator)
    same = labels[:, None] == labels[None, :]
    return x, labels, same & ~torch.eye(40, dtype=torch.bool), ~same


def assert_equal(got, want, *leaves):
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(*(torch.autograd.grad(value, leaves) for value in (got, want)))


def test_tuplet_margin(examples, batch):
    x, labels, positive, negative = batch
    cosines = F.normalize(x) @ F.normalize(x).T
    rows = []
    for i, row in enumerate(cosines):
        for own in row[positive[i]]:
            slack = torch.cos(torch.acos(own) - 0.1)
            rows.append(torch.log1p(torch.exp(64 * (row[negative[i]] - slack)).sum()))
    assert_equal(examples["tuplet_margin"](x, labels), torch.stack(rows).mean(), x)


def test_margin(examples, batch):
    x, labels, positive, negative = batch
    distances = (F.normalize(x)[:, None] - F.normalize(x)[None, :]).square().sum(2).clamp(min=1e-30).sqrt()
    terms = torch.cat([(0.2 + distances - 1.2)[positive], (0.2 + 1.2 - distances)[negative]]).clamp(min=0)
    assert_equal(examples["margin"](x, labels), terms.sum() / (terms > 0).sum(), x)


def test_soft_nearest_neighbour(examples, batch):
    x, labels, positive, negative = batch
    loss = examples["soft_nearest_neighbour"]
    assert math.isfinite(loss.scale.grad)
    weights = torch.exp(-(x[:, None] - x[None, :]).square().sum(2) * loss.scale.double())
    counted = positive.any(1)
    shares = (weights * positive).sum(1) / (weights * (positive | negative)).sum(1)
    want = -shares[counted].log().mean()
    assert_equal(loss(x, labels), want, x, loss.scale)


def test_numbers_of_rows(examples, batch):
    x, labels, positive, negative = batch
    trust, slack = (torch.rand(40, generator=torch.Generator().manual_seed(k), dtype=torch.float64) for k in (0, 1))
    cosines = F.normalize(x) @ F.normalize(x).T
    own, others = trust[:, None] * trust[None, :] * torch.exp(-cosines), torch.exp(cosines - slack[:, None])
    means = [(u * pairs).sum(1) / pairs.sum(1).clamp(min=1) for u, pairs in ((own, positive), (others, negative))]
    counted = positive.any(1) & negative.any(1)
    want = sum(means)[counted].mean()
    scalars = {"anchor_scalars": {"trust": trust, "slack": slack}, "ref_scalars": {"trust": trust}}
    assert_equal(examples["trusted"](x, labels, **scalars), want, x)


def test_large_batches():
    """The examples of docs/large-batches.md: all that learns gets a gradient."""
    names = {}
    for code in blocks("docs/large-batches.md"):
        exec(code, names)
    assert torch.isfinite(names["value"])
    for loss in (names["loss"], names["clip"], names["search"]):
        assert all(p.grad.any() and p.grad.isfinite().all() for p in loss.parameters())


# ---- every page


def of_pml():
    """What a reader who comes from pytorch-metric-learning has imported."""
    pytest.importorskip("pytorch_metric_learning")
    from pytorch_metric_learning import distances, reducers, regularizers

    return {name: value for module in (distances, reducers, regularizers) for name, value in vars(module).items()}


def of_training():
    """What a training script has before the lines on CUDA graphs."""
    model = torch.nn.Linear(8, 4)
    images, labels = torch.randn(16, 8), torch.arange(16) // 4
    return {
        "model": model,
        "loss": fastpair.losses.SupConLoss(),
        "images": images,
        "labels": labels,
        "batches": [(images, labels)] * 2,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
    }


# What the examples of a page take as given.
GIVEN = {
    "docs/gpu.md": of_training,
    "docs/pytorch-metric-learning.md": lambda: {"fastpair": fastpair, **of_pml()},
}


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page) and page != "docs/switching.md"])
def test_examples_run(page, monkeypatch):
    """One after the other, as a reader would. Those of docs/switching.md run beside their libraries: tests/clients."""
    if not torch.cuda.is_available():  # the example is then run without its graph
        monkeypatch.setattr("torch.cuda.make_graphed_callables", lambda module, arguments: module)
    torch.manual_seed(0)
    names = {"torch": torch, **GIVEN.get(page, dict)()}
    for code in blocks(page):
        exec(code, names)


@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page, "sh")])
def test_commands_are_there(page):
    """Targets of make, modules and scripts that the pages name."""
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    commands = "".join(blocks(page, "sh"))
    for target in re.findall(r"\bmake ([\w-]+)", commands):
        assert target in targets
    for script in re.findall(r"python ([\w/]+\.py)", commands):
        assert (ROOT / script).is_file()
    for module in re.findall(r"python -m (benchmarks[\w.]*)", commands):
        assert (ROOT / (module.replace(".", "/") + ".py")).is_file()


@pytest.fixture
def notebooks():
    """The module that runs them for the site."""
    pytest.importorskip("matplotlib")
    path = ROOT / "docs" / "site" / "notebooks.py"
    spec = importlib.util.spec_from_file_location("notebooks", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])
def test_notebooks(notebooks, path):
    torch.manual_seed(0)
    names, printed = {}, ""
    for kind, source in notebooks.cells(path):
        if kind == "code":
            printed += notebooks.run(source, names)
    results = [float(number) for number in re.findall(r"\d\.\d+", printed)]
    if path.stem == "first-steps":
        before, after = results[:2]
        assert after > before + 0.1, printed
    if path.stem == "rivals":
        assert printed.count("Recall@1") == 5 and all(0 <= value <= 1 for value in results), printed
    if path.stem == "bounds":
        first, last = names["history"][0], names["history"][-1]
        assert last["ce"] < first["ce"] / 2 and last["snca/tightness"] + last["snca/contrast"] < 0.5, printed
        assert all(t["information"] <= t["entropy"] for t in names["history"])
