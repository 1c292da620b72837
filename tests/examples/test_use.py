"""Using what the training example trained: measuring it elsewhere, embedding folders, searching in them."""

import contextlib
import html
import io
import json
import os
import re
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("matplotlib")
Image = pytest.importorskip("PIL.Image")
pytest.importorskip("tqdm")
pytest.importorskip("torchvision")

import trees  # noqa: E402

EXAMPLES = Path(__file__).parents[2] / "examples"

import train_dml  # noqa: E402
import use_dml  # noqa: E402
from fastpair_dml import model, settings  # noqa: E402
from fastpair_dml.checkpoints import Checkpoints  # noqa: E402
from fastpair_dml.data import FileImages, TensorImages  # noqa: E402
from fastpair_dml.errors import UserError  # noqa: E402
from fastpair_dml.search import Found, readable, write_page  # noqa: E402
from fastpair_dml.trained import Trained  # noqa: E402


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint and the folder of images that it was trained on half of."""
    root = tmp_path_factory.mktemp("trained")
    images = trees.make_image_folder(root / "images")
    options = ["--dataset", "folder", "--data-dir", str(images), "--epochs", "2", "--workers", "0", "--resize", "18"]
    options += ["--image-size", "16", "--batch-size", "9", "--embedding-size", "8", "--loss", "supcon"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train_dml.RunFiles, "draw", lambda self: None)  # which takes longer than to train
        assert train_dml.main([*options, "--output", str(root / "run")]) == 0
    return root / "run" / "supcon-0.best.pt", images


COMMANDS = ("evaluate", "embed", "search")


def help_of(command):
    with pytest.raises(SystemExit), contextlib.redirect_stdout(io.StringIO()) as printed:
        use_dml.main([command, "--help"])
    return printed.getvalue()


def error_of(capsys, *argv):
    capsys.readouterr()
    assert use_dml.main(list(map(str, argv))) == 2
    error = capsys.readouterr().err
    assert error.startswith("use_dml.py: error: ") and error.count("\n") == 1, "one line"
    return error


def test_evaluation_says_what_training_did(trained, tmp_path, capsys):
    checkpoint, images = trained
    assert use_dml.main(["evaluate", str(checkpoint), "-o", str(tmp_path / "metrics.json")]) == 0
    found = json.loads((tmp_path / "metrics.json").read_text())["metrics"]
    best = json.loads((checkpoint.parent / "metrics.json").read_text())["results"]["supcon"]["0"]["best"]
    assert found == {name: value for name, value in best.items() if name != "step"}
    table = capsys.readouterr().out
    assert "24 images of 3 unseen classes" in table and f"| MAP@R    | {100 * found['cosine/map@r']:9.1f} |" in table

    moved = shutil.copytree(images, tmp_path / "elsewhere")
    options = ["--data-dir", str(moved), "--every-class", "--recall-at", "1,3", "--evaluation-batch", "5"]
    assert use_dml.main(["evaluate", str(checkpoint), *options]) == 0
    table = capsys.readouterr().out
    assert "48 images of 6 classes" in table and "Recall@3" in table and "Recall@2" not in table


def test_photos_and_grey_images_are_seen_by_each_others_networks(trained, tmp_path):
    photos, images = trained
    grey = torch.randint(256, (5, 1, 16, 16), dtype=torch.uint8)
    labels = torch.zeros(5, dtype=torch.int64)
    found = [Trained.load(photos).embed(TensorImages(i, labels, ["a"])) for i in (grey, grey.expand(-1, 3, -1, -1))]
    assert found[0].shape == (5, 8) and torch.equal(*found)
    # A network of grey images, as training on glyphs makes it.
    chosen = settings.Settings(dataset="glyphs", embedding_size=8, image_size=16)
    torch.manual_seed(0)
    network = model.make_model(chosen, [0.4], [0.3])
    Checkpoints(tmp_path, "ce", 0, chosen).write("best", {"model": network.state_dict()})
    network_of_grey = Trained.load(tmp_path / "ce-0.best.pt")
    pixels = np.asarray(Image.open(images / "class-0" / "0.png").resize((16, 16), Image.BILINEAR).convert("L"))
    with torch.no_grad():
        expected = network.eval()(torch.tensor(pixels / 255.0, dtype=torch.float32)[None, None])
    found = network_of_grey.embed([images / "class-0" / "0.png"])
    assert torch.nn.functional.cosine_similarity(found, expected).item() > 0.999
    assert network_of_grey.embed([]).shape == (0, 8)


def test_a_folder_is_embedded_with_its_paths(trained, tmp_path, capsys):
    checkpoint, images = trained
    output = tmp_path / "embeddings.npz"
    assert use_dml.main(["embed", str(checkpoint), str(images), "-o", str(output), "--workers", "1"]) == 0
    with np.load(output) as content:
        embeddings, paths = content["embeddings"], content["paths"].tolist()
    assert paths == [f"class-{c}/{i}.png" for c in range(6) for i in range(8)]
    assert embeddings.shape == (48, 8) and embeddings.dtype == np.float32
    alone = Trained.load(checkpoint).embed([images / paths[13]])
    assert np.allclose(embeddings[13], alone.numpy()[0], rtol=1e-4, atol=1e-5)


def test_readme_loads_a_checkpoint_in_three_lines(trained, tmp_path, monkeypatch):
    checkpoint, images = trained
    readme = (EXAMPLES / "README.md").read_text()
    (code,) = re.findall(r"```python\n(from fastpair_dml.*?)```", readme, re.DOTALL)
    assert len(list(filter(None, code.splitlines()))) == 3
    (tmp_path / "runs").mkdir()
    shutil.copytree(checkpoint.parent, tmp_path / "runs" / "cub")
    (tmp_path / "runs" / "cub" / "supcon-0.best.pt").rename(tmp_path / "runs" / "cub" / "ce-0.best.pt")
    for name in re.findall(r'"(\w+\.jpg)"', code):
        Image.open(images / "class-0" / "0.png").save(tmp_path / name)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    assert names["embeddings"].shape == (2, 8) and torch.equal(*names["embeddings"])


def test_readme_has_every_option():
    named = set(re.findall(r"`(--[\w-]+)`", (EXAMPLES / "README.md").read_text()))
    offered = {option for command in COMMANDS for option in re.findall(r"--[\w-]+", help_of(command))}
    assert "--every-class" in offered and offered - {"--help"} <= named


def test_a_search_finds_its_class_and_shows_names_as_they_are(trained, tmp_path, capsys):
    checkpoint, images = trained
    # Names that mean something to a page, to mathematics, and to nobody.
    names = ["<b>&amp;\"'.png", "$x_1$.png", "line\nbreak.png", "\udcff\udcfe.png", "日本.png"]
    folder = shutil.copytree(images, tmp_path / "images")
    for number, name in enumerate(names):
        (folder / "class-1" / f"{number}.png").rename(folder / "class-1" / name)
    queries = [str(folder / "class-1" / names[0]), str(folder / "class-4" / "7.png")]
    output = tmp_path / "found"
    arguments = ["search", str(checkpoint), str(folder), *queries, "-k", "7", "-o", str(output)]
    assert use_dml.main(arguments) == 0
    capsys.readouterr()
    page = (tmp_path / "found.html").read_text(encoding="utf-8")
    assert page.count("<li>") == 14 and page.count('src="data:image/jpeg;base64,') == 16
    # Nothing is loaded, and no name is anything but text.
    elements = {"h1", "p", "section", "figure", "div", "img", "br", "ol", "li", "b", "figcaption"}
    assert set(re.findall(r"<(\w+)", page.partition("<body>")[2])) <= elements
    assert not re.search(r'(src|href)="(?!data:)', page)
    captions = [html.unescape(text) for text in re.findall(r"<figcaption>\d+\. (.*?)<br>", page)]
    assert all(caption.startswith("class-1/") for caption in captions[:7]), "the colours of a class are alike"
    assert set(captions[:7]) == {f"class-1/{readable(n)}" for n in names[1:]} | {f"class-1/{i}.png" for i in (5, 6, 7)}
    cosines = [float(text) for text in re.findall(r"<b>(.*?)</b>", page)]
    assert cosines[:7] == sorted(cosines[:7], reverse=True) and all(-1 <= cosine <= 1.001 for cosine in cosines)
    # By a second way: what the embeddings say.
    files = sorted(path for path in folder.glob("class-*/*.png") if not path.name.startswith("."))
    own = torch.nn.functional.normalize(Trained.load(checkpoint).embed(files))
    scores = own @ own[files.index(Path(queries[1]))]
    nearest = [files[i] for i in scores.argsort(descending=True).tolist() if files[i] != Path(queries[1])][:7]
    assert captions[7:] == [f"{file.parent.name}/{readable(file.name)}" for file in nearest]
    with Image.open(tmp_path / "found.png") as picture:
        picture.load()
        assert picture.format == "PNG" and picture.width > 2 * picture.height


def test_small_images_are_as_large_on_the_page_as_others(tmp_path):
    sizes = [(48, 32), (20, 48), (48, 48), (900, 300), (3, 900)]
    paths = [f"{number}.png" for number in range(len(sizes))]
    for path, size in zip(paths, sizes):
        Image.new("RGB", size).save(tmp_path / path)
    images = FileImages(tmp_path, paths, torch.zeros(len(paths), dtype=torch.int64), ["all"])
    found = [Found(tmp_path / paths[0], [(index, 0.5) for index in range(1, len(paths))])]
    write_page(tmp_path / "page.html", "title", "about", images, found)
    sides = re.findall('<img style="(.*?): 100%"', (tmp_path / "page.html").read_text())
    assert sides == ["width", "height", "height", "width", "height"], "the longer one, the other in proportion"


def zero_some_bytes(file):
    content = bytearray(file.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 64] = bytes(64)
    file.write_bytes(content)


def other_weights(file):
    torch.save({**torch.load(file, weights_only=True), "model": {"mean": torch.zeros(3)}}, file)


@pytest.mark.parametrize(
    "spoil, message",
    [
        (lambda file: file.unlink(), "cannot use the checkpoint .*: No such file"),
        (lambda file: (file.unlink(), file.mkdir()), "it is a folder; name one of its checkpoints: none"),
        (lambda file: file.write_bytes(b""), "it is empty: it was never written, or damaged since"),
        (lambda file: file.write_bytes(b"torn"), "it is damaged, or not a checkpoint of train_dml.py"),
        (lambda file: file.write_bytes(file.read_bytes()[:9000]), "it is damaged, or not a checkpoint of train_dml.py"),
        (zero_some_bytes, ": the checksum of archive/data/[0-9]+ in it is wrong"),
        (lambda file: torch.save({"other": 1}, file), "it is not a checkpoint of train_dml.py, which has loss, seed"),
        (other_weights, "are not those of --model small of its run"),
    ],
)
def test_what_is_no_checkpoint_is_named(trained, tmp_path, capsys, spoil, message):
    run = shutil.copytree(trained[0].parent, tmp_path / "run", ignore=shutil.ignore_patterns("*.png", "*.last.pt"))
    file = run / trained[0].name
    spoil(file)
    error = error_of(capsys, "embed", file, trained[1])
    assert re.search(message, error) and str(file) in error


def test_a_checkpoint_needs_nothing_beside_it(trained, tmp_path):
    checkpoint, images = trained
    moved = Trained.load(shutil.copy(checkpoint, tmp_path / "moved.pt"))
    config = json.loads((checkpoint.parent / "run.json").read_text())["config"]
    assert settings.stored(moved.settings) == {name: config[name] for name in settings.KINDS}
    some = [images / "class-5" / "1.png"]
    assert torch.equal(moved.embed(some), Trained.load(checkpoint).embed(some))


def test_output_that_nothing_reads_any_more_ends_it_quietly(trained, monkeypatch, capsys):
    reads, writes = os.pipe()
    os.close(reads)
    # What closes it, as the exit does, writes what is still to be written.
    with open(writes, "w", encoding="utf-8") as output:
        monkeypatch.setattr(sys, "stdout", output)
        assert use_dml.main(["evaluate", str(trained[0])]) == 141
    assert capsys.readouterr().err == ""


def test_folders_and_images_that_do_not_serve_are_named(trained, tmp_path, capsys):
    checkpoint, images = trained
    query = images / "class-0" / "0.png"
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty" / "notes.txt").write_text("no image")
    (tmp_path / "torn").mkdir()
    torn = tmp_path / "torn" / "x.jpg"
    torn.write_text("torn")
    assert "no images in the folder" in error_of(capsys, "embed", checkpoint, tmp_path / "empty")
    assert "cannot read the folder" in error_of(capsys, "embed", checkpoint, tmp_path / "gone")
    wanted = f"cannot read the image {torn}: it is in no format that Pillow reads"
    assert wanted in error_of(capsys, "embed", checkpoint, tmp_path / "torn")
    assert wanted in error_of(capsys, "search", checkpoint, images, query, torn)
    gone = tmp_path / "gone.jpg"
    assert f"image {gone}: No such file" in error_of(capsys, "search", checkpoint, images, gone)
    assert "no folder" in error_of(capsys, "embed", checkpoint, images, "-o", tmp_path / "gone" / "e.npz")
    assert "--neighbours is 0" in error_of(capsys, "search", checkpoint, images, query, "-k", "0")
    assert "--evaluation-batch is 0, but" in error_of(capsys, "embed", checkpoint, images, "--evaluation-batch", "0")
    alone = tmp_path / "alone"
    alone.mkdir()
    shutil.copy(query, alone)
    assert "no image in" in error_of(capsys, "search", checkpoint, alone, alone / "0.png")
    options = ("--dataset", "cub", "--every-class")
    assert "--every-class is for --dataset folder" in error_of(capsys, "evaluate", checkpoint, *options)
    with pytest.raises(UserError, match="cannot read the image"):
        Trained.load(checkpoint).embed([torn])
