"""Encoded images to arrays of one shape.

How an image is read: its EXIF orientation is applied; transparent pixels (RGBA, LA, palettes with transparency)
are laid over white; palettes and CMYK become RGB; 16-bit grey keeps its upper 8 bits; of an animation the first
frame counts, of a TIFF with several pages the first. An image is grey when its mode is, whatever its pixels are. Then
the largest centred square, or the one of `crop` pixels, is resized (bicubic, antialiased) to `image_size`. Pillow's
limit against decompression bombs stays on.
"""

import io
import math
import sys
import warnings
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError, features
from tqdm import tqdm

from pipeline.config.errors import PipelineError
from pipeline.config.sections import DataConfig
from pipeline.prepare.gather import Collector

__all__ = [
    "ENDINGS",
    "BadImage",
    "Form",
    "decode",
    "decode_or_reason",
    "fit",
    "fit_one",
    "progress",
    "to_array",
]

# Pillow's name of each format that is read -> the endings of its files. WebP is a library that Pillow may lack.
_FORMATS = {
    "PNG": (".png",),
    "JPEG": (".jpg", ".jpeg"),
    **({"WEBP": (".webp",)} if features.check("webp") else {}),
    "BMP": (".bmp",),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
}

ENDINGS = tuple(ending for endings in _FORMATS.values() for ending in endings)
"""Of the files that are read as images, in lower case."""

T = TypeVar("T")


class Form(NamedTuple):
    """What images are made into.

    Attributes:
        image_size: S, pixels of each side; None keeps the size.
        channels: 1 or 3; None keeps grey grey and makes the rest RGB.
        crop: pixels of each side of the centred square that is kept before resizing; None: the largest one.

    Example:
        >>> Form(image_size=64, crop=140).keeps((3, 64, 64)), Form(channels=1).keeps((1, 8, 6))
        (False, True)
    """

    image_size: int | None = None
    channels: int | None = None
    crop: int | None = None

    @classmethod
    def of(cls, data: DataConfig) -> "Form":
        """The form that the `data` section asks for."""
        return cls(data.image_size, data.channels, data.crop)

    def keeps(self, shape: Sequence[int]) -> bool:
        """Whether an image of `shape` (C, H, W) stays as it is."""
        source, height, width = shape
        wanted = (None, height) if height == width else (None,)
        return self.image_size in wanted and self.channels in (None, source) and self.crop in wanted


AS_IT_IS = Form()


class BadImage(Exception):
    """Bytes that are no readable image; the message is the reason."""


def progress(items: Iterable[T], total: int, what: str, unit: str = "images") -> Iterator[T]:
    """`items` with a bar and the time left on stderr: live on a terminal, a line every half minute in a log."""
    live = sys.stderr.isatty()
    bar = tqdm(
        items,
        desc=what,
        total=total,
        unit=f" {unit}",
        mininterval=0.2 if live else 30,
        delay=2 if live else 10,
        leave=False,
        dynamic_ncols=live,
    )
    yield from bar


def to_array(image: Image.Image, form: Form = AS_IT_IS) -> np.ndarray:
    """Pixels of an image.

    Args:
        image: of any mode.
        form: what it is to become.

    Returns:
        (C, H, W) uint8.

    Example:
        >>> to_array(Image.new("RGB", (40, 30)), Form(image_size=8)).shape
        (3, 8, 8)
    """
    grey = image.mode in ("1", "L", "LA", "La") or image.mode.startswith("I")
    if image.mode.startswith("I"):  # Pillow's own conversion clips 16 bits to white
        image = Image.fromarray((np.clip(np.asarray(image), 0, 65535) >> 8).astype(np.uint8))
    elif image.has_transparency_data:
        opaque = Image.new("RGBA", image.size, "white")
        image = Image.alpha_composite(opaque, image.convert("RGBA"))
    image = image.convert({1: "L", 3: "RGB", None: "L" if grey else "RGB"}[form.channels])
    side = int(min(*image.size, form.crop or math.inf))
    image_size = side if form.image_size is None and form.crop else form.image_size
    cropped = side < min(image.size)
    if image_size is not None and (cropped or image.size != (image_size, image_size)):
        # Cropping first keeps a very long image from becoming a huge one. The corner is a whole pixel, so an image
        # that only needs cropping is not blurred.
        left, top = (image.width - side) // 2, (image.height - side) // 2
        box = (left, top, left + side, top + side)
        image = image.resize((image_size, image_size), Image.Resampling.BICUBIC, box=box)
    pixels = np.asarray(image)
    return pixels[None] if pixels.ndim == 2 else np.ascontiguousarray(pixels.transpose(2, 0, 1))


def decode(content: bytes, form: Form = AS_IT_IS) -> np.ndarray:
    """Pixels of an encoded image, of a format that `ENDINGS` has: (C, H, W) uint8, see `to_array`.

    Raises:
        BadImage: with the reason.
        MemoryError: which says nothing of the image.

    Example:
        >>> decode(b"hello")
        Traceback (most recent call last):
        pipeline.prepare.decode.BadImage: not a PNG, JPEG, WEBP, BMP, TIFF or GIF image (5 bytes)
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(content), formats=tuple(_FORMATS)) as image:
                if image.format == "TIFF" and image.mode in ("F", "I"):
                    least, most = image.getextrema()
                    kind = "floating-point" if image.mode == "F" else "32-bit"
                    raise BadImage(
                        f"{kind} pixels from {least:g} to {most:g} do not say where white is; save it with 8 or 16 "
                        "bits a channel"
                    )
                return to_array(ImageOps.exif_transpose(image), form)
    except UnidentifiedImageError:
        *others, last = _FORMATS
        raise BadImage(f"not a {', '.join(others)} or {last} image ({len(content):,} bytes)") from None
    except MemoryError:
        raise
    except Exception as error:  # damaged bytes make the decoders raise anything from SyntaxError to struct.error
        raise BadImage(str(error) or type(error).__name__) from None


def fit(images: np.ndarray, form: Form) -> np.ndarray:
    """Resize, crop and convert images that are already arrays.

    Args:
        images: (N, C, H, W) uint8.
        form: what they are to become.

    Returns:
        (N, C, S, S) uint8; `images` itself when nothing is to do.

    Example:
        >>> fit(np.zeros((2, 1, 8, 8), np.uint8), Form(image_size=16, channels=3)).shape
        (2, 3, 16, 16)
    """
    if form.keeps(images.shape[1:]):
        return images
    collector = Collector("fail", "the source")
    for index, image in enumerate(progress(images, len(images), "resize")):
        collector.add(index, str(index), fit_one(image, form))
    return collector.finish()[0]


def fit_one(image: np.ndarray, form: Form) -> np.ndarray:
    """`fit` for one image: (C, H, W) uint8."""
    if form.keeps(image.shape):
        return image
    pixels = image[0] if len(image) == 1 else image.transpose(1, 2, 0)
    return to_array(Image.fromarray(pixels), form)


def decode_or_reason(content: bytes, form: Form, where: str) -> np.ndarray | str:
    """Pixels of an encoded image, or the reason why there are none.

    Raises:
        PipelineError: naming the image, `where`, if there is not enough memory to decode it.

    Example:
        >>> decode_or_reason(b"hello", AS_IT_IS, "a.png")
        'not a PNG, JPEG, WEBP, BMP, TIFF or GIF image (5 bytes)'
    """
    try:
        return decode(content, form)
    except BadImage as error:
        return str(error)
    except MemoryError as error:
        raise PipelineError(
            f"{where}: there is not enough memory to decode it ({str(error) or 'no details'})"
        ) from None
