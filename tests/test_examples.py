"""The training example: its data sets, its run folder, and that a resumed run has the bits of an uninterrupted one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")

EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.insert(0, str(EXAMPLES))

import train_dml  # noqa: E402
from dml import trainer  # noqa: E402
from dml.losses import RECIPES  # noqa: E402
from dml.runfolder import write_atomically  # noqa: E402
from example_trees import make_image_folder  # noqa: E402

# Losses without parameters, with parameters, and on two views, in the order in which they are interrupted.
RESUMED = ("ce", "contrastive", "spce", "proxy_anchor", "info_nce", "siglip")
METRICS = {"recall@1", "recall@2", "recall@4", "recall@8", "map@r"}


@pytest.fixture
def image_folder(tmp_path):
    """Six classes of eight small noisy images, each class of a colour of its own."""
    return make_image_folder(tmp_path / "images")


@pytest.fixture
def options(image_folder):
    """A run of 4 epochs of 3 steps."""
    return short_run(image_folder)


def short_run(folder):
    return [
        *("--dataset", "folder", "--data-dir", str(folder), "--epochs", "4"),
        *("--batch-size", "9", "--embedding-size", "8"),
    ]


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


def test_command_line_trains_on_glyphs(tmp_path):
    output = tmp_path / "runs" / "first"
    command = [sys.executable, str(EXAMPLES / "train_dml.py"), "--epochs", "1", "--batch-size", "256"]
    path = os.pathsep.join(filter(None, [str(EXAMPLES.parent), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(
        [*command, "--output", str(output)],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert "3936 images of 246 classes" in done.stdout and "3952 images of 247 unseen classes" in done.stdout
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["ce"]["after"]["recall@1"] > metrics["ce"]["before"]["recall@1"] > 0.5
    assert metrics["ce"]["steps"] == 16


def test_every_loss_fills_the_run_folder(tmp_path, options, capsys):
    output = tmp_path / "run"
    arguments = [*options, "--loss", ",".join(RECIPES), "--log-bounds", "--output", str(output)]
    assert train_dml.main(arguments) == 0
    table = capsys.readouterr().out
    assert "Recall@1" in table and "MAP@R" in table
    figures = {"curves.png", "retrieval.png", "bounds.png"}
    expected = {"run.json", "metrics.json"} | figures | {f"{loss}.pt" for loss in RECIPES}
    assert {path.name for path in output.iterdir()} == expected
    metrics = json.loads((output / "metrics.json").read_text())
    assert metrics["config"]["epochs"] == 4 and metrics["versions"]["torch"] == torch.__version__
    for loss in RECIPES:
        assert loss in table
        for when in ("before", "after"):
            assert metrics[loss][when].keys() == METRICS
            assert all(0 <= value <= 1 for value in metrics[loss][when].values())
        assert metrics[loss]["before"] == metrics["ce"]["before"], "every loss starts from the same network"
        assert metrics[loss]["steps"] == len(metrics[loss]["history"]["loss"]) == 12
        points = metrics[loss]["history"]["bounds"]
        assert [point["step"] for point in points] == [0, 3, 6, 9, 12]
        assert ("ce" in points[0]) == (loss in ("ce", "center"))
        assert all(np.isfinite(list(point.values())).all() for point in points)
    for figure in figures:
        with Image.open(output / figure) as image:
            image.load()
            assert image.format == "PNG" and min(image.size) > 300


@pytest.mark.parametrize("loss, step", [("ce", 2), ("contrastive", 7), ("spce", 9)])
def test_a_resumed_run_has_the_bits_of_an_uninterrupted_one(monkeypatch, tmp_path, whole_run, capsys, loss, step):
    options, whole = whole_run
    parts = tmp_path / "parts"
    steps = RESUMED.index(loss) * 12 + step
    augment = trainer.augment

    def interrupt(images, generator):
        nonlocal steps
        steps -= 1
        if steps < 0:
            raise KeyboardInterrupt
        return augment(images, generator)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "augment", interrupt)
        assert train_dml.main([*options, "--output", str(parts)]) == 130
    assert "--resume" in capsys.readouterr().err
    # The settings of the run are known, so that none has to be given again.
    assert train_dml.main(["--output", str(parts), "--resume"]) == 0

    for name in RESUMED:
        expected, found = (torch.load(run / f"{name}.pt", weights_only=True) for run in (whole, parts))
        for part in ("model", "criterion"):
            assert expected[part].keys() == found[part].keys()
            assert all(torch.equal(expected[part][key], found[part][key]) for key in expected[part])
        for index, state in expected["optimizer"]["state"].items():
            assert all(torch.equal(value, found["optimizer"]["state"][index][key]) for key, value in state.items())
        for part in ("losses", "evaluations", "bounds", "epoch"):
            assert expected[part] == found[part]
    for figure in ("curves.png", "retrieval.png", "bounds.png"):
        assert (whole / figure).read_bytes() == (parts / figure).read_bytes()


def test_resuming_a_finished_run_changes_nothing(tmp_path, options):
    output = tmp_path / "run"
    assert train_dml.main([*options, "--output", str(output)]) == 0
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


def test_a_run_is_continued_only_when_asked_and_as_it_was(tmp_path, options, image_folder, capsys):
    output = tmp_path / "run"
    arguments = [*options, "--output", str(output)]
    assert train_dml.main(arguments) == 0
    before = (output / "metrics.json").read_bytes()
    assert "holds a run already; add --resume" in error_of(capsys, arguments)
    assert (output / "metrics.json").read_bytes() == before
    message = error_of(capsys, [*arguments, "--resume", "--lr", "0.01", "--loss", "spce"])
    assert "loss was 'ce' and is now 'spce', lr was 0.001 and is now 0.01" in message
    assert "--resume needs --output" in error_of(capsys, [*options, "--resume"])

    moved = image_folder.rename(tmp_path / "moved")
    assert train_dml.main(["--output", str(output), "--resume", "--data-dir", str(moved)]) == 0
    assert "metrics.json" in capsys.readouterr().out
    Image.new("RGB", (8, 8)).save(moved / "class-0" / "0.png")
    message = error_of(capsys, ["--output", str(output), "--resume", "--data-dir", str(moved)])
    assert "data_fingerprint was" in message


def test_a_damaged_checkpoint_is_named(tmp_path, options, capsys):
    output = tmp_path / "run"
    assert train_dml.main([*options, "--output", str(output)]) == 0
    (output / "ce.pt").write_bytes(b"torn")
    message = error_of(capsys, ["--output", str(output), "--resume"])
    assert f"cannot continue from the checkpoint {output / 'ce.pt'}" in message


def test_a_failed_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "state"
    path.write_bytes(b"old")

    def fail(file):
        file.write(b"half of the new")
        raise RuntimeError("disk full")

    with pytest.raises(RuntimeError, match="disk full"):
        write_atomically(path, fail)
    assert path.read_bytes() == b"old" and len(list(tmp_path.iterdir())) == 1


def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, options, capsys):
    message = error_of(capsys, [*options, "--lr", "1e30", "--output", str(tmp_path / "run")])
    assert "the ce loss is" in message and "--lr 1e+30" in message


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--loss", "ce,triplex"], "--loss names 'triplex', but the losses are ce, contrastive, spce"),
        (["--loss", "ce,ce"], "--loss ce,ce names a loss twice"),
        (["--epochs", "0"], "--epochs is 0, but must be at least 1"),
        (["--batch-size", "1"], "--batch-size is 1, but must be at least 2"),
        (["--lr", "nan"], "--lr is nan, but must be positive and finite"),
        (["--device", "toaster"], "--device toaster cannot be used"),
        (["--dataset", "folder"], "--dataset folder needs --data-dir"),
        (["--data-dir", "somewhere"], "--dataset glyphs draws its images"),
    ],
)
def test_bad_options_are_named_and_leave_no_folder(tmp_path, capsys, arguments, message):
    assert message in error_of(capsys, [*arguments, "--output", str(tmp_path / "run")])
    assert not (tmp_path / "run").exists()
