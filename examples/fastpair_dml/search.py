"""Nearest neighbours of images among others, as a picture and as a page."""

import base64
import html
import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from .data import FileImages
from .data.reading import read_rgb
from .runfolder import write_atomically

# Images on the page are scaled to fit a square of so many pixels, for screens of twice the resolution too.
THUMBNAIL = 360
# In inches of the picture: a square for an image, and what is written below.
SQUARE, CAPTION = 1.5, 0.42
PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; }}
body {{ font: 15px/1.4 system-ui, sans-serif; margin: 2rem auto; max-width: 84rem; padding: 0 1rem; }}
h1 {{ font-size: 1.3rem; margin: 0; overflow-wrap: anywhere; }}
section {{ border-top: 1px solid #8886; display: flex; gap: 1rem; margin-top: 1.2rem; padding-top: 1.2rem; }}
ol {{ display: flex; flex-wrap: wrap; gap: 1rem; list-style: none; margin: 0; padding: 0; }}
figure {{ margin: 0; width: 11.25rem; }}
figure div {{ align-items: center; display: flex; height: 11.25rem; justify-content: center; }}
img {{ border-radius: 3px; max-height: 100%; max-width: 100%; }}
.query {{ flex: none; }}
.query img {{ outline: 3px solid #0072b2; outline-offset: 2px; }}
figcaption {{ font-size: 0.85rem; margin-top: 0.4rem; overflow-wrap: anywhere; text-align: center; }}
figcaption b {{ font-variant-numeric: tabular-nums; }}
@media (max-width: 40rem) {{ section {{ display: block; }} ol {{ margin-top: 1rem; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
<p>{about}</p>
{sections}
</body>
</html>
"""


@dataclass(frozen=True)
class Found:
    """The neighbours of one query.

    Attributes:
        query: its file.
        neighbours: index among the images and cosine, nearest first.
    """

    query: Path
    neighbours: list[tuple[int, float]]


def write_page(path: Path, title: str, about: str, images: FileImages, found: list[Found]) -> None:
    """An HTML page of queries and their neighbours, which needs no other file.

    Raises:
        UserError: an image cannot be read.
    """
    sections = "\n".join(_section(images, of_query) for of_query in found)
    page = PAGE.format(title=html.escape(title), about=html.escape(about), sections=sections)
    write_atomically(path, lambda file: file.write(page.encode()))


def _section(images: FileImages, found: Found) -> str:
    items = []
    for rank, (index, cosine) in enumerate(found.neighbours, start=1):
        name = readable(images.paths[index])
        caption = f"{rank}. {html.escape(name)}<br><b>{cosine:.3f}</b>"
        items.append(f"<li>{_figure(images.file(index), name, caption)}</li>")
    name = readable(found.query.name)
    query = _figure(found.query, name, f"query: {html.escape(name)}", ' class="query"')
    return f"<section>\n{query}\n<ol>\n" + "\n".join(items) + "\n</ol>\n</section>"


def _figure(file: Path, name: str, caption: str, attributes: str = "") -> str:
    data = base64.b64encode(_thumbnail(file)).decode()
    image = f'<img src="data:image/jpeg;base64,{data}" alt="{html.escape(name)}">'
    return f"<figure{attributes}><div>{image}</div><figcaption>{caption}</figcaption></figure>"


def _thumbnail(file: Path) -> bytes:
    image = _image(file)
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    return content.getvalue()


def _image(file: Path) -> Image.Image:
    return Image.fromarray(np.ascontiguousarray(read_rgb(file, THUMBNAIL).permute(1, 2, 0).numpy()))


def write_picture(path: Path, images: FileImages, found: list[Found]) -> None:
    """A PNG of queries, one below the other, and their neighbours beside them.

    Raises:
        UserError: an image cannot be read.
    """
    columns = 1 + max(len(of_query.neighbours) for of_query in found)
    row = SQUARE + CAPTION
    figure = Figure(figsize=(SQUARE * 1.1 * columns + 0.2, row * len(found) + 0.1))
    # One axes for everything: an axes for each image takes seconds to draw.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, of_query in enumerate(found):
        _place(axes, 0, row * number, _image(of_query.query), f"query\n{_short(of_query.query.name)}")
        for rank, (index, cosine) in enumerate(of_query.neighbours, start=1):
            caption = f"{cosine:.3f}\n{_short(images.paths[index])}"
            _place(axes, rank * 1.1 * SQUARE, row * number, _image(images.file(index)), caption)
    # Last, because every image sets the limits to its own.
    axes.set(xlim=(-0.1, SQUARE * 1.1 * columns + 0.1), ylim=(row * len(found), -0.1))
    FigureCanvasAgg(figure)
    with warnings.catch_warnings():
        # Of letters that the font has not it draws a box, here as elsewhere.
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        write_atomically(path, lambda file: figure.savefig(file, format="png", dpi=130))


def _place(axes, x: float, y: float, image: Image.Image, text: str) -> None:
    """Draw an image in the middle of a square of SQUARE, in its own proportions, and the text below."""
    width, height = (SQUARE * side / max(image.size) for side in image.size)
    left, top = x + (SQUARE - width) / 2, y + (SQUARE - height) / 2
    axes.imshow(np.asarray(image), extent=(left, left + width, top + height, top), aspect="auto")
    axes.text(x + SQUARE / 2, y + SQUARE + 0.04, text, ha="center", va="top", fontsize=7, parse_math=False)


def _short(name: str) -> str:
    name = readable(name)
    return name if len(name) <= 24 else "…" + name[-23:]


def readable(name: str) -> str:
    """A file's name as text that can be written and drawn: what is none is replaced."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
