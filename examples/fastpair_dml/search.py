"""Nearest neighbours of images among others, as a picture and as a page."""

import base64
import html
import io
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from .data import FileImages
from .data.reading import read_rgb
from .plots import COLOURS, COLUMN, GREY, ROW, drawable, save, show
from .runfolder import write_atomically

# Images on the page are scaled to fit a square of so many pixels, for screens of twice the resolution too.
THUMBNAIL = 360
# Of an image in the picture, in inches.
SIDE = 1.5
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
    image = _thumbnail(file)
    content = io.BytesIO()
    image.save(content, "JPEG", quality=88)
    data = base64.b64encode(content.getvalue()).decode()
    # As long as the longer side may be: a small image is scaled up.
    side = "width" if image.width > image.height else "height"
    image = f'<img style="{side}: 100%" src="data:image/jpeg;base64,{data}" alt="{html.escape(name)}">'
    return f"<figure{attributes}><div>{image}</div><figcaption>{caption}</figcaption></figure>"


def _thumbnail(file: Path) -> Image.Image:
    image = Image.fromarray(np.ascontiguousarray(_pixels(file).permute(1, 2, 0).numpy()))
    image.thumbnail((THUMBNAIL, THUMBNAIL))
    return image


def _pixels(file: Path) -> Tensor:
    return read_rgb(file, THUMBNAIL)


def write_picture(path: Path, images: FileImages, found: list[Found]) -> None:
    """A PNG of queries, one below the other, and their neighbours beside them.

    Raises:
        UserError: an image cannot be read.
    """
    columns = 1 + max(len(of_query.neighbours) for of_query in found)
    width, height = COLUMN * columns + 0.05, ROW * len(found) + 0.05
    figure = Figure(figsize=(SIDE * width, SIDE * height))
    # One axes for everything: an axes for each image takes seconds to draw.
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    for number, of_query in enumerate(found):
        y = ROW * number
        show(axes, 0, y, _pixels(of_query.query), f"query\n{_short(of_query.query.name)}", COLOURS[0])
        for rank, (index, cosine) in enumerate(of_query.neighbours, start=1):
            caption = f"{cosine:.3f}\n{_short(images.paths[index])}"
            show(axes, rank * COLUMN, y, _pixels(images.file(index)), caption, GREY)
    # Last, because every image sets the limits to its own.
    axes.set(xlim=(-0.08, width - 0.08), ylim=(height - 0.08, -0.08))
    save(figure, path)


def _short(name: str) -> str:
    name = drawable(name)
    return name if len(name) <= 24 else "…" + name[-23:]


def readable(name: str) -> str:
    """A file's name as text that can be written: what is none is replaced."""
    text = os.fsencode(name).decode("utf-8", "replace")
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
