"""What mkdocs does while it builds the site: pages made from the package and its results, formulas as MathML, and the
links of pages that are read in the repository too."""

from __future__ import annotations

import html
import json
import re
import sys
from pathlib import Path

import latex2mathml.converter
from mkdocs.structure.files import File

sys.path.insert(0, str(Path(__file__).parent))
import drawings
import losses
import notebooks

ROOT = Path(__file__).resolve().parents[2]
RESULTS = ROOT / "benchmarks" / "results"
# Pages and files of the repository that lie outside docs/, and where the site has them.
OUTSIDE = {"README.md": "overview.md", "CHANGELOG.md": "changelog.md", "CONTRIBUTING.md": "contributing.md"}
OUTSIDE |= {
    str(path.relative_to(ROOT)): str(path.relative_to(ROOT))
    for pattern in ("benchmarks/*.md", "benchmarks/results/*.*", "examples/*.md", "examples/results/*.*")
    for path in sorted(ROOT.glob(pattern))
}
LINK = re.compile(r"\[([^\]]*)\]\(([^)\s#]+)(#[^)\s]*)?\)")


def on_files(files, config):
    made = {page.path: losses.write(page) for page in losses.PAGES}
    made |= {page.path.replace(".md", ".svg"): losses.picture(page) for page in losses.PAGES if page.of}
    made |= {"losses/index.md": losses.index(), "benchmarks/results/index.md": results()}
    made |= {f"benchmarks/results/{path.stem}.md": table_of(path) for path in without_page()}
    made |= {f"drawings/{name}.svg": draw() for name, draw in drawings.DRAWINGS.items()}
    made |= notebooks.pages(ROOT / "docs" / "notebooks")
    for source, content in made.items():
        files.append(File.generated(config, source, content=content))
    for source, target in OUTSIDE.items():
        files.append(File.generated(config, target, abs_src_path=str(ROOT / source)))
    return files


# ---- results


def environment(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())["environment"]


def without_page() -> list[Path]:
    """The results that ``benchmarks.report`` makes no page of."""
    return [
        path
        for path in sorted(RESULTS.glob("*.json"))
        if not path.with_suffix(".md").exists() and "milliseconds" in json.loads(path.read_text())["results"][0]
    ]


def results() -> str:
    lines = [
        "# Results",
        "",
        "What was measured, on which machine, at which commit and when: made from benchmarks/results.",
        "",
    ]
    lines += ["| results | machine | commit | torch | date |", "|---|---|---|---|---|"]
    for path in sorted(RESULTS.glob("*.json")):
        of = environment(path)
        machine = of.get("device") or f"{of['cpu']}, {of['capability']}, threads: {of['threads']}"
        has_page = path.with_suffix(".md").exists() or path in without_page()
        target = f"{path.stem}.md" if has_page else path.name
        commit = re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", str(of["commit"]))
        lines.append(f"| [{path.stem}]({target}) | {machine} | {commit} | {of['torch']} | {of.get('date', '–')} |")
    return "\n".join(lines) + "\n"


def table_of(path: Path) -> str:
    rows = [row for row in json.loads(path.read_text())["results"] if "milliseconds" in row]
    names = list(dict.fromkeys(name for row in rows for name in row["milliseconds"]))
    lines = [f"# {path.stem}", "", ", ".join(f"{name} {value}" for name, value in environment(path).items()), ""]
    lines += [f"| milliseconds | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for row in rows:
        times = (row["milliseconds"].get(name) for name in names)
        lines.append(f"| {row['work']} | {' | '.join('–' if t is None else f'{t:,.3g}' for t in times)} |")
    return "\n".join(lines) + "\n"


# ---- links


def on_page_markdown(markdown, page, config, files):
    """Links between the repository's files become links of the site; of those to files that it lacks the words stay."""
    at = next((source for source, target in OUTSIDE.items() if target == page.file.src_uri), None)
    folder = (ROOT / at).parent if at else (ROOT / "docs" / page.file.src_uri).parent

    def place(target: str) -> tuple[bool, str | None]:
        """Whether the target is a file of the repository, and where the site has it."""
        path = (folder / target).resolve()
        if ":" in target or not path.exists():
            return False, None
        source = str(path.relative_to(ROOT))
        return True, source.removeprefix("docs/") if source.startswith("docs/") else OUTSIDE.get(source)

    def moved(link: re.Match) -> str:
        words, target, anchor = link[1], link[2], link[3] or ""
        of_repository, there = place(target)
        if not of_repository:
            return link[0]
        return f"`{words}`" if there is None else f"[{words}]({relative(there, page.file.src_uri)}{anchor})"

    return LINK.sub(moved, markdown)


def relative(target: str, page: str) -> str:
    up = len(Path(page).parent.parts)
    return "../" * up + target


# ---- formulas


def on_page_content(content, page, config, files):
    """TeX between the marks of arithmatex becomes MathML, which browsers draw without a script."""

    def mathml(found: re.Match) -> str:
        display = "block" if found[1] == "div" else "inline"
        tex = html.unescape(found[2]).strip().removeprefix(r"\[").removeprefix(r"\(")
        tex = tex.removesuffix(r"\]").removesuffix(r"\)")
        made = latex2mathml.converter.convert(tex.strip(), display=display)
        return f'<div class="formula">{made}</div>' if display == "block" else made

    return re.sub(r'<(span|div) class="arithmatex">(.*?)</\1>', mathml, content, flags=re.DOTALL)
