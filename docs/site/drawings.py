"""The drawings of docs/kernels.md, as SVG."""

from __future__ import annotations

BLUE, LIGHT, ORANGE, GREY = "#0072B2", "#b8d8ec", "#E69F00", "#dddddd"


def svg(width: int, height: int, *parts: str) -> str:
    style = "font-family='sans-serif' font-size='13' fill='#222222'"
    return (
        f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {width} {height}' width='{width}' "
        f"height='{height}' {style}>"
        "<defs><marker id='head' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='8' markerHeight='8' orient='auto'>"
        f"<path d='M0 0 L8 4 L0 8 z' fill='#222222'/></marker></defs>{''.join(parts)}</svg>"
    )


def box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "#555555") -> str:
    return f"<rect x='{x}' y='{y}' width='{width}' height='{height}' fill='{fill}' stroke='{stroke}'/>"


def text(x: float, y: float, words: str, anchor: str = "middle") -> str:
    return f"<text x='{x}' y='{y}' text-anchor='{anchor}'>{words}</text>"


def arrow(x1: float, y1: float, x2: float, y2: float) -> str:
    return f"<line x1='{x1}' y1='{y1}' x2='{x2}' y2='{y2}' stroke='#222222' marker-end='url(#head)'/>"


def triangle(tiles: int = 6, size: int = 38) -> str:
    """The score matrix of a batch with itself: what is computed, and what a tile stands for."""
    parts = []
    for i in range(tiles):
        for j in range(tiles):
            fill = ORANGE if (i, j) in ((1, 4), (4, 1)) else BLUE if i == j else LIGHT if i < j else GREY
            parts.append(box(60 + j * size, 30 + i * size, size, size, fill))
    side = tiles * size
    at = {name: (60 + (j + 0.5) * size, 30 + (i + 0.5) * size) for name, i, j in (("tile", 1, 4), ("mirror", 4, 1))}
    parts += [
        arrow(at["tile"][0] - 8, at["tile"][1] + 8, at["mirror"][0] + 8, at["mirror"][1] - 8),
        text(60 + side / 2, 20, "samples, sorted by label"),
        text(80 + side, 60, "computed, on the diagonal and above it", "start"),
        text(80 + side, 60 + 1.6 * size, "a tile is computed once, and stands", "start"),
        text(80 + side, 78 + 1.6 * size, "for its mirror image too", "start"),
        text(80 + side, 60 + 4.4 * size, "not computed", "start"),
    ]
    return svg(600, 50 + side, *parts)


def sweep() -> str:
    """One tile's way: scores, statistics, slopes, gradients."""
    names = (
        ("product", "S = X Yᵀ", "BLAS", LIGHT),
        ("statistics", "sums, log-sum-exps,", "maxima of each row", "#f6dfae"),
        ("slopes", "G = ∂loss / ∂S,", "in the place of S", "#f6dfae"),
        ("product", "dX += G Y", "BLAS", LIGHT),
    )
    parts = []
    for k, (name, first, second, fill) in enumerate(names):
        x = 10 + 165 * k
        parts += [box(x, 40, 140, 70, fill), text(x + 70, 30, name), text(x + 70, 72, first), text(x + 70, 92, second)]
        if k:
            parts.append(arrow(x - 23, 75, x - 2, 75))
    parts += [text(10, 140, "A tile of at most 2¹⁷ scores passes through all of it while it is in the cache.", "start")]
    return svg(680, 155, *parts)


def gradient() -> str:
    """Why one product makes the whole gradient where the references are the batch."""
    parts = [
        box(20, 30, 120, 120, LIGHT),
        text(80, 55, "H = G + Gᵀ"),
        text(160, 95, "×"),
        box(180, 30, 60, 120, "#f6dfae"),
    ]
    parts += [
        text(210, 55, "X"),
        text(260, 95, "="),
        box(280, 30, 60, 120, GREY),
        text(310, 55, "dX"),
        box(20, 70, 120, 20, ORANGE),
    ]
    parts += [box(280, 70, 60, 20, ORANGE)]
    parts += [text(370, 80, "A block of rows of dX is written by one task, in a fixed order:", "start")]
    parts += [text(370, 98, "no atomic additions, and the same bits in every run.", "start")]
    return svg(800, 165, *parts)


DRAWINGS = {"triangle": triangle, "sweep": sweep, "gradient": gradient}
