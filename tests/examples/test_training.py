"""The training example: settings and recipes, its run folder, several processes, and that a run that was stopped goes
on as if it had not been."""

import contextlib
import csv
import errno
import functools
import io
import itertools
import json
import multiprocessing
import os
import re
import runpy
import shutil
import signal
import sys
import time
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from forks import Forks
from trees import (
    class_and_number,
    glyphs,
    make_cars_annos,
    make_cub,
    make_image_folder,
    make_inshop,
    make_sop,
    tiny_counts,
)

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")
torchvision = pytest.importorskip("torchvision")

HERE = Path(__file__).parent
EXAMPLES = HERE.parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_dml  # noqa: E402
from fastpair_dml import backbones, bounds, evaluation, model, plots, runfolder, settings, training  # noqa: E402
from fastpair_dml.data import DATASETS, preprocessing  # noqa: E402
from fastpair_dml.errors import UserError  # noqa: E402
from fastpair_dml.evaluation import Gallery  # noqa: E402
from fastpair_dml.history import History  # noqa: E402
from fastpair_dml.losses import LOSSES  # noqa: E402
from fastpair_dml.plan import Took, check_images, together  # noqa: E402
from fastpair_dml.processes import Processes  # noqa: E402
from fastpair_dml.report import table  # noqa: E402
from fastpair_dml.runfolder import write_atomically  # noqa: E402
from fastpair_dml.stopping import Stop  # noqa: E402
from fastpair_dml.trainer import Trainer  # noqa: E402
from matplotlib.backends.backend_agg import FigureCanvasAgg  # noqa: E402
from matplotlib.text import Text  # noqa: E402
from torch._dynamo import lookup_backend  # noqa: E402

from fastpair import bounds as library_bounds  # noqa: E402
from fastpair import losses as fp  # noqa: E402
from fastpair import retrieval  # noqa: E402

# Losses with a classifier, with proxies, and on two views without parameters.
RESUMED = ("ce", "proxy_anchor", "info_nce")
# The files of a run's pictures, and what draws them.
PICTURES = {f"{of}.png": getattr(train_dml, f"plot_{of}") for of in ("curves", "comparison", "retrieval", "bounds")}
METRICS = {f"{d}/{m}" for d in ("cosine", "l2") for m in ("recall@1", "recall@2", "recall@4", "recall@8", "map@r")}
# The recipes of the paper, and what makes a tree for each.
TREES = {"cub": make_cub, "cars": make_cars_annos, "sop": make_sop, "inshop": make_inshop}
# What makes them small: nothing else of a recipe is changed.
SMALL = ("--weights", "none", "--image-size", "32", "--batch-size", "8", "--epochs", "2", "--workers", "0")


@pytest.fixture
def options(tmp_path):
    """A run of 4 epochs of 3 steps."""
    return short_run(make_image_folder(tmp_path / "images"))


def short_run(folder):
    return [
        *("--dataset", "folder", "--data-dir", str(folder), "--epochs", "4", "--workers", "0"),
        *("--image-size", "16", "--resize", "18", "--batch-size", "9", "--embedding-size", "8"),
        *("--figure-queries", "3", "--figure-neighbours", "2"),
    ]


@pytest.fixture(scope="module", autouse=True)
def _described_pictures():
    with pytest.MonkeyPatch.context() as patch:
        describe_pictures(patch)
        yield


def describe_pictures(monkeypatch):
    """In the files of pictures is what they would show: to draw them takes longer than these trainings."""

    def describe(path, *shown):
        path.write_text(json.dumps(shown, default=str))

    for plot in PICTURES.values():
        monkeypatch.setattr(train_dml, plot.__name__, describe)


@pytest.fixture(scope="module")
def forks():
    with Forks("test_training", "torch.distributed.launcher", path=(EXAMPLES.parent, EXAMPLES, HERE)) as forks:
        yield forks


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory):
    """The options and the folder of a run of several losses that nothing interrupted."""
    root = tmp_path_factory.mktemp("whole")
    options = [*short_run(make_image_folder(root / "images")), "--loss", ",".join(RESUMED), "--log-bounds"]
    assert train_dml.main([*options, "--output", str(root / "run")]) == 0
    return options, root / "run"


def error_of(capsys, argv):
    assert train_dml.main(argv) == 2
    return capsys.readouterr().err


def same(a, b):
    """Whether two things hold the same bits in the same order, save how long it took and how much memory."""
    measured = {"seconds", "training_seconds", "evaluation_seconds", "images_per_second", "memory_mib"}
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a.keys() - measured)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def same_pictures(one, other, figures):
    """Whether pictures of two runs would show the same."""
    return same(*({figure: json.loads((run / figure).read_text()) for figure in figures} for run in (one, other)))


def same_state(one, other):
    """Whether two checkpoints' files are the same."""
    return same(*(torch.load(path, weights_only=True) for path in (one, other)))


def results_of(run):
    return json.loads((run / "metrics.json").read_text())["results"]


# ---- recipes


def shallow_resnet(monkeypatch):
    """One narrow block in each stage of ResNet-50, for the time that its checkpoints take."""
    from torchvision.models import resnet

    def make(weights):
        assert weights is None
        return resnet.ResNet(resnet.Bottleneck, [1, 1, 1, 1], width_per_group=8)

    monkeypatch.setattr("torchvision.models.resnet50", make)


# On each sample and on pairs.
@pytest.mark.parametrize(
    "recipe, losses",
    [("cub", "ce"), ("cars", "multi_similarity"), ("sop", "ce"), ("inshop", "ce,multi_similarity")],
)
def test_every_recipe_trains_is_stopped_and_goes_on(monkeypatch, tmp_path, recipe, losses):
    tiny_counts(monkeypatch)
    shallow_resnet(monkeypatch)
    data = TREES[recipe](tmp_path)
    options = ["--recipe", recipe, "--data-dir", str(data), "--loss", losses, *SMALL, "--epochs", "1"]
    if recipe == "inshop":
        options += ["--as-published"]
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_dml.main([*options, "--output", str(whole)]) == 0
    for loss in losses.split(","):
        result = results_of(whole)[loss]["0"]
        assert result["steps"] == 2 and np.isfinite(result["history"]["loss"]).all()
        for k in settings.RECIPES[recipe]["recall_at"]:
            assert 0 <= result["before"][f"cosine/recall@{k}"] <= 1
        deepest = max(settings.RECIPES[recipe]["recall_at"])
        assert result["after"][f"l2/recall@{deepest}"] == 1, "deeper than the gallery"

    if recipe != "inshop":  # whose network has statistics of features, and whose optimizer has momentum
        return
    # Stopped in the middle of the second loss's epoch.
    steps = 3
    train_step = Trainer.train_step

    def stop(self, views, labels):
        nonlocal steps
        steps -= 1
        if steps == 0:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, views, labels)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        assert train_dml.main([*options, "--output", str(parts)]) == 130
    stopped = torch.load(parts / "multi_similarity-0.last.pt", weights_only=True)
    assert (stopped["epoch"], stopped["step_of_epoch"]) == (0, 1)
    assert train_dml.main(["--output", str(parts), "--resume"]) == 0
    for name in ("ce-0.last.pt", "multi_similarity-0.last.pt", "ce-0.best.pt"):
        assert same_state(whole / name, parts / name), name


def train_as_one_of_several(runs, folder):
    """Each run, and again when it is finished, in one of the processes that a launcher started."""
    patch = pytest.MonkeyPatch()
    tiny_counts(patch)
    shallow_resnet(patch)
    describe_pictures(patch)
    for tree, options in runs.items():
        for resume in ([], ["--resume"]):
            assert train_dml.main([*options, "--output", f"{folder}/two-{tree}", *resume]) == 0


def test_two_processes_train_as_one_does(monkeypatch, tmp_path, forks):
    tiny_counts(monkeypatch)
    shallow_resnet(monkeypatch)
    # Without what each process does on its own: dropout, and the statistics of the last batch norm.
    options = [*SMALL, "--lr", "0.05", "--momentum", "0", "--no-nesterov", "--warmup", "0", "--no-feature-norm"]
    # On pairs, and on each sample with a gallery beside it.
    losses = {"cub": ["--loss", "supcon"], "inshop": ["--loss", "ce", "--dropout", "0"]}
    runs = {
        tree: ["--recipe", tree, "--data-dir", str(TREES[tree](tmp_path)), *options, *loss]
        for tree, loss in losses.items()
    }
    # What torchrun does, but that the processes are forked.
    code = (
        "from torch.distributed.launcher import LaunchConfig, elastic_launch\n"
        "from test_training import train_as_one_of_several\n"
        "standalone = {'rdzv_backend': 'c10d', 'rdzv_endpoint': 'localhost:0', 'run_id': 'test'}\n"
        "config = LaunchConfig(1, 1, 2, start_method='fork', max_restarts=0, **standalone)\n"
        f"elastic_launch(config, train_as_one_of_several)({runs!r}, {str(tmp_path)!r})\n"
    )
    forks.run(code)
    for tree, arguments in runs.items():
        assert train_dml.main([*arguments, "--output", str(tmp_path / f"one-{tree}")]) == 0
        one, two = (json.loads((tmp_path / f"{n}-{tree}" / "metrics.json").read_text()) for n in ("one", "two"))
        assert two["config"]["processes"] == 2
        torch.manual_seed(0)
        chosen = settings.make_settings(tree, {"weights": "none", "image_size": 32})
        start = dict(model.build_model(chosen, glyphs()).named_parameters())
        for loss, result in one["results"].items():
            assert result["0"]["steps"] == two["results"][loss]["0"]["steps"] == 4
            first, second = (
                torch.load(tmp_path / f"{n}-{tree}" / f"{loss}-0.last.pt", weights_only=True)["model"]
                for n in ("one", "two")
            )
            moved = sum((first[name] - p).square().sum() for name, p in start.items())
            apart = sum((first[name] - second[name]).square().sum() for name in start)
            # Gradients that are off by the number of processes, or belong to half of the batch, put this near 1; four
            # steps of this length make some hundredths of what is rounded.
            assert moved > 0 and (apart / moved).sqrt() < 0.1, (tree, loss)


def test_recipes_are_those_of_the_paper():
    cub, cars, sop, inshop = (settings.make_settings(name, {}) for name in ("cub", "cars", "sop", "inshop"))
    for recipe in (cub, cars, sop, inshop):
        assert (recipe.model, recipe.weights, recipe.freeze_batch_norm) == ("resnet50", "imagenet", True)
        assert (recipe.batch_size, recipe.optimizer, recipe.weight_decay) == (128, "sgd", 5e-4)
        assert (recipe.label_smoothing, recipe.warmup, recipe.image_size) == (0.1, 100, 224)
        assert recipe.crop_scale == (0.16, 1.0) and recipe.dropout == 0.5
    assert (cub.epochs, cub.lr, cub.momentum, cub.feature_norm) == (30, 0.02, 0, False)
    assert (cars.epochs, cars.lr, cars.momentum, cars.feature_norm) == (100, 0.05, 0, True)
    for recipe in (sop, inshop):
        assert (recipe.epochs, recipe.lr, recipe.momentum, recipe.nesterov) == (100, 0.003, 0.99, True)
        assert recipe.feature_norm and recipe.jitter == (0, 0, 0, 0)
    assert [(r.resize, r.square) for r in (cub, cars, sop)] == [(256, False), (256, True), (256, True)]
    assert inshop.resize is None
    assert cub.crop_ratio == sop.crop_ratio == inshop.crop_ratio == (3 / 4, 4 / 3) and cars.crop_ratio == (1, 1)
    assert cub.jitter == (0.25, 0.25, 0.25, 0) and cars.jitter == (0.3, 0.3, 0.3, 0.1)
    assert sop.recall_at == (1, 10, 100, 1000) and inshop.recall_at == (1, 10, 20, 30, 40, 50)


def trainer_of(recipe="glyphs", loss=("ce",), **given):
    chosen = settings.make_settings(recipe, {"weights": "none", "loss": loss, **given})
    return Trainer(loss[0], 0, chosen, glyphs(), torch.device("cpu"), Processes())


def test_the_optimizer_decays_matrices_alone_and_the_learning_rate_warms_up():
    trainer = trainer_of("cub")
    decayed, rest = trainer.optimizer.param_groups
    assert decayed["weight_decay"] == 5e-4 and rest["weight_decay"] == 0
    assert all(p.ndim > 1 for p in decayed["params"]) and all(p.ndim == 1 for p in rest["params"])
    learned = [*trainer.model.parameters(), *trainer.criterion.parameters()]
    assert len(decayed["params"]) + len(rest["params"]) == len(learned)
    rates = [trainer.lr_at(step) for step in range(trainer.total_steps + 1)]
    assert rates[0] == pytest.approx(0.02 / 100) and rates[49] == pytest.approx(0.01)
    half = trainer.total_steps // 2
    assert rates[half] == pytest.approx(0.01, rel=1e-2) and rates[-1] == pytest.approx(0, abs=1e-12)


def test_the_classifier_starts_at_zero_and_smooths_over_the_other_classes():
    torch.manual_seed(1)
    classes, size = 5, 3
    criterion = LOSSES["ce"].build(classes, size, settings.make_settings("glyphs", {"label_smoothing": 0.2}))
    weight, bias = criterion.loss.loss.weight, criterion.loss.loss.bias
    assert not weight.any() and not bias.any()
    with torch.no_grad():
        weight.normal_()
        bias.normal_()
    embeddings, labels = torch.randn(7, size), torch.randint(classes, (7,))
    target = torch.full((7, classes), 0.2 / (classes - 1)).scatter(1, labels[:, None], 0.8)
    logits = embeddings @ weight.T + bias
    expected = -(target * logits.log_softmax(1)).sum(1).mean()
    torch.testing.assert_close(criterion(embeddings, labels), expected, rtol=1e-5, atol=1e-6)


def test_batch_norm_keeps_its_statistics_and_the_features_have_their_own(monkeypatch):
    shallow_resnet(monkeypatch)
    network = trainer_of("cars").model
    norms = [m for m in network.backbone.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]
    network.train()
    features = network(torch.rand(6, 1, 32, 32))
    assert features.shape == (6, 2048), "grey images go into a network for colours"
    torch.testing.assert_close(features.mean(0), torch.zeros(2048), rtol=0, atol=1e-4)
    for norm, (mean, var) in zip(norms, before):
        assert torch.equal(norm.running_mean, mean) and torch.equal(norm.running_var, var)
        assert norm.weight.requires_grad
    assert len(list(network.feature_norm.parameters())) == 0


def test_weights_come_from_a_file(tmp_path):
    file = tmp_path / "resnet18.pth"
    network = torchvision.models.resnet18()
    torch.save(network.state_dict(), file)
    found = backbones.resnet("resnet18", str(file))
    assert torch.equal(found.network.conv1.weight, network.conv1.weight) and found.num_features == 512
    torch.save({"conv1.weight": network.conv1.weight}, file)
    message = "does not hold the weights of torchvision's resnet18: it has no bn1.weight and [0-9]+ more"
    with pytest.raises(UserError, match=message):
        backbones.resnet("resnet18", str(file))
    torch.save({**network.state_dict(), "head.weight": torch.ones(1)}, file)
    with pytest.raises(UserError, match="it has an unknown head.weight"):
        backbones.resnet("resnet18", str(file))
    file.write_bytes(b"torn")
    with pytest.raises(UserError, match=r"resnet18\.pth does not hold the weights of torchvision's resnet18"):
        backbones.resnet("resnet18", str(file))
    with pytest.raises(UserError, match=r"--weights is .*gone\.pth, but must be imagenet, none, or a file"):
        backbones.resnet("resnet18", str(tmp_path / "gone.pth"))


def test_weights_that_cannot_be_downloaded_are_named(monkeypatch):
    def offline(weights):
        raise OSError("no network")

    monkeypatch.setattr(torchvision.models, "resnet50", offline)
    message = "--weights imagenet cannot be downloaded: no network. Give the file resnet50-0676ba61.pth"
    with pytest.raises(UserError, match=message):
        backbones.resnet("resnet50", "imagenet")


def test_a_network_of_timms_trains_at_its_own_size(tmp_path, options, capsys):
    timm = pytest.importorskip("timm")
    own = settings.make_settings("folder", {"model": "timm:test_vit"})
    assert (own.image_size, own.resize) == (160, 180), "64 and 72 of the recipe, in proportion"
    scaled = settings.make_settings("folder", {"model": "timm:test_vit", "resize": 170})
    assert (scaled.image_size, scaled.resize) == (160, 170)
    assert train_dml.main(["--recipe", "folder", "--model", "timm:test_vit", "--show-settings"]) == 0
    assert re.search("image_size +160 +the network's own\n", capsys.readouterr().out)
    given = settings.make_settings("folder", {"model": "timm:test_vit", "image_size": 32})
    assert (given.image_size, given.resize) == (32, 72)
    assert settings.make_settings("cub", {"model": "resnet18"}).image_size == 224

    # Made for 160, with a classifier that training has no use for.
    file = tmp_path / "weights.safetensors"
    pytest.importorskip("safetensors.torch").save_file(timm.create_model("test_vit", img_size=32).state_dict(), file)
    output = tmp_path / "run"
    arguments = [*options, "--model", "timm:test_vit", "--image-size", "32", "--resize", "36", "--weights", str(file)]
    assert train_dml.main([*arguments, "--embedding-size", "0", "--output", str(output)]) == 0
    result = results_of(output)["ce"]["0"]
    assert result["history"]["loss"][-1] < result["history"]["loss"][0]
    state = torch.load(output / "ce-0.best.pt", weights_only=True)["model"]
    assert state["mean"].flatten().tolist() == [0.5] * 3 == state["std"].flatten().tolist(), "its own, not ImageNet's"
    loaded = backbones.timm_network("timm:test_vit", str(file), 32)
    with torch.no_grad():
        expected = timm.create_model("test_vit", img_size=32)
        expected.load_state_dict(loaded.network.state_dict(), strict=False)
        images = torch.rand(2, 3, 32, 32)
        features = expected.eval().forward_head(expected.forward_features(images), pre_logits=True)
        assert torch.equal(loaded.network.eval()(images), features) and loaded.num_features == features.shape[1]
    assert backbones.timm_network("timm:test_resnet", "none", 48).num_features == 96, "of any size"


def test_networks_of_timms_that_cannot_be_had_are_named(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    with pytest.raises(UserError, match=r"has no 'test_vitt'; near it are test_vit"):
        settings.make_settings("folder", {"model": "timm:test_vitt"})
    with pytest.raises(UserError, match="--model timm:test_vit.gone cannot be made: Invalid pretrained tag"):
        backbones.timm_network("timm:test_vit.gone", "none", 160)
    torch.save(timm.create_model("test_resnet").state_dict(), tmp_path / "resnet.pth")
    with pytest.raises(
        UserError, match=r"resnet\.pth does not hold the weights of timm's test_vit: it has no cls_token"
    ):
        backbones.timm_network("timm:test_vit", str(tmp_path / "resnet.pth"), 160)

    def offline(*_, **__):
        raise RuntimeError("no network")

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(
        UserError, match="--weights imagenet cannot be downloaded: no network. Give a file of the weights"
    ):
        backbones.timm_network("timm:test_vit", "imagenet", 160)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(UserError, match="--model timm:test_vit needs timm: pip install timm"):
        settings.make_settings("folder", {"model": "timm:test_vit"})


def test_more_smoothing_than_there_are_other_classes_for_is_refused():
    with pytest.raises(UserError, match=r"--label-smoothing is 0.9, but must be at most 0.8 with 5 classes"):
        LOSSES["ce"].build(5, 3, settings.make_settings("glyphs", {"label_smoothing": 0.9}))


def test_settings_of_losses_go_before_those_that_they_have_here():
    given = ("contrastive.neg_margin=0.25", "supcon.temperature=0.5")
    trainer = trainer_of(loss=("contrastive", "supcon"), loss_settings=given, embedding_size=8)
    losses = [m for m in trainer.criterion.modules() if isinstance(m, fp.ContrastiveLoss)]
    embeddings, labels = torch.randn(12, 8), torch.arange(12) % 3
    want = fp.ContrastiveLoss(pos_margin=0.9, neg_margin=0.25, distance="cosine")(embeddings, labels)
    assert losses and torch.equal(losses[0](embeddings, labels), want)


# ---- running


def run_command(argv):
    """What ``python train_dml.py`` does, in this process, to its exit."""
    sys.argv = [str(EXAMPLES / "train_dml.py"), *argv]
    runpy.run_path(sys.argv[0], run_name="__main__")


def test_command_line_trains_on_glyphs(monkeypatch, tmp_path, capsys):
    monkeypatch.setitem(DATASETS, "glyphs", glyphs)
    monkeypatch.setattr(plots, "save", lambda figure, path: path.touch())
    monkeypatch.setattr(sys, "argv", sys.argv)  # which is back afterwards
    output = tmp_path / "runs" / "first"
    with pytest.raises(SystemExit, match="^0$"):
        run_command(["--epochs", "1", "--loss", "contrastive", "--output", str(output)])
    printed = capsys.readouterr().out
    assert "3936 images of 246 classes" in printed and "3952 images of 247 unseen classes" in printed
    result = results_of(output)["contrastive"]["0"]
    assert result["after"]["cosine/recall@1"] > result["before"]["cosine/recall@1"] + 0.1 > 0.6
    assert result["steps"] == 31
    assert "contrastive-0: epoch 1 of 1, loss " in printed and " left in all" in printed


def test_every_loss_fills_the_run_folder(tmp_path, options, capsys):
    output = tmp_path / "run"
    arguments = [*options, "--epochs", "1", "--loss", ",".join(LOSSES), "--log-bounds", "--tensorboard"]
    arguments += ["--output", str(output)]
    assert train_dml.main(arguments) == 0
    table = capsys.readouterr().out
    assert "Recall@1" in table and "MAP@R" in table
    checkpoints = {f"{loss}-0.{which}.pt" for loss in LOSSES for which in ("last", "best")}
    expected = {"run.json", "metrics.json", "history.csv", "table.md", "tensorboard", *PICTURES} | checkpoints
    assert {path.name for path in output.iterdir()} == expected
    assert (output / "table.md").read_text().strip() in table
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["config"]["epochs"] == 1 and metrics["versions"]["torch"] == torch.__version__
    for loss in LOSSES:
        assert f"| {loss} " in table
        result = metrics["results"][loss]["0"]
        for when in ("before", "after"):
            assert result[when].keys() == METRICS
            assert all(0 <= value <= 1 for value in result[when].values())
        assert result["before"] == metrics["results"]["ce"]["0"]["before"], "every loss starts from the same network"
        assert result["steps"] == len(result["history"]["loss"]) == 24 // 9 + 1
        assert np.shape(result["neighbours"]["after"]) == (3, 2)
        points = result["history"]["bounds"]
        assert [point["step"] for point in points] == [0, 3]
        assert ("ce" in points[0]) == (loss in ("ce", "center"))
        assert all(np.isfinite(list(point.values())).all() for point in points)
        assert any((output / "tensorboard" / f"{loss}-0").iterdir())


def test_several_seeds_make_means_and_deviations(tmp_path, options, capsys):
    output = tmp_path / "run"
    options += ["--epochs", "1", "--loss", "ce,supcon", "--seeds", "3,4,5"]
    assert train_dml.main([*options, "--output", str(output)]) == 0
    results = results_of(output)
    assert all(list(of_seeds) == ["3", "4", "5"] for of_seeds in results.values())
    recalls = [100 * result["after"]["cosine/map@r"] for result in results["supcon"].values()]
    assert len(set(recalls)) == 3
    row = next(line for line in (output / "table.md").read_text().splitlines() if "supcon" in line)
    assert f"{np.mean(recalls):.1f} ± {np.std(recalls, ddof=1):.1f}" in row


def test_the_best_checkpoint_is_that_of_the_best_evaluation(whole_run):
    _, run = whole_run
    results = results_of(run)
    for loss in RESUMED:
        evaluations = results[loss]["0"]["history"]["evaluations"]
        best = max(evaluations, key=lambda evaluation: evaluation["cosine/recall@1"])
        assert torch.load(run / f"{loss}-0.best.pt", weights_only=True)["evaluation"] == best


def test_tensorboard_and_the_history_show_what_was_measured(tmp_path, options):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    output = tmp_path / "run"
    arguments = [*options, "--max-steps", "8", "--evaluate-every", "2", "--bounds-every", "1"]
    assert train_dml.main([*arguments, "--log-bounds", "--tensorboard", "--output", str(output)]) == 0
    events = accumulator.EventAccumulator(str(output / "tensorboard" / "ce-0"))
    events.Reload()
    result = results_of(output)["ce"]["0"]
    assert result["steps"] == 8 and [point["step"] for point in result["history"]["evaluations"]] == [0, 6, 8]
    shown = [event.value for event in events.Scalars("loss")]
    assert shown == pytest.approx(result["history"]["loss"], rel=1e-6)
    assert events.Scalars("cosine/recall@1")[-1].value == pytest.approx(result["after"]["cosine/recall@1"])
    assert [event.step for event in events.Scalars("bounds/spce")] == [0, 3, 6, 8]
    # The learning rate of the last step of each epoch: of the cosine over the eight steps.
    rates = [1e-3 * (1 + np.cos(np.pi * step / 8)) / 2 for step in (2, 5, 7)]
    assert [event.value for event in events.Scalars("lr")] == pytest.approx(rates)
    assert all(event.value > 0 for name in ("images_per_second", "memory_mib") for event in events.Scalars(name))

    rows = list(csv.DictReader((output / "history.csv").open()))
    assert [(row["trained_with"], row["seed"], row["step"]) for row in rows] == [("ce", "0", s) for s in "0368"]
    assert [row["cosine/recall@1"] != "" for row in rows] == [True, False, True, True]
    assert [float(row["lr"]) for row in rows[1:]] == pytest.approx(rates)
    assert float(rows[1]["loss"]) == pytest.approx(np.mean(result["history"]["loss"][:3]))
    assert float(rows[3]["bounds/spce"]) == pytest.approx(result["history"]["bounds"][-1]["spce"])


def test_a_run_that_ends_early_counts_the_epochs_that_it_makes(tmp_path, options, capsys):
    assert train_dml.main([*options, "--max-steps", "4", "--output", str(tmp_path / "run")]) == 0
    assert re.findall(r"epoch \d+ of \d+", capsys.readouterr().out) == ["epoch 1 of 2", "epoch 2 of 2"]


def test_memory_of_a_gpu_is_that_of_each_training(monkeypatch, tmp_path, options):
    peak = 0

    def reset(device):
        nonlocal peak
        peak = 0

    def grown(device):
        nonlocal peak
        peak += 2**20
        return peak

    monkeypatch.setattr(training, "on_gpu", lambda device: True)
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", reset)
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", grown)
    output = tmp_path / "run"
    assert train_dml.main([*options, "--epochs", "2", "--loss", "ce,supcon", "--output", str(output)]) == 0
    results = results_of(output)
    for loss in ("ce", "supcon"):
        assert [epoch["memory_mib"] for epoch in results[loss]["0"]["history"]["epochs"]] == [1, 2]


def test_tensorboard_that_is_missing_is_said_before_anything_is_trained(monkeypatch, tmp_path, options, capsys):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    message = error_of(capsys, [*options, "--tensorboard", "--output", str(tmp_path / "run")])
    assert "--tensorboard needs a package that is missing" in message and not (tmp_path / "run").exists()


def test_half_precision_learns_what_float32_does(tmp_path, options):
    losses = {}
    for precision in ("float32", "bfloat16", "float16"):
        output = tmp_path / precision
        assert train_dml.main([*options, "--loss", "supcon", "--precision", precision, "--output", str(output)]) == 0
        losses[precision] = results_of(output)["supcon"]["0"]["history"]["loss"]
    # With a loss scale the first steps may overflow and be skipped: the losses part there.
    first = {precision: history[0] for precision, history in losses.items()}
    assert len(set(first.values())) == 3 and list(first.values()) == pytest.approx([first["float32"]] * 3, rel=0.02)
    assert all(0 < history[-1] < history[0] / 2 for history in losses.values())


def test_chunks_learn_what_whole_batches_do(monkeypatch, tmp_path, options):
    sizes = set()
    forward = model.EmbeddingModel.forward

    def sized(self, images):
        if self.training:
            sizes.add(len(images))
        return forward(self, images)

    monkeypatch.setattr(model.EmbeddingModel, "forward", sized)
    losses = {}
    for name, extra, largest in (("whole", [], 18), ("chunks", ["--chunk", "4"], 4)):
        sizes.clear()
        output = tmp_path / name
        # With the statistics of each chunk they would not.
        arguments = [*options, "--epochs", "2", "--loss", "supcon,info_nce", "--freeze-batch-norm", *extra]
        assert train_dml.main([*arguments, "--output", str(output)]) == 0
        results = results_of(output)
        losses[name] = [results[loss]["0"]["history"]["loss"] for loss in ("supcon", "info_nce")]
        assert max(sizes) == largest, "of two views of nine images"
    for chunks, whole in zip(losses["chunks"], losses["whole"]):
        assert chunks == pytest.approx(whole, rel=1e-3) and whole[-1] < whole[0]


def test_a_compiled_network_learns_the_same(monkeypatch, tmp_path, options):
    # What PyTorch makes of the graphs is its own matter; to have it compile them takes half a minute.
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return lookup_backend("eager")(graph, inputs)

    monkeypatch.setattr(torch, "compile", functools.partial(torch.compile, backend=backend))
    losses = {}
    for name, extra in (("eager", []), ("compiled", ["--compile"])):
        output = tmp_path / name
        assert train_dml.main([*options, "--epochs", "1", *extra, "--output", str(output)]) == 0
        results = results_of(output)
        losses[name] = results["ce"]["0"]["history"]["loss"]
        assert bool(compiled) == bool(extra), "a network is compiled where that is asked for"
    assert losses["compiled"] == pytest.approx(losses["eager"], rel=1e-3)


def test_a_dry_run_says_the_plan_and_writes_nothing(monkeypatch, tmp_path, capsys):
    tiny_counts(monkeypatch)
    shallow_resnet(monkeypatch)
    trainers = weakref.WeakSet()
    make = Trainer.__init__

    def one_at_a_time(self, *arguments):
        assert not trainers, "the network before this one is gone"
        make(self, *arguments)
        trainers.add(self)

    monkeypatch.setattr(Trainer, "__init__", one_at_a_time)
    output, data = tmp_path / "run", make_cub(tmp_path / "data")
    arguments = ["--recipe", "cub", "--data-dir", str(data), *SMALL, "--loss", "ce,supcon", "--output", str(output)]
    assert train_dml.main([*arguments, "--dry-run"]) == 0
    plan = capsys.readouterr().out
    assert "16 images of 4 classes to train on, 16 images of 4 unseen classes" in plan
    assert "checked: 32 headers of images in files" in plan
    assert re.search("resnet50, [0-9,]+ parameters", plan) and "2 epochs of 2 steps" in plan
    assert "ce: 1.386 on the first batch" in plan, "log 4: the classifier starts at zero"
    assert "supcon: " in plan and "estimate: 0:0" in plan and "memory: " in plan and not output.exists()
    assert re.search("lr +0.02 +recipe cub\n", plan) and re.search("batch_size +8 +given\n", plan)
    for image in (data / "images").glob("00[67]*/*.jpg"):
        os.truncate(image, image.stat().st_size - 64)
    read = DATASETS["cub"](data)
    assert "32 headers" in check_images(read, whole=False, threads=2), "which are there"
    message = error_of(capsys, [*arguments, "--dry-run", "--check-images"])
    assert "8 of 32 images cannot be read. The first: cannot read the image " in message
    for image in (data / "images").glob("008*/*.jpg"):
        image.write_bytes(b"torn")
    assert "4 of 32 images cannot be read. The first: " in error_of(capsys, [*arguments, "--dry-run"])


def test_readers_beyond_the_cores_shorten_no_plan():
    reading, computing = Took(0.8, 0.8), Took(0.1, 0.2)
    seconds = {
        (workers, cores): together(reading, computing, workers, cores) for workers in (0, 1, 4, 8) for cores in (2, 16)
    }
    assert seconds[0, 2] == seconds[0, 16] == pytest.approx(0.9), "one after the other"
    assert seconds[1, 2] == seconds[1, 16] == 0.8 and seconds[4, 16] == 0.2 and seconds[8, 16] == 0.1
    assert seconds[4, 2] == seconds[8, 2] == pytest.approx((0.8 + 0.2) / 2), "no core is ever idle"


def test_settings_are_shown_with_their_origin_and_the_help_has_the_recipes(capsys):
    assert train_dml.main(["--recipe", "sop", "--as-published", "--lr", "0.1", "--show-settings"]) == 0
    shown = capsys.readouterr().out
    for line in ("lr +0.1 +given", "report +best +recipe sop, as published", "momentum +0.99 +recipe sop, as"):
        assert re.search(line, shown), line
    assert re.search("per_class +4 +default, no effect", shown)
    assert len(re.findall("^  ", shown, re.M)) == len(settings.KINDS), "every setting"
    with pytest.raises(SystemExit):
        train_dml.main(["--help"])
    help = " ".join(capsys.readouterr().out.split())
    assert "passes over the training images (default: 12; cub: 30; cars, sop, inshop: 100)" in help
    assert "losses: --loss" in help and "machine: --device" in help
    documented = set(re.findall("`(--[a-z-]+)`", (EXAMPLES / "README.md").read_text()))
    documented |= {option.replace("--", "--no-", 1) for option in documented}
    assert set(re.findall(r"(?<=[ [])--[a-z-]+", help.split("classes it never saw")[0])) <= documented


def test_as_published_the_last_batch_is_left_out_and_inshop_has_outputs_for_numbers_of_other_parts(
    monkeypatch, tmp_path
):
    assert trainer_of(drop_last=True).steps_per_epoch == 3936 // 128
    assert trainer_of().steps_per_epoch == 3936 // 128 + 1
    assert trainer_of(drop_last=True, max_steps=40).total_steps == 40
    tiny_counts(monkeypatch)
    data = DATASETS["inshop"](make_inshop(tmp_path))
    # The items come as 3, 8, 1, 6, 2, 7, 5, 4, of which 1 to 4 train: the last of these is the eighth.
    assert (data.num_train_classes, data.published_outputs) == (4, 8)
    chosen = settings.make_settings("inshop", {"weights": "none", "image_size": 32, "batch_size": 8}, True)
    assert (chosen.report, chosen.evaluate_every, chosen.evaluation_batch, chosen.dropout) == ("best", 1, 256, 0.5)
    shallow_resnet(monkeypatch)
    trainer = Trainer("ce", 0, chosen, data, torch.device("cpu"), Processes())
    assert len(trainer.criterion.loss.loss.weight) == 8


def test_metrics_of_one_search_are_those_of_the_library():
    for gallery in (None, torch.randn(30, 4)):
        query, labels = torch.randn(25, 4), torch.arange(25) % 7
        item_labels = None if gallery is None else torch.arange(30) % 6  # none of the seventh class
        embedded = Gallery(query, labels, gallery, item_labels)
        found = embedded.measure((1, 2, 50))
        searched = (query, labels, gallery, item_labels)
        for name, metric in (("cosine", "cosine"), ("l2", "euclidean")):
            recalls = retrieval.recall_at_k(*searched, k=(1, 2, 50), metric=metric)
            assert {k: found[f"{name}/recall@{k}"] for k in recalls} == recalls
            assert found[f"{name}/map@r"] == pytest.approx(retrieval.map_at_r(*searched, metric=metric), rel=1e-12)
        rows = torch.tensor([3, 20, 0])
        assert torch.equal(embedded.nearest(rows, 3), retrieval.nearest_neighbors(query, gallery, 3)[1][rows])


def test_shares_of_unequal_length_are_put_together(monkeypatch):
    shares, sent = (torch.arange(12.0).view(3, 4), torch.arange(8.0).view(2, 4) + 100), {}

    def gather(own, parts):
        sent[len(sent)] = own
        for part, of in zip(parts or (), (own, sent[0])):
            part.copy_(of)  # of one shape, or an error

    monkeypatch.setattr("fastpair_dml.processes.dist.gather", gather)
    assert Processes(1, 2).rows_to_main(shares[1], [3, 2]) is None
    assert torch.equal(Processes(0, 2).rows_to_main(shares[0], [3, 2]), torch.cat(shares))


def test_processes_embed_each_its_share(monkeypatch):
    monkeypatch.setattr(Processes, "rows_to_main", lambda self, own, rows: own)
    network, images, some = trainer_of().model, glyphs().query, torch.arange(0, 70, 10)
    how = {"batch_size": 3, "workers": 0, "device": torch.device("cpu")}
    whole, first, second = (
        evaluation.embed(network, images, None, some, processes=processes, **how)
        for processes in (Processes(), Processes(0, 2), Processes(1, 2))
    )
    assert len(first) == 4
    torch.testing.assert_close(torch.cat([first, second]), whole)


def test_processes_begin_with_one_network_and_draw_numbers_of_their_own(monkeypatch):
    monkeypatch.setattr(Trainer, "_parallel", lambda self, model: model)
    chosen = settings.make_settings("glyphs", {})
    trainers, numbers = [], []
    for rank in range(2):
        trainers.append(Trainer("ce", 0, chosen, glyphs(), torch.device("cpu"), Processes(rank, 2)))
        numbers.append(torch.rand(3))
    assert all(map(torch.equal, *(trainer.model.parameters() for trainer in trainers)))
    assert not torch.equal(*numbers)


def test_bounds_are_measured_with_the_precision_of_the_network():
    trainer = trainer_of(precision="bfloat16", bounds_images=64, embedding_size=8)
    found = bounds.measure(trainer, Stop(Processes()))
    index = torch.randperm(len(trainer.data.train), generator=torch.Generator().manual_seed(0))[:64]
    images, labels = trainer.data.train.images[index].float() / 255, trainer.data.train.labels[index]
    trainer.model.eval()
    terms = {}
    for enabled in (True, False):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=enabled):
            embeddings = trainer.model(images).float()
        weights = {"weight": trainer.criterion.loss.loss.weight, "bias": trainer.criterion.loss.loss.bias}
        terms[enabled] = library_bounds.terms(embeddings, labels, lam=1.0, **weights)
    assert found == pytest.approx(terms[True], rel=1e-6) and found != pytest.approx(terms[False], rel=1e-6)


# ---- pictures


def drawn(monkeypatch, plot, *arguments):
    """The figure that ``plot`` would save."""
    figures = []
    monkeypatch.setattr(plots, "save", lambda figure, path: figures.append(figure))
    plot(Path("picture.png"), *arguments)
    return figures[0]


def test_no_two_of_many_losses_look_alike(monkeypatch):
    looks = [{"step": step, "cosine/recall@1": 0.5} for step in (0, 2)]
    result = {"history": {"loss": [1.0, 0.5], "evaluations": looks}, "after": looks[-1]}
    figure = drawn(monkeypatch, plots.plot_curves, {f"loss{n}": {0: result} for n in range(40)}, "last")
    lines = figure.axes[-1].get_lines()
    assert len({(line.get_color(), line.get_marker(), line.get_linestyle()) for line in lines}) == 40
    assert not figure.axes[-1].collections, "no spread of one seed"
    assert len([axes for axes in figure.axes[:-1] if axes.has_data()]) == 40


@pytest.mark.parametrize("report", ["last", "best"])
def test_titles_of_the_curves_lie_apart(monkeypatch, report):
    looks = [{"step": step, "cosine/recall@1": 0.5} for step in (0, 2)]
    result = {"history": {"loss": [1.0, 0.5], "evaluations": looks}, "after": looks[-1], "best": looks[0]}
    results = {loss: {0: result, 1: result} for loss in ("ce", "triplet_semihard")}
    figure = drawn(monkeypatch, plots.plot_curves, results, report)
    renderer = FigureCanvasAgg(figure).get_renderer()
    figure.draw(renderer)
    titles = [text for text in figure.findobj(Text) if text.get_text().startswith(("Training", "Recall", "mean"))]
    boxes = [title.get_window_extent(renderer) for title in titles]
    assert len(boxes) == 3 and all(figure.bbox.containsx(box.x0) and figure.bbox.containsx(box.x1) for box in boxes)
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))


def test_a_mean_is_drawn_of_several_seeds_alone(monkeypatch):
    result = {"after": {"cosine/recall@1": 0.5, "cosine/map@r": 0.4}}
    for seeds, means in (((0,), 0), ((0, 1), 2)):
        figure = drawn(monkeypatch, plots.plot_comparison, {"ce": dict.fromkeys(seeds, result)}, "last")
        assert sum(line.get_marker() == "|" for axes in figure.axes for line in axes.get_lines()) == means


def test_pictures_and_table_show_the_same_look(monkeypatch, tmp_path):
    history = History(losses=[1.0, 0.5])
    for step, recall, nearest in ((0, 0.5, 1), (1, 0.9, 2), (2, 0.7, 3)):
        metrics = {"cosine/recall@1": recall, "cosine/map@r": recall - 0.2, "l2/recall@1": recall - 0.1}
        history.add_evaluation({"step": step, **metrics}, [[nearest]])
    results = {"ce": {0: history.result(1.0)}}
    shown = []
    monkeypatch.setattr(train_dml, "plot_retrieval", lambda *arguments: shown.append(arguments[3]["ce"].tolist()))
    for report, recall, nearest, stars in (("best", 90.0, 2, [(1, 90)]), ("last", 70.0, 3, [])):
        assert f"| {recall:.1f}     | {recall - 20:.1f}  | {recall - 10:.1f} " in table(results, (1,), report)
        comparison = drawn(monkeypatch, plots.plot_comparison, results, report)
        points = [line.get_xdata()[0] for axes in comparison.axes for line in axes.get_lines()]
        assert points == pytest.approx([recall, recall - 20])
        axes = drawn(monkeypatch, plots.plot_curves, results, report).axes[-1]
        assert axes.get_legend_handles_labels()[1][0].startswith(f"ce, {recall:.1f} % at the ")
        marked = [line for line in axes.get_lines() if line.get_marker() == "*"]
        assert [(x, pytest.approx(y)) for line in marked for x, y in zip(*line.get_data())] == stars
        config = {"seeds": [0], "figure_queries": 1, "log_bounds": False, "report": report}
        train_dml.RunFiles(tmp_path, config, trainer_of().data, Processes(), results).draw()
        assert shown.pop() == [[nearest]]


def test_neighbours_are_images_of_the_gallery(monkeypatch, tmp_path):
    tiny_counts(monkeypatch)
    data = DATASETS["inshop"](make_inshop(tmp_path))
    figure = drawn(monkeypatch, plots.plot_retrieval, data, torch.tensor([6]), {"ce": torch.tensor([[1, 4]])}, "last")
    images = [torch.tensor(image.get_array()).permute(2, 0, 1) for image in figure.axes[0].get_images()]
    expected = [data.query.pixels(6), data.gallery.pixels(1), data.gallery.pixels(4)]
    assert [class_and_number(image) for image in images] == [class_and_number(pixels) for pixels in expected]


def test_neighbours_keep_their_proportions_and_names_that_cannot_be_drawn_are_replaced(monkeypatch, tmp_path):
    for number, name in enumerate(("caf\udce9", "a\nb", "$x$", "d")):
        for i in range(2):
            (tmp_path / name).mkdir(exist_ok=True)
            Image.new("RGB", (40, 20) if i else (20, 30), (60 * number, 0, 0)).save(tmp_path / name / f"{i}.png")
    data = DATASETS["folder"](tmp_path)
    neighbours = {f"loss{n}": torch.tensor([[1, 2], [2, 3]]) for n in range(7)}
    figure = drawn(monkeypatch, plots.plot_retrieval, data, torch.tensor([0, 3]), neighbours, "last")
    images = figure.axes[0].get_images()
    assert len(images) == 2 * 2 + 7 * 4, "the queries stand before each of two rows of losses"
    for image in images:
        left, right, bottom, top = image.get_extent()
        height, width = image.get_array().shape[:2]
        assert (right - left) / (bottom - top) == pytest.approx(width / height)
        assert max(right - left, bottom - top) == pytest.approx(1)
    assert plots.drawable("caf\udce9 a\nb $x$") == "caf\N{REPLACEMENT CHARACTER} a\N{REPLACEMENT CHARACTER}b $x$"


@pytest.mark.parametrize(
    "name, lines",
    [
        ("id_00003998", ["id_00003998"]),
        ("Audi S4 Sedan 2012", ["Audi S4 Sedan", "2012"]),
        ("Audi S4 Sedan 2007", ["Audi S4 Sedan", "2007"]),
        ("bicycle 000000011319", ["bicycle", "000000011319"]),
        ("Ford F-150 Regular Cab 2012", ["Ford F-150 Regu", "lar Cab 2012"]),
        ("Mercedes-Benz C-Class Sedan 2012", ["Mercedes-Benz C", "…ass Sedan 2012"]),
        ("Mercedes-Benz E-Class Sedan 2012", ["Mercedes-Benz E", "…ass Sedan 2012"]),
        ("abcdefghijklmnopqrstuvwxyz", ["abcdefghijklmno", "pqrstuvwxyz"]),
        ("abcdefghijklmnopqrstuvwxyz_0123456789", ["abcdefghijklmno", "…xyz_0123456789"]),
    ],
)
def test_names_of_classes_keep_both_ends(name, lines):
    assert plots.in_two_lines(name).split("\n") == lines and max(map(len, lines)) <= plots.CAPTION


# ---- stopping and going on


def test_a_run_resumed_three_times_has_the_bits_of_an_uninterrupted_one(monkeypatch, tmp_path, whole_run, capsys):
    # By loss and steps before, how often Ctrl-C is pressed: in the last step of the first training; twice, which does
    # not wait for the step to end, so that the run goes on from an earlier state; and in the last training.
    interruptions = {("ce", 11): 1, ("proxy_anchor", 6): 2, ("info_nce", 3): 1}
    train_step = Trainer.train_step

    def interrupted(self, views, labels):
        times = interruptions.pop((self.loss, self.steps), 0)
        for _ in range(times):
            os.kill(os.getpid(), signal.SIGINT)
        assert times < 2, "the second stops at once"
        return train_step(self, views, labels)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    (arguments, whole), parts = whole_run, tmp_path / "parts"
    while interruptions:
        assert train_dml.main([*arguments, "--output", str(parts)]) == 130
        assert "--resume" in capsys.readouterr().err
        arguments = ["--resume"]  # the settings of the run are known
    assert train_dml.main([*arguments, "--output", str(parts)]) == 0
    for loss in RESUMED:
        assert same_state(whole / f"{loss}-0.last.pt", parts / f"{loss}-0.last.pt"), loss
    assert same(results_of(whole), results_of(parts))
    assert same_pictures(whole, parts, PICTURES)


def test_random_numbers_go_on_where_they_were():
    """Those of dropout, which no network above has."""
    trainer = trainer_of()
    state, drawn = trainer.state_dict(), torch.rand(3)
    torch.rand(2)
    trainer.load_state_dict(state)
    assert torch.equal(torch.rand(3), drawn)


def test_results_stand_in_the_order_of_the_options(monkeypatch, tmp_path):
    """Whatever was trained first, as where a run goes on with some of its losses."""
    for method in ("_write", "draw"):
        monkeypatch.setattr(train_dml.RunFiles, method, lambda self: None)
    config = {"loss": ["supcon", "ce"], "seeds": [3, 1], "figure_queries": 1}
    files = train_dml.RunFiles(tmp_path, config, glyphs(), Processes())
    for loss, seed in (("ce", 1), ("ce", 3), ("supcon", 1), ("supcon", 3)):
        files.add(loss, seed, {})
    assert [(loss, list(of_seeds)) for loss, of_seeds in files.results.items()] == [("supcon", [3, 1]), ("ce", [3, 1])]


def train_slowly(argv, marker):
    """The command line, which after the first epoch makes the file ``marker`` and takes its time for each step."""
    train_step = Trainer.train_step

    def slow(self, views, labels):
        if self.steps > 3:  # the reader of the second epoch has begun
            marker.touch()
            time.sleep(0.1)
        return train_step(self, views, labels)

    Trainer.train_step = slow
    run_command(argv)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_run_that_goes_on(tmp_path, options, forks, number):
    output, marker = tmp_path / "run", tmp_path / "marker"
    argv = [*options, "--epochs", "8", "--workers", "1", "--output", str(output)]
    code = f"import pathlib, test_training\ntest_training.train_slowly({argv!r}, pathlib.Path({str(marker)!r}))\n"
    program = forks.start(code)
    with contextlib.suppress(ProcessLookupError):  # it has ended before it should
        while not marker.exists():
            os.killpg(program.pid, 0)
            time.sleep(0.02)
        os.killpg(program.pid, number)  # as a terminal and a launcher do: its readers are meant too
    done = program.wait()
    assert done.returncode == 130 and f"--output {output} --resume continues the run" in done.stderr, done.stderr
    assert "Traceback" not in done.stderr
    assert train_dml.main(["--output", str(output), "--resume", "--workers", "0"]) == 0
    result = results_of(output)["ce"]["0"]
    assert result["steps"] == len(result["history"]["loss"]) == 24


def test_a_reader_passes_over_signals_that_come_before_it_has_left_the_group(monkeypatch):
    leave = os.setpgrp

    def interrupted():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(os.getpid(), number)
        leave()

    monkeypatch.setattr(os, "setpgrp", interrupted)
    reader = multiprocessing.get_context("fork").Process(target=preprocessing._leave_group, args=(0,))
    with preprocessing._no_stop():
        reader.start()
    reader.join(timeout=60)
    assert reader.exitcode == 0


def test_resuming_a_finished_run_changes_nothing(tmp_path, whole_run):
    options, run = whole_run
    output = shutil.copytree(run, tmp_path / "run")
    before = {path.name: path.read_bytes() for path in output.iterdir()}
    assert train_dml.main([*options, "--output", str(output), "--resume"]) == 0
    assert {path.name: path.read_bytes() for path in output.iterdir()} == before


def test_a_folder_that_is_not_a_run_is_left_alone(tmp_path, options, capsys):
    output = tmp_path / "precious"
    output.mkdir()
    (output / "metrics.json").write_text("mine")
    (output / "run.json").write_text('{"format": "something else"}')
    message = error_of(capsys, [*options, "--output", str(output)])
    assert f"--output {output} is not empty and not a run of this program" in message
    assert "no run to continue" in error_of(capsys, [*options, "--output", str(output), "--resume"])
    assert (output / "metrics.json").read_text() == "mine" and len(list(output.iterdir())) == 2

    occupied = tmp_path / "file"
    occupied.write_text("mine")
    assert f"cannot make the run folder --output {occupied}" in error_of(capsys, [*options, "--output", str(occupied)])
    assert occupied.read_text() == "mine"


def test_a_run_is_continued_only_when_asked_and_as_it_was(tmp_path, options, capsys):
    output = tmp_path / "run"
    arguments = [*options, "--output", str(output)]
    assert train_dml.main(arguments) == 0
    before = (output / "metrics.json").read_bytes()
    assert "holds a run already; add --resume" in error_of(capsys, arguments)
    assert (output / "metrics.json").read_bytes() == before
    message = error_of(capsys, [*arguments, "--resume", "--lr", "0.01", "--chunk", "4"])
    assert "chunk was None and is now 4, lr was 0.001 and is now 0.01" in message
    assert "--resume needs --output" in error_of(capsys, [*options, "--resume"])

    moved = (tmp_path / "images").rename(tmp_path / "moved")
    assert train_dml.main(["--output", str(output), "--resume", "--data-dir", str(moved)]) == 0
    assert "metrics.json" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(moved / "class-0" / "0.png")
    message = error_of(capsys, ["--output", str(output), "--resume", "--data-dir", str(moved)])
    assert "data_fingerprint was" in message


@pytest.fixture(scope="module")
def stopped_run(tmp_path_factory):
    """The folder of a run that was stopped in its second epoch, with one loss finished before."""
    root = tmp_path_factory.mktemp("stopped")
    options = [*short_run(make_image_folder(root / "images")), "--loss", "spce,ce", "--output", str(root / "run")]
    train_step, steps = Trainer.train_step, iter(range(1, 100))

    def stop(self, views, labels):
        if next(steps) == 12 + 5:
            os.kill(os.getpid(), signal.SIGINT)
        return train_step(self, views, labels)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, "train_step", stop)
        assert train_dml.main(options) == 130
    return root / "run"


def zero(file):
    """64 bytes in the middle of a tensor."""
    content = bytearray(file.read_bytes())
    weight = torch.load(file, weights_only=True)["model"]["embedding.weight"].numpy().tobytes()
    place = content.index(weight) + len(weight) // 2
    content[place : place + 64] = bytes(64)
    file.write_bytes(content)


@pytest.mark.parametrize(
    "which, spoil, problem",
    [
        ("last", lambda file: file.write_bytes(b"torn"), "File is not a zip file"),
        ("last", lambda file: os.truncate(file, 0), "it is empty"),
        ("last", zero, "the checksum of .* in it is wrong"),
        ("last", lambda file: shutil.copy(file.with_name("spce-0.last.pt"), file), "it is of spce-0, not of ce-0"),
        ("best", lambda file: os.truncate(file, 0), "it is empty"),
        ("best", lambda file: file.unlink(), "No such file"),
    ],
)
def test_a_checkpoint_that_is_not_as_it_was_written_is_refused(tmp_path, stopped_run, capsys, which, spoil, problem):
    run = shutil.copytree(stopped_run, tmp_path / "run")
    spoil(run / f"ce-0.{which}.pt")
    message = error_of(capsys, ["--output", str(run), "--resume"])
    assert re.search(f"cannot continue from the checkpoint {run}/ce-0.{which}.pt: .*{problem}", message)
    assert "remove ce-0.last.pt and ce-0.best.pt, and ce-0 is trained from its start" in message
    if which == "best" and "empty" in problem:  # what the message says to do
        for file in run.glob("ce-0.*.pt"):
            file.unlink()
        assert train_dml.main(["--output", str(run), "--resume"]) == 0


def test_pictures_that_a_run_has_not_drawn_are_drawn_when_it_goes_on(monkeypatch, tmp_path, whole_run):
    output = shutil.copytree(whole_run[1], tmp_path / "run", ignore=shutil.ignore_patterns("*.png"))
    for plot in PICTURES.values():
        monkeypatch.setattr(train_dml, plot.__name__, plot)
    # In two columns.
    monkeypatch.setattr(plots, "CURVES_IN_COLUMN", 2)
    monkeypatch.setattr(plots, "BOUNDS_IN_COLUMN", 2)
    assert train_dml.main(["--output", str(output), "--resume"]) == 0
    for figure in PICTURES:
        with Image.open(output / figure) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 300


def test_finished_trainings_are_in_the_folder_of_a_run_that_is_not(stopped_run):
    results = results_of(stopped_run)
    assert list(results) == ["spce"] and results["spce"]["0"]["steps"] == 12
    assert "| spce " in (stopped_run / "table.md").read_text()
    assert {figure.name for figure in stopped_run.glob("*.png")} == PICTURES.keys() - {"bounds.png"}


def test_a_damaged_run_file_is_named(tmp_path, options, capsys):
    output = tmp_path / "run"
    assert train_dml.main([*options, "--output", str(output)]) == 0
    content = json.loads((output / "run.json").read_text())
    content["config"]["epochs"] = "many"
    (output / "run.json").write_text(json.dumps(content))
    message = error_of(capsys, ["--output", str(output), "--resume"])
    assert "--epochs is 'many', but must be of type int" in message


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_what_is_written_in_parts_is_written_whole(monkeypatch, tmp_path):
    class Half(io.FileIO):
        def write(self, data):
            return super().write(data[: -(-len(data) // 2)])

    monkeypatch.setattr(runfolder, "open", lambda path, mode, buffering: Half(str(path), mode), raising=False)
    write_atomically(tmp_path / "array", lambda file: np.savez(file, a=np.arange(999.0)))
    assert np.load(tmp_path / "array")["a"].tolist() == list(range(999))
    write_atomically(tmp_path / "empty", lambda file: file.write(b""))
    assert (tmp_path / "empty").read_bytes() == b""


def test_a_full_disk_is_one_line_that_says_so(monkeypatch, tmp_path, options, capsys):
    class Full(io.FileIO):
        def write(self, data):
            if self.name.endswith(".last.pt.tmp") and self.tell() > 5000:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return super().write(data)

    monkeypatch.setattr(runfolder, "open", lambda path, mode, buffering: Full(str(path), mode), raising=False)
    output = tmp_path / "run"
    message = error_of(capsys, [*options, "--output", str(output)])
    assert message.rstrip().splitlines()[-1] == (
        f"train_dml.py: error: cannot write {output / 'ce-0.last.pt'}: No space left on device; what was there before "
        f"is kept. When it is put right, --output {output} --resume continues the run"
    )
    assert {path.name for path in output.iterdir()} == {"run.json", "ce-0.best.pt"}


def test_a_training_that_fails_is_a_row_and_the_others_go_on(monkeypatch, tmp_path, options, capsys):
    compared = []

    def compare(path, results, report):
        compared.append({loss: list(of_seeds) for loss, of_seeds in results.items()})

    monkeypatch.setattr(train_dml, "plot_comparison", compare)
    output = tmp_path / "run"
    loss_of = Trainer.loss_of

    def spoiled(self, views, labels):
        if self.loss == "supcon" and self.steps == 4:
            raise torch.OutOfMemoryError("no memory")
        return loss_of(self, views, labels) * (float("nan") if self.loss == "ce" and self.steps == 7 else 1)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "loss_of", spoiled)
        assert train_dml.main([*options, "--loss", "ce,supcon,spce", "--output", str(output)]) == 1
    assert "ce-0: failed: the ce loss is nan at step 8; --lr 0.001 may be too high" in capsys.readouterr().out
    assert compared == [{"spce": [0]}]
    # Names that no JSON has would not be read elsewhere.
    results = json.loads((output / "metrics.json").read_text(), parse_constant=pytest.fail)["results"]
    assert results["ce"]["0"]["failed"].startswith("the ce loss is nan at step 8") and results["ce"]["0"]["steps"] == 7
    assert results["supcon"]["0"]["failed"] == "out of memory: no memory"
    assert results["spce"]["0"]["steps"] == 12 and "failed" not in results["spce"]["0"]
    text = (output / "table.md").read_text()
    assert "| ce (failed) " in text and "ce-0 failed: the ce loss is nan" in text and "| spce " in text
    # What failed is tried again from its last epoch, unless it is left out.
    assert train_dml.main(["--output", str(output), "--resume", "--loss", "spce"]) == 1
    assert train_dml.main(["--output", str(output), "--resume"]) == 0
    results = results_of(output)
    assert list(results) == ["ce", "supcon", "spce"] and results["ce"]["0"]["steps"] == 12


def test_a_run_names_only_what_it_wrote(monkeypatch, tmp_path, options, capsys):
    def fails(*arguments, **how):
        raise torch.OutOfMemoryError("no memory")

    for where, name, besides in ((training, "embed_test", ""), (Trainer, "loss_of", ", checkpoints")):
        output = tmp_path / name
        with monkeypatch.context() as patch:
            patch.setattr(where, name, fails)
            assert train_dml.main([*options, "--output", str(output)]) == 1
        last = capsys.readouterr().out.splitlines()[-1]
        assert last == f"{output}: metrics.json, history.csv, table.md{besides}"
        assert list(output.glob("*.png")) == [] and any(output.glob("*.pt")) == bool(besides)
    assert train_dml.main(["--output", str(output), "--resume"]) == 0
    assert capsys.readouterr().out.endswith("table.md, pictures, checkpoints\n")


def test_a_run_that_goes_on_may_have_more_losses_and_seeds(tmp_path, options):
    parts, whole = tmp_path / "parts", tmp_path / "whole"
    options += ["--epochs", "1"]
    assert train_dml.main([*options, "--loss", "spce", "--seeds", "1", "--output", str(parts)]) == 0
    assert train_dml.main(["--output", str(parts), "--resume", "--loss", "supcon,spce", "--seeds", "0,1"]) == 0
    assert train_dml.main([*options, "--loss", "spce,supcon", "--seeds", "1,0", "--output", str(whole)]) == 0
    assert same_pictures(whole, parts, PICTURES.keys() - {"bounds.png"})


def test_a_kill_during_an_evaluation_loses_nothing(monkeypatch, tmp_path, options):
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    assert train_dml.main([*options, "--output", str(whole)]) == 0
    embed_test = training.embed_test

    def killed(*arguments, **how):
        if how["stop"].waits_for and len(list(parts.glob("*.last.pt"))):
            raise KeyboardInterrupt  # at once, as a kill
        return embed_test(*arguments, **how)

    with monkeypatch.context() as patch:
        patch.setattr(training, "embed_test", killed)
        assert train_dml.main([*options, "--output", str(parts)]) == 130
    state = torch.load(parts / "ce-0.last.pt", weights_only=True)
    assert state["epoch"] == 1 and len(state["history"]["evaluations"]) == 1, "the second is due"
    assert train_dml.main(["--output", str(parts), "--resume"]) == 0
    assert same_state(whole / "ce-0.last.pt", parts / "ce-0.last.pt")


def test_ctrl_c_says_what_it_waits_for_and_stops_inside_an_evaluation(monkeypatch, tmp_path, options, capfd):
    embedded = []
    forward = model.EmbeddingModel.forward

    def counted(self, images):
        embedded.append(len(images))
        if len(embedded) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return forward(self, images)

    monkeypatch.setattr(model.EmbeddingModel, "forward", counted)
    output = tmp_path / "run"
    assert train_dml.main([*options, "--evaluation-batch", "4", "--output", str(output)]) == 130
    assert "stopping after the batch that is embedded; again to stop at once" in capfd.readouterr().err
    assert embedded == [4, 4], "of six batches"


def test_ctrl_c_does_not_wait_for_a_search(monkeypatch, tmp_path, options, capfd):
    def stopped(*arguments, **how):
        os.kill(os.getpid(), signal.SIGINT)
        pytest.fail("the search went on")

    output = tmp_path / "run"
    with monkeypatch.context() as patch:
        patch.setattr(evaluation, "nearest_neighbors", stopped)
        assert train_dml.main([*options, "--output", str(output)]) == 130
    errors = capfd.readouterr().err
    assert "\nstopping\n" in errors and f"--output {output} --resume continues the run" in errors


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--loss", "ce,triplex"], "--loss names 'triplex', but the losses are ce, spce, contrastive"),
        (["--loss", "ce,ce"], "--loss is ce,ce, but must name at least one, and none twice"),
        (["--seeds", "1,1"], "--seeds is 1,1, but must name at least one, and none twice"),
        (["--epochs", "0"], "--epochs is 0, but must be at least 1"),
        (["--chunk", "0"], "--chunk is 0, but must be at least 1"),
        (["--batch-size", "1"], "--batch-size is 1, but must be at least 2"),
        (["--lr", "nan"], "--lr is nan, but must be finite and at least 0"),
        (["--lr", "0"], "--lr is 0, but must be positive"),
        (["--dropout", "1.5"], "--dropout is 1.5, but must be between 0 and 1"),
        (["--loss", "ce,supcon", "--loss-settings", "supcon.tau=1"], "--loss-settings tau=1 cannot be: "),
        (["--loss", "ce,supcon", "--loss-settings", "supcon.temperature=-1"], "temperature must be positive"),
        (["--loss", "ce", "--loss-settings", "supcon.temperature=1"], "must have LOSS.NAME=VALUE, LOSS being one"),
        (["--loss", "supcon,ce", "--label-smoothing", "0.9999"], "--label-smoothing is 0.9999, but must be at most"),
        (["--dropout", "1"], "--dropout is 1, but must be less"),
        (["--crop-scale", "0,0"], "--crop-scale is 0,0, but must be positive"),
        (["--momentum", "0.9"], "--momentum has no effect: --optimizer is adamw; leave it out"),
        (["--loss", "spce", "--dropout", "0.1"], "--dropout has no effect: --loss is spce, and only ce, center use it"),
        (["--loss", "ce", "--per-class", "2"], "--per-class has no effect: --loss is ce, and only losses on pairs"),
        (["--jitter", "0.1,0,0,0"], "--jitter has no effect: glyphs have an augmentation of their own"),
        (["--cache", "kept"], "--cache has no effect: glyphs are in memory"),
        (["--bounds-images", "9"], "--bounds-images has no effect: it needs --log-bounds"),
        (["--as-published"], "--as-published is for the recipes cub, cars, sop, inshop, not for glyphs"),
        (["--jitter", "0,0,0,0.6"], "--jitter is 0,0,0,0.6, but the last, of the hue, must be at most 0.5"),
        (["--recall-at", "2,4"], "--recall-at is 2,4, but must name 1"),
        (["--image-size", "4"], "--image-size is 4, but must be at least 8 for --model small"),
        (["--jitter", "0.1,0.1"], "--jitter is 0.1,0.1, but must be 4 numbers"),
        (["--crop-scale", "1,0.5"], "--crop-scale is 1,0.5, but must not end below its start"),
        (["--resize", "16"], "--resize is 16, but must be at least --image-size, which is 32"),
        (["--model", "resnet5"], "--model is 'resnet5', but must be one of small, resnet18, resnet50, or timm:NAME"),
        (["--optimizer", "lion"], "--optimizer is 'lion', but must be one of adamw, sgd"),
        (["--nesterov"], "--nesterov needs a --momentum above 0"),
        (["--weights", "imagenet"], "--weights is imagenet, but --model small has none to start from"),
        (["--device", "toaster"], "--device toaster cannot be used"),
        (["--dataset", "folder"], "--dataset folder needs --data-dir"),
        (["--dataset", "paintings"], "--dataset is 'paintings', but must be one of glyphs, folder, cub"),
        (["--recipe", "cub"], "it needs --data-dir"),
        (["--data-dir", "somewhere"], "--dataset glyphs draws its images"),
    ],
)
def test_bad_options_are_named_and_leave_no_folder(monkeypatch, tmp_path, capsys, arguments, message):
    monkeypatch.setitem(DATASETS, "glyphs", glyphs)
    assert message in error_of(capsys, [*arguments, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
