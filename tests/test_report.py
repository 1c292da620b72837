"""``python -m benchmarks.report`` on made-up results."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def rows(name, field, along, sizes, rest, values):
    for i, size in enumerate(sizes):
        fields = {variant: start * (i + 1) ** 2 for variant, start in values.items()}
        yield {"work": f"{name} {along}={size}", "name": name, "sizes": {along: size, **rest}, field: fields}


def test_report(tmp_path):
    times = {"product": 1.0, "fastpair": 2.0, "eager": 5.0}
    results = [
        *rows("supcon", "milliseconds", "n", (64, 128, 256), {"d": 512}, times),
        *rows("linear_cross_entropy", "milliseconds", "K", (100, 1000, 10_000), {"n": 128}, {**times, "compile": 1.0}),
        *rows("snca", "milliseconds", "n", (64, 128), {"d": 512}, times),
        *rows("supcon", "extra_mebibytes", "n", (64, 128, 256), {"d": 512}, {"fastpair": 3.0}),
    ]
    (tmp_path / "made-up.json").write_text(json.dumps({"environment": {"cpu": "none"}, "results": results}))
    command = [sys.executable, "-m", "benchmarks.report", str(tmp_path / "made-up.json"), "--output", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True)
    text = (tmp_path / "made-up.md").read_text()
    assert "| supcon n=256 | 18 | 45 (2.5×) | – | 2.00 |" in text
    # Where fastpair loses is shown like the rest.
    assert "| linear cross entropy K=100 | 2 | 5 (2.5×) | 1 (0.5×) | 2.00 |" in text
    assert "| snca n=128 | 8 | 20 (2.5×) | – | 2.00 |" in text, "in the table, though two sizes make no curve"
    for kind in ("svg", "png"):
        assert (tmp_path / f"made-up-time.{kind}").stat().st_size > 1000
        assert (tmp_path / f"made-up-memory.{kind}").stat().st_size > 1000
