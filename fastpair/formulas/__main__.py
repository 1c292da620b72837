"""``python -m fastpair.formulas``, in a checkout, rewrites the files that are printed from the definitions."""

from pathlib import Path

from . import to_cpp, to_markdown, to_python
from .pair_losses import DEFINITIONS, FORMULAS

ROOT = Path(__file__).parents[2]


def printed() -> dict[Path, str]:
    """The files and the text that each has to have."""
    definitions = DEFINITIONS.values()
    tables = {ROOT / "README.md": to_markdown.losses, ROOT / "docs/losses.md": to_markdown.details}
    return {
        **{path: to_markdown.inserted(path.read_text("utf-8"), made(definitions)) for path, made in tables.items()},
        ROOT / "csrc/pair_losses/generated.h": to_cpp.header(FORMULAS.values()),
        ROOT / "fastpair/losses/generated_functions.py": to_python.functions(definitions),
        ROOT / "fastpair/losses/generated_modules.py": to_python.modules(definitions),
    }


def main() -> None:
    if not (ROOT / "README.md").exists():
        raise SystemExit("python -m fastpair.formulas works on a checkout of the repository, with its README and csrc")
    for path, content in printed().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
