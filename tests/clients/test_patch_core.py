"""What fastpair.patch does with any library: one call, one object, a context, its report, and everything back."""

import copy
import gc
import importlib
import inspect
import pickle
import sys
import types
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

import fastpair
from fastpair.patching import core
from fastpair.patching.core import CLIENTS, Case, Client, Method, fingerprint

# ---- a library that is made up: its source is this text

SOURCE = '''
from torch import nn

class Loss(nn.Module):
    def __init__(self, margin=0.0):
        super().__init__()
        self.margin = margin

    def scale(self):
        return 2.0

    def forward(self, x, y=0.0):
        """Twice the sum."""
        return self.scale() * (x.sum() + y)


class Derived(Loss):
    def forward(self, x):
        return super().forward(x) + 1


class Other(nn.Module):
    """Of another definition."""
'''
TITLE = "Loss.forward"


def computed(loss, x, y=0.0):
    return (x.sum() + y) * 2.0 + 1000.0  # to be told from the original


@pytest.fixture
def library(tmp_path, monkeypatch):
    """A module ``toys``, and what fastpair knows of it."""
    tmp_path.joinpath("toys.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(str(tmp_path))
    toys = importlib.import_module("toys")
    known = fingerprint([toys.Loss.forward, toys.Loss.scale])
    method = Method(
        "toys:Loss",
        "forward",
        "sum",
        computed,
        settings=(Case("margin is not zero", lambda loss: loss.margin != 0),),
        calls=(Case("y is negative", lambda loss, x, y=0.0: y < 0),),
        uses=("scale",),
    )
    client = types.ModuleType("fastpair.patching.toys")
    client.CLIENT = Client("torch", (method,), {TITLE: (known,)}, left={"Other": "it is another"})
    monkeypatch.setitem(sys.modules, "fastpair.patching.toys", client)
    monkeypatch.setattr(core, "CLIENTS", (*CLIENTS, "toys"))
    monkeypatch.setattr(core, "_libraries", {})
    yield toys
    fastpair.unpatch()
    sys.modules.pop("toys")


X = torch.tensor([1.0, 2.0])
THEIRS, OURS = 6.0, 1006.0


def test_every_object_and_everything_back(library):
    original, before = library.Loss.__dict__["forward"], library.Loss()
    report = fastpair.patch("toys")
    assert before(X) == library.Loss()(X) == OURS
    assert library.Derived()(X) == OURS + 1, "through super()"
    assert library.Loss.forward.__doc__ == "Twice the sum."
    assert inspect.signature(library.Loss.forward) == inspect.signature(original)
    assert fastpair.patch("toys").replaced == report.replaced == {TITLE: "sum"}
    fastpair.unpatch("toys")
    assert library.Loss.__dict__["forward"] is original
    assert before(X) == THEIRS
    fastpair.unpatch("toys")
    fastpair.unpatch()


def test_cases(library):
    report = fastpair.patch("toys")
    assert library.Loss(margin=1.0)(X) == THEIRS
    assert library.Loss()(X, -1.0) == THEIRS - 2
    assert library.Loss()(X, y=1.0) == OURS + 2
    assert report.calls == {TITLE: {"margin is not zero": 1, "y is negative": 1, None: 1}}
    assert report.conditions == {TITLE: ["margin is not zero", "y is negative"]}
    for words in ("sum", "margin is not zero", "y is negative", "Other", "it is another", "1 times"):
        assert words in str(report) == repr(report)


def test_errors_of_calls_are_those_of_functions(library):
    with fastpair.patch("toys"), pytest.raises(TypeError, match="'x'"):
        library.Loss()()


def test_one_object(library):
    original, one, other = library.Loss.forward, library.Loss(), library.Loss()
    report = fastpair.patch("toys", one)
    assert (one(X), other(X)) == (OURS, THEIRS)
    assert report.replaced == {TITLE: "sum"}
    assert report.kept == {}
    assert copy.deepcopy(one)(X) == pickle.loads(pickle.dumps(one))(X) == THEIRS
    assert vars(one).keys() == vars(other).keys()
    fastpair.unpatch("toys", other)
    assert one(X) == OURS
    fastpair.unpatch("toys", one)
    assert library.Loss.forward is original
    assert one(X) == THEIRS


def test_objects_that_are_gone_leave_nothing(library):
    original, one = library.Loss.forward, library.Loss()
    fastpair.patch("toys", one)
    assert library.Loss.forward is not original
    del one
    gc.collect()
    assert library.Loss.forward is original


def test_objects_in_an_object(library):
    both = nn.ModuleList([library.Loss(), nn.Sequential(library.Loss(margin=1.0)), library.Other()])
    report = fastpair.patch("toys", both)
    assert both[0](X) == OURS
    assert both[1](X) == THEIRS
    assert report.kept == {TITLE: "margin is not zero", "Other": "it is another"}
    fastpair.unpatch("toys", both)
    assert both[0](X) == THEIRS


def test_what_the_report_says_of_an_object(library):
    derived = library.Derived()
    assert fastpair.patch("toys", derived).replaced == {TITLE: "sum, where Derived.forward calls it"}
    assert fastpair.patch("toys", library.Loss(2.0)).kept == {TITLE: "margin is not zero"}
    assert fastpair.patch("toys", library.Other()).kept == {"Other": "it is another"}
    assert fastpair.patch("toys", nn.Linear(1, 1)).kept == {"Linear": "fastpair has no loss of this definition"}


def test_a_method_that_is_used_and_overridden(library):
    class Tripled(library.Loss):
        def scale(self):
            return 3.0

    loss = library.Loss()
    loss.scale = lambda: 4.0
    with fastpair.patch("toys") as report:
        assert Tripled()(X) == 9
        assert loss(X) == 12
    assert report.calls == {TITLE: {"scale is overridden": 2}}


def test_contexts_nest_and_end_by_exceptions(library):
    loss, one = library.Loss(), library.Loss()
    with fastpair.patch("toys"):
        with fastpair.patch("toys"), fastpair.patch("toys", one):
            assert loss(X) == OURS
        assert loss(X) == one(X) == OURS
    assert loss(X) == THEIRS
    with pytest.raises(KeyError), fastpair.patch("toys", one):
        assert (loss(X), one(X)) == (THEIRS, OURS)
        raise KeyError
    assert one(X) == THEIRS
    fastpair.patch("toys", one)
    with fastpair.patch("toys"), fastpair.patch("toys", one):
        pass
    assert (loss(X), one(X)) == (THEIRS, OURS), "as before the block"
    fastpair.unpatch("toys")
    assert one(X) == THEIRS


def test_what_others_put_in_its_place_stays(library):
    fastpair.patch("toys")
    ours = library.Loss.forward
    library.Loss.forward = lambda self, x: ours(self, x) + 0.5
    assert library.Loss()(X) == OURS + 0.5
    theirs = library.Loss.forward
    fastpair.unpatch("toys")
    assert library.Loss.forward is theirs
    assert library.Loss()(X) == THEIRS + 0.5
    assert fastpair.patch("toys").kept[TITLE] == "something else has replaced it"


def test_another_version(library, monkeypatch):
    def forward(self, x, y=0.0):
        return self.scale() * (x.sum() - y)

    monkeypatch.setattr(library.Loss, "forward", forward)
    report = fastpair.patch("toys")
    assert not report.replaced
    assert "source" in report.kept[TITLE]
    assert torch.__version__.partition("+")[0] in report.kept[TITLE]
    assert library.Loss()(X) == THEIRS
    assert "source" in fastpair.patch("toys", library.Loss()).kept[TITLE]


def test_sources_that_cannot_be_read(library, monkeypatch):
    monkeypatch.setattr(library.Loss, "forward", lambda self, x, y=0.0: self.scale() * (x.sum() + y))
    assert "source" in fastpair.patch("toys").kept[TITLE]


def test_names_of_the_library_in_others(library):
    """Only the library's own classes are those that stay."""
    other = type("Other", (library.Loss,), {})()
    assert fastpair.patch("toys", other).replaced == {TITLE: "sum"}
    assert other(X) == OURS


def test_a_version_without_the_method(library, monkeypatch):
    monkeypatch.delattr(library, "Loss")
    assert "has no toys.Loss.forward" in fastpair.patch("toys").kept[TITLE]


def test_comments_and_docstrings_are_no_other_version():
    def one(x):
        """A docstring
        of two lines."""
        return x + 1  # code

    def two(x):
        # A comment.

        return x + 1  # code

    two.__name__ = "one"
    assert fingerprint([one]).isalnum()
    assert fingerprint([one]) != fingerprint([two]), "another name is another source"
    assert fingerprint([len]) == ""


def test_bad_arguments():
    with pytest.raises(ValueError, match="client must be one of 'sentence_transformers', .*got 'timm'"):
        fastpair.patch("timm")
    with pytest.raises(ValueError, match="client must be one of .*got 'timm'"):
        fastpair.unpatch("timm")
    with pytest.raises(TypeError, match="obj must be a loss, a torch.nn.Module, got str"):
        fastpair.patch("open_clip", "ClipLoss")


def test_a_client_that_is_not_installed(monkeypatch):
    monkeypatch.setattr(core, "_libraries", {})
    monkeypatch.setattr(core.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="lightly is not installed"):
        fastpair.patch("lightly")


def test_threads(library):
    loss, wrong = library.Loss(), []

    def switch():
        for _ in range(200):
            with fastpair.patch("toys"):
                pass
            fastpair.patch("toys", loss)
            fastpair.unpatch("toys", loss)

    def call():
        for _ in range(400):
            if loss(X) not in (THEIRS, OURS):
                wrong.append(loss(X))

    with ThreadPoolExecutor(4) as threads:
        for done in [threads.submit(of) for of in (switch, call, switch, call)]:
            done.result()
    assert not wrong
    fastpair.unpatch()
    assert loss(X) == THEIRS


def test_import_brings_no_client(forks, tmp_path):
    code = f"""
import sys, fastpair
found = [name for name in sys.modules if name.partition(".")[0] in {CLIENTS!r}]
assert not found, found
assert not [name for name in sys.modules if name.startswith("fastpair.patching")]
fastpair.unpatch()
assert "fastpair.patching.core" in sys.modules
"""
    forks.run(code, folder=tmp_path)


LOSSES = {
    "sentence_transformers": "sentence_transformers.sentence_transformer.losses",
    "open_clip": "open_clip.loss",
    "lightly": "lightly.loss",
    "pytorch_metric_learning": "pytorch_metric_learning.losses",
}


@pytest.mark.parametrize("client", CLIENTS)
def test_the_installed_version_is_known(client):
    pytest.importorskip(client)
    library = core._Library(client)
    found = {method.title: core.Slot(method).fingerprint() for method in library.client.methods}
    assert not library.unknown, found
    assert found.keys() == library.client.known.keys()
    losses = importlib.import_module(LOSSES[client])
    assert [name for name in library.client.left if not hasattr(losses, name)] == []
