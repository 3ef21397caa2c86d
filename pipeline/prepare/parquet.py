"""Parquet files of images: our own shards, and encoded images as on the Hugging Face hub."""

import io
import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config.errors import MissingFileError, PipelineError
from pipeline.config.sections import DataConfig
from pipeline.prepare.decode import Form, decode_or_reason, fit_one, progress
from pipeline.prepare.gather import Collector
from pipeline.prepare.raw import RawImages, classes_of, split_of_name
from pipeline.store.folder import Folder

__all__ = ["load_parquet"]

_BATCH = 1000


def load_parquet(data: DataConfig, folder: Folder, names: Sequence[str]) -> RawImages:
    """Parquet files with a column `image` (or `img`) and optionally `label` and `split`.

    Images are our own fixed-size pixels (shape in the schema's metadata), or encoded as an image file is: binary, or
    Hugging Face's struct of bytes and path. Without a column `split`, files named `train-*`, `validation-*` and
    `test-*` are the splits, as on the Hugging Face hub.

    Raises:
        PipelineError: naming a file that is damaged or has no such column.
    """
    collector = Collector(data.on_bad_image, folder.url)
    values: list[int | str | None] = []
    splits: list[str] = []
    class_names: list[str] | None = None
    by_name = any(_split_of_file(name) == "train" for name in names)
    for name in names:
        where = posixpath.join(folder.url, name)
        try:
            file = pq.ParquetFile(io.BytesIO(folder.read(name)))
            class_names = class_names or _class_names(folder, file.schema_arrow)
            rows = progress(_rows(file, where), file.metadata.num_rows, name)
            for number, (image, label, split) in enumerate(rows):
                named = (_split_of_file(name) if by_name else "train") if split is None else split_of_name(str(split))
                if named is None:
                    raise PipelineError(f"{where} row {number}: split is {split!r}, not train, validation or test")
                splits.append(named)
                values.append(label)
                pixels = _pixels(image, data, f"{where} row {number}")
                if isinstance(pixels, str):
                    collector.reject(f"{name} row {number}", pixels)
                else:
                    collector.add(len(splits) - 1, f"{name} row {number}", pixels)
        except pa.ArrowMemoryError as error:
            raise PipelineError(f"{where}: there is not enough memory to read it ({error})") from None
        except pa.ArrowException as error:
            raise PipelineError(f"{where} is not readable Parquet: {error}") from None
    images, kept = collector.finish()
    try:
        labels, classes = classes_of([values[index] for index in kept], class_names)
    except (ValueError, TypeError) as error:
        raise PipelineError(f"{folder.url}: column label: {error}") from None
    return RawImages(images, labels, np.array(splits)[kept], classes, tuple(collector.skipped))


def _split_of_file(name: str) -> str | None:
    return split_of_name(re.split(r"[-_.]", posixpath.basename(name))[0])


def _class_names(folder: Folder, schema: pa.Schema) -> list[str] | None:
    """Names of integer labels, from Hugging Face's features or from the manifest beside our own shards."""
    metadata = schema.metadata or {}
    try:
        if b"huggingface" in metadata:
            return json.loads(metadata[b"huggingface"])["info"]["features"]["label"]["names"]
        if b"shape" in metadata:
            return json.loads(folder.read("manifest.json"))["info"]["classes"] or None
    except (MissingFileError, ValueError, KeyError, TypeError):
        pass  # optional on both sides; the labels' own values are the names then
    return None


def _pixels(image: bytes | np.ndarray | None, data: DataConfig, where: str) -> np.ndarray | str:
    """Pixels, or the reason why there are none."""
    if image is None:
        return "the row holds no image bytes"
    if isinstance(image, bytes):
        return decode_or_reason(image, Form.of(data), where)
    return fit_one(image, Form.of(data))


def _rows(file: pq.ParquetFile, where: str) -> Iterator[tuple[bytes | np.ndarray | None, Any, str | None]]:
    """(encoded bytes or (C, H, W) pixels, label, split) of every row."""
    schema = file.schema_arrow
    column = next((name for name in ("image", "img") if name in schema.names), None)
    if column is None:
        raise PipelineError(f"{where} has no column image; its columns: {', '.join(schema.names)}")
    kind = schema.field(column).type
    shape = None
    if pa.types.is_fixed_size_binary(kind):
        shape = [int(side) for side in re.findall(rb"\d+", (schema.metadata or {}).get(b"shape", b""))]
        if len(shape) != 3 or shape[0] not in (1, 3) or shape[0] * shape[1] * shape[2] != kind.byte_width:
            raise PipelineError(f"{where}: images of {kind.byte_width} bytes, but the metadata's shape is {shape}")
    elif pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        pass
    elif not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise PipelineError(f"{where}: column {column} is {kind}, not bytes of encoded images or struct<bytes, path>")
    if "label" in schema.names:
        label_kind = schema.field("label").type
        label_kind = label_kind.value_type if pa.types.is_dictionary(label_kind) else label_kind
        if not any(
            check(label_kind) for check in (pa.types.is_integer, pa.types.is_string, pa.types.is_large_string)
        ):
            raise PipelineError(f"{where}: column label is {label_kind}, not integers or strings")
    wanted = [column, *(name for name in ("label", "split") if name in schema.names)]
    for batch in file.iter_batches(_BATCH, columns=wanted):
        for row in batch.to_pylist():
            image = row[column]
            if isinstance(image, dict):
                image = image["bytes"]
            elif shape is not None and image is not None:
                image = np.frombuffer(image, np.uint8).reshape(shape)
            label = row.get("label")
            yield image, None if label == -1 else label, row.get("split")
