"""Plants each fault of ``faults.py`` into a copy of the working tree and runs the tests that are to catch it.

    PYTHONPATH=tests python -m mutants --only "tile|stride" --pytest "-n 2"
    PYTHONPATH=tests python -m mutants --only csrc/cpu --tests tests/test_oracle.py

A fault is caught if a test fails, crashes or does not end in time. One that does not build, or that no test can be
collected with, is an error of the list. The exit status is 1 if a fault survived or the list has errors.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from xml.etree import ElementTree

from mutants.faults import FAULTS, Fault

ROOT = Path(__file__).parents[2]
WORK = ROOT / "build" / "mutants"
TREE = WORK / "tree"
# What the build of the tree without a fault left, times of its files included.
BUILT = WORK / "built"
LOG, REPORT, COPIED = WORK / "log", WORK / "report.xml", WORK / "copied"

SUITES = {
    "cpu": ["tests", "--ignore=tests/gpu", "--ignore=tests/examples"],
    "emulated": ["tests/gpu"],
    "interpreted": ["tests/gpu"],
    "examples": ["tests/examples"],
}
ENVIRONMENT = {
    **os.environ,
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]]),  # for ninja
    "PYTHONPATH": str(TREE),
    "OMP_NUM_THREADS": "1",
    "FASTPAIR_BUILD_EXT": "1",
    "FASTPAIR_BUILD_CUDA": "0",
    "FASTPAIR_CACHE": str(WORK / "cache"),  # of losses that tests compile against faulty headers
}


@dataclass
class Outcome:
    """``verdict``: "passed", "caught" or "error"; ``by``: what said so."""

    verdict: str
    by: str
    seconds: float


# ---- the copy of the working tree


def copy_tree() -> None:
    """Files that have not changed keep their times, and need no new build."""
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    shown = subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    names = [name for name in shown.split("\0") if (ROOT / name).is_file()]
    before = COPIED.read_text().split("\0") if COPIED.exists() else []
    for name in {name for name in before if name} - set(names):
        (TREE / name).unlink(missing_ok=True)
    for name in names:
        source, copy = ROOT / name, TREE / name
        if not copy.exists() or copy.read_bytes() != source.read_bytes():
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(source, copy)
    COPIED.write_text("\0".join(names))


def build() -> Outcome:
    """The extension in place: what depends on a changed file, as ninja sees it."""
    start = time.monotonic()
    with LOG.open("w") as log:
        command = [sys.executable, "setup.py", "-q", "build_ext", "--inplace"]
        done = subprocess.run(command, cwd=TREE, env=ENVIRONMENT, stdout=log, stderr=subprocess.STDOUT)
    problem = f"the build, see {LOG.relative_to(ROOT)}" if done.returncode else ""
    return Outcome("error" if problem else "passed", problem, time.monotonic() - start)


def build_outputs(root: Path) -> list[Path]:
    return [path for pattern in ("build/temp*", "fastpair/_C*") for path in root.glob(pattern)]


def copy_build(source: Path, target: Path) -> None:
    for path in build_outputs(target):
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    for path in build_outputs(source):
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copytree(path, copy) if path.is_dir() else shutil.copy2(path, copy)


@contextlib.contextmanager
def planted(fault: Fault) -> Iterator[Outcome]:
    """The tree with the fault, built where it is in the extension; afterwards all is as it was, times of files too."""
    path = TREE / fault.file
    before, times = path.read_text(), path.stat()
    path.write_text(before.replace(fault.text, fault.replacement))
    try:
        yield build() if fault.is_built else Outcome("passed", "", 0.0)
    finally:
        path.write_text(before)
        os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
        if fault.is_built:
            copy_build(BUILT, TREE)


# ---- the suite


def run_suite(suite: str, selection: list[str], further: list[str], limit: float) -> Outcome:
    REPORT.unlink(missing_ok=True)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", f"--junitxml={REPORT}"]
    interpreted = {"TRITON_INTERPRET": "1"} if suite == "interpreted" else {}
    start = time.monotonic()
    with LOG.open("w") as log:
        process = subprocess.Popen(
            [*command, *further, *selection],
            cwd=TREE,
            env=ENVIRONMENT | interpreted,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            status = process.wait(limit)
        except subprocess.TimeoutExpired:
            return Outcome("caught", "the time limit", time.monotonic() - start)
        finally:
            with contextlib.suppress(ProcessLookupError):  # with what its tests started
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return Outcome(*verdict(status), time.monotonic() - start)


def verdict(status: int) -> tuple[str, str]:
    """Of a run of pytest that ended with this status, and what says so."""
    if status == 0:
        return "passed", ""
    if status < 0:
        return "caught", f"a crash, {signal.Signals(-status).name}"
    failed = [case for case in ElementTree.parse(REPORT).iter("testcase") if len(case)] if REPORT.exists() else []
    for case in failed:
        for kind in ("failure", "error"):
            found = case.find(kind)
            if found is None:
                continue
            test = f"{case.get('classname')}::{case.get('name')}"
            # An emulator that does not compile fails like a test.
            is_wrong = found.get("message") == "collection failure" or "build_emulator" in (found.text or "")
            return ("error", f"{test}: {(found.text or '').strip()[-300:]}") if is_wrong else ("caught", test)
    return "error", f"pytest ended with status {status}, see {LOG.relative_to(ROOT)}"


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="mutants", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--only", default="", metavar="PATTERN", help="a regular expression for name, file or suite")
    parser.add_argument("--tests", type=shlex.split, metavar="ARGUMENTS", help="in place of the part of the suite")
    parser.add_argument("--pytest", type=shlex.split, default=[], metavar="ARGUMENTS", help="further ones, as -n 2")
    parser.add_argument("--limit", type=float, default=900, metavar="SECONDS", help="for the tests of one fault")
    parser.add_argument("--json", type=Path, metavar="FILE", help="for the outcomes")
    return parser.parse_args()


def main() -> int:
    arguments = parsed()
    chosen = [fault for fault in FAULTS if re.search(arguments.only, f"{fault.name} {fault.file} {fault.suite}")]
    TREE.mkdir(parents=True, exist_ok=True)
    copy_tree()
    first = build()
    if first.verdict == "error":
        sys.exit(f"without a fault there is an error of {first.by}")
    copy_build(TREE, BUILT)
    print(f"built in {first.seconds:.0f} s", flush=True)

    def run(suite: str) -> Outcome:
        return run_suite(suite, arguments.tests or SUITES[suite], arguments.pytest, arguments.limit)

    for suite in dict.fromkeys(fault.suite for fault in chosen):
        whole = run(suite)
        if whole.verdict != "passed":
            sys.exit(f"without a fault the tests ({suite}) do not pass: {whole.by}")
        print(f"tests ({suite}) without a fault: {whole.seconds:.0f} s", flush=True)

    outcomes = []
    for fault in chosen:
        with planted(fault) as built:
            tested = run(fault.suite) if built.verdict == "passed" else built
        said = {"passed": "SURVIVED", "caught": f"caught by {tested.by}", "error": f"ERROR of {tested.by}"}
        print(f"{fault.name} ({fault.file}): {said[tested.verdict]} after {tested.seconds:.0f} s", flush=True)
        outcomes.append({**asdict(fault), **asdict(tested), "build_seconds": built.seconds})
        if arguments.json:
            arguments.json.write_text(json.dumps(outcomes, indent=1) + "\n")
    counts = [sum(of["verdict"] == verdict for of in outcomes) for verdict in ("caught", "passed", "error")]
    print("{} faults: {} caught, {} survived, {} errors of the list".format(len(outcomes), *counts))
    return int(counts[0] < len(outcomes))


if __name__ == "__main__":
    sys.exit(main())
