"""The scripts of docs/switching.md: with fastpair and without they print the same."""

import contextlib
import io
import re
from pathlib import Path

import pytest
import torch
from tiny_models import save_bert

TEXT = Path(__file__).parents[2].joinpath("docs", "switching.md").read_text(encoding="utf-8")
SCRIPTS = dict(re.findall(r"### (\S+)\n\n```python\n(.*?)```", TEXT, re.DOTALL))
NAMES = {name: name.replace("-", "_") for name in SCRIPTS}


def printed(script: str) -> list[float]:
    torch.manual_seed(0)
    output = io.StringIO()
    with contextlib.redirect_stdout(output):
        exec(script, {})
    return [float(line) for line in output.getvalue().split()]


def test_there_is_one_for_every_client():
    from fastpair.patching.core import CLIENTS

    assert set(NAMES.values()) == set(CLIENTS)


@pytest.mark.parametrize("name", SCRIPTS)
def test_scripts(name, tmp_path, monkeypatch):
    import fastpair

    pytest.importorskip(NAMES[name])
    if name == "sentence-transformers":
        save_bert(str(tmp_path / "microsoft" / "mpnet-base"))  # in place of the download
        monkeypatch.chdir(tmp_path)
    before = "\n".join(line for line in SCRIPTS[name].splitlines() if "fastpair" not in line)
    want = printed(before)
    assert len(want) == 5
    assert printed(SCRIPTS[name]) == pytest.approx(want, rel=1e-3)
    calls = fastpair.patch(NAMES[name]).calls
    assert any(None in of_method for of_method in calls.values()), calls


def test_the_other_examples():
    pytest.importorskip("open_clip")
    others = set(re.findall(r"```python\n(.*?)```", TEXT, re.DOTALL)) - set(SCRIPTS.values())
    assert others
    for code in others:
        with contextlib.redirect_stdout(io.StringIO()) as output:
            exec(code, {})
        assert "ClipLoss" in output.getvalue()


def test_the_report_is_printed_as_it_is():
    import fastpair

    pytest.importorskip("open_clip")
    shown = re.search(r"```\n(fastpair.patch.*?)```", TEXT, re.DOTALL)[1].splitlines()
    report = str(fastpair.patch("open_clip")).splitlines()
    assert [line for line in shown if "was called" not in line] == [x for x in report if "was called" not in x]
