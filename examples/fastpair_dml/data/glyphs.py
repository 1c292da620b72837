"""Characters times typefaces, drawn from the fonts that matplotlib ships.

A class is a character and its 16 images are the same character in 16 faces: DejaVu Sans, DejaVu Sans Mono,
DejaVu Serif and STIXGeneral, each regular, bold, italic (or oblique) and bold italic. The pictures are clean,
centred, grey on black and 32 x 32: a real retrieval task that needs no download, and an easy one beside photographs.

Which characters: the upper-case letters, lower-case letters and decimal digits (Unicode categories Lu, Ll and Nd) that
all 16 faces contain, 561 of them (Latin with accents, IPA, Greek, Cyrillic). Of two characters that any one face draws
with the same pixels (Latin A, Greek Alpha and Cyrillic A, for instance) only the first in code-point order is
kept, since no network could tell the pair apart. 493 classes remain. Near look-alikes, such as a letter with two
different accents, stay: they are what makes the task worth training for.
"""

import unicodedata
from pathlib import Path

import matplotlib
import numpy as np
import torch
from matplotlib.ft2font import FT2Font
from PIL import Image, ImageDraw, ImageFont

from ..errors import UserError
from .images import RetrievalData, TensorImages

IMAGE_SIZE = 32
# The tallest and the widest characters of all faces still fit into the image, with a margin left for shifts.
FONT_SIZE = 20
CATEGORIES = ("Lu", "Ll", "Nd")
NUM_CLASSES = 493
FACES = (
    "DejaVuSans",
    "DejaVuSans-Bold",
    "DejaVuSans-Oblique",
    "DejaVuSans-BoldOblique",
    "DejaVuSansMono",
    "DejaVuSansMono-Bold",
    "DejaVuSansMono-Oblique",
    "DejaVuSansMono-BoldOblique",
    "DejaVuSerif",
    "DejaVuSerif-Bold",
    "DejaVuSerif-Italic",
    "DejaVuSerif-BoldItalic",
    "STIXGeneral",
    "STIXGeneralBol",
    "STIXGeneralItalic",
    "STIXGeneralBolIta",
)


def glyphs(data_dir: Path | None = None) -> RetrievalData:
    """The glyphs data set: the first 246 classes in code-point order train, the other 247 are for retrieval.

    Args:
        data_dir: must be None, the images are drawn from matplotlib's fonts.

    Raises:
        UserError: ``data_dir`` was given, or the fonts are missing, unreadable or others than expected.
    """
    if data_dir is not None:
        raise UserError(f"--data-dir is {data_dir}, but --dataset glyphs draws its images and reads no folder")
    images, characters = render_glyphs()
    images = torch.from_numpy(images)
    names = [f"{c} U+{ord(c):04X}" for c in characters]
    half = len(names) // 2
    return RetrievalData(_faces(images[:half], names[:half]), _faces(images[half:], names[half:]))


def _faces(images: torch.Tensor, names: list[str]) -> TensorImages:
    labels = torch.arange(len(names)).repeat_interleave(len(FACES))
    return TensorImages(images.flatten(0, 1).unsqueeze(1), labels, names)


def font_files() -> list[Path]:
    """Paths of the 16 faces, in the order of ``FACES``.

    Raises:
        UserError: a face is missing, as in matplotlib packages whose fonts were taken out.
    """
    folder = Path(matplotlib.get_data_path()) / "fonts" / "ttf"
    files = [folder / f"{face}.ttf" for face in FACES]
    missing = [file.name for file in files if not file.is_file()]
    if missing:
        raise UserError(
            f"the glyphs data set needs the {len(FACES)} DejaVu and STIXGeneral faces of matplotlib's own wheel, but "
            f"{len(missing)} of them are not in {folder}: {', '.join(missing)}. Distributions often ship "
            f"matplotlib {matplotlib.__version__} without its fonts; `pip install matplotlib` in a virtual "
            "environment brings them, or use --dataset folder with images of your own."
        )
    return files


def render_glyphs() -> tuple[np.ndarray, str]:
    """Draw every class in every face.

    Returns:
        ``(images, characters)``: uint8 images of shape (493, 16, 32, 32), white on black, and the 493 characters in
        code-point order, one a class.

    Raises:
        UserError: a font is missing or unreadable, or the fonts are not the ones this data set is defined on.
    """
    files = font_files()
    characters = _common_characters(files)
    images = np.stack([_draw(file, characters) for file in files], axis=1)
    keep = _distinct(images)
    if len(keep) != NUM_CLASSES:
        raise UserError(
            f"the glyphs data set has {NUM_CLASSES} classes, but the fonts in {files[0].parent} give {len(keep)}: they "
            f"are not the fonts of matplotlib's own wheel (matplotlib {matplotlib.__version__})"
        )
    return images[keep], "".join(characters[i] for i in keep)


def _common_characters(files: list[Path]) -> str:
    common = None
    for file in files:
        try:
            codes = set(FT2Font(str(file)).get_charmap())
        except (OSError, RuntimeError) as error:
            raise UserError(f"cannot read the font {file}: {error}") from error
        common = codes if common is None else common & codes
    return "".join(c for c in map(chr, sorted(common)) if unicodedata.category(c) in CATEGORIES)


def _draw(file: Path, characters: str) -> np.ndarray:
    try:
        # The basic layout: the other one depends on a shaping library that may or may not be installed.
        font = ImageFont.truetype(str(file), FONT_SIZE, layout_engine=ImageFont.Layout.BASIC)
    except OSError as error:
        raise UserError(f"cannot read the font {file}: {error}") from error
    images = np.empty((len(characters), IMAGE_SIZE, IMAGE_SIZE), dtype=np.uint8)
    for i, character in enumerate(characters):
        image = Image.new("L", (IMAGE_SIZE, IMAGE_SIZE))
        left, top, right, bottom = font.getbbox(character)
        corner = ((IMAGE_SIZE - left - right) // 2, (IMAGE_SIZE - top - bottom) // 2)
        ImageDraw.Draw(image).text(corner, character, font=font, fill=255)
        images[i] = np.asarray(image)
    return images


def _distinct(images: np.ndarray) -> list[int]:
    """Indices of the characters that no face draws like an earlier character."""
    seen = [set() for _ in range(images.shape[1])]
    keep = []
    for i, faces in enumerate(images):
        drawn = [face.tobytes() for face in faces]
        if not any(pixels in known for pixels, known in zip(drawn, seen, strict=True)):
            keep.append(i)
        # A dropped character counts as drawn too: what looks like it looks like the one that was kept.
        for pixels, known in zip(drawn, seen, strict=True):
            known.add(pixels)
    return keep
