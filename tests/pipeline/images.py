"""Make image files in memory, and load them as a data source."""

import io

from PIL import Image

from pipeline.config.load import parse_config
from pipeline.prepare.sources import find_source


def load(source, path=None, **data):
    """All images of a source, as `pipeline.prepare` gets them."""
    data = {"source": source, **({} if path is None else {"path": str(path)}), **data}
    return find_source(parse_config({"data": data, "storage": "/nowhere"})).load()


def encoded(image, kind="PNG", **options):
    """The bytes of an image file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def save(path, image, **options):
    """An image file of the kind that its name says."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(encoded(image, Image.registered_extensions()[path.suffix.lower()], **options))
