"""``python -m fastpair.formulas``, in a checkout, rewrites the files that are printed from the definitions."""

from pathlib import Path

from . import to_cpp, to_markdown, to_python
from .class_losses import CLASS_LOSSES
from .pair_losses import DEFINITIONS, FORMULAS, PAIR_LOSSES

ROOT = Path(__file__).parents[2]


def printed() -> dict[Path, str]:
    """The files and the text that each has to have."""
    pairs, losses = DEFINITIONS.values(), [*PAIR_LOSSES.values(), *CLASS_LOSSES.values()]
    tables = {ROOT / "README.md": to_markdown.losses, ROOT / "docs/losses.md": to_markdown.details}
    return {
        **{path: to_markdown.inserted(path.read_text("utf-8"), made(pairs)) for path, made in tables.items()},
        ROOT / "csrc/pair_losses/generated.h": to_cpp.header(FORMULAS.values()),
        ROOT / "fastpair/losses/generated_functions.py": to_python.functions(losses),
        ROOT / "fastpair/losses/generated_modules.py": to_python.modules(losses),
    }


def main() -> None:
    if not (ROOT / "README.md").exists():
        raise SystemExit("python -m fastpair.formulas works on a checkout of the repository, with its README and csrc")
    for path, content in printed().items():
        path.write_text(content, encoding="utf-8")


if __name__ == "__main__":
    main()
