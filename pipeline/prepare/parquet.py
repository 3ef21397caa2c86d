"""Parquet files of images: our own shards, and encoded images as on the Hugging Face hub."""

import json
import posixpath
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import groupby
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.config.errors import MissingFileError, PipelineError
from pipeline.config.sections import DataConfig
from pipeline.prepare.decode import Form, decode_or_reason, fit_one
from pipeline.prepare.indexed import IndexedImages, read_ahead
from pipeline.prepare.raw import split_of_name
from pipeline.store.folder import Folder

__all__ = ["PARALLEL_BYTES", "index_parquet"]

PARALLEL_BYTES = 64 * 2**20
"""Of images as they lie in the files, from which on starting Ray pays."""

_BATCH = 100  # rows that are held decoded from Parquet's encoding
_BUFFER = 4 * 2**20  # bytes read at a time: a row group need not fit in memory


class _Group(NamedTuple):
    """A row group: its file, its number, and the position in the file of its first row."""

    name: str
    number: int
    first: int


class _File(NamedTuple):
    """What is known of a file without its images."""

    rows: list[int]  # of its row groups
    size: int  # bytes of its images
    labels: pa.DictionaryArray
    splits: pa.DictionaryArray
    metadata: dict[bytes, bytes]


def index_parquet(data: DataConfig, folder: Folder, names: Sequence[str]) -> IndexedImages:
    """Parquet files with a column `image` (or `img`) and optionally `label` and `split`.

    Images are our own fixed-size pixels (shape in the schema's metadata), or encoded as an image file is: binary, or
    Hugging Face's struct of bytes and path. Without a column `split`, files named `train-*`, `validation-*` and
    `test-*` are the splits, as on the Hugging Face hub.

    Raises:
        PipelineError: naming a file that is damaged or has no such column.
    """
    by_name = any(_split_of_file(name) == "train" for name in names)
    values: dict[int | str, int] = {}
    groups, rows, codes, splits = [], [], [], []
    files = list(read_ahead(partial(_look, folder), names))
    for name, file in zip(names, files, strict=True):
        firsts = np.cumsum([0, *file.rows])
        groups += [_Group(name, number, int(firsts[number])) for number in range(len(file.rows))]
        rows += file.rows
        known = [None if label == -1 else label for label in file.labels.dictionary.to_pylist()]
        codes.append(_take([-1 if x is None else values.setdefault(x, len(values)) for x in known], -1, file.labels))
        unsaid = (_split_of_file(name) if by_name else "train") if len(file.splits) else None
        named = [split_of_name(str(split)) for split in file.splits.dictionary.to_pylist()]
        splits.append(_take(np.array(named, object), unsaid, file.splits))
        if None in splits[-1]:
            row = splits[-1].tolist().index(None)
            split = file.splits[row].as_py()
            raise PipelineError(f"{folder.url}/{name} row {row}: split is {split!r}, not train, validation or test")
    return IndexedImages(
        groups,
        np.array(rows, np.int64),
        partial(_read, folder=folder, form=Form.of(data)),
        np.concatenate(codes).astype(np.int32),
        list(values),
        np.concatenate(splits),
        folder.url,
        sum(file.size for file in files) >= PARALLEL_BYTES,
        _class_names(folder, [file.metadata for file in files]),
    )


def _take(table: Any, otherwise: Any, values: pa.DictionaryArray) -> np.ndarray:
    """An entry of `table` for every value, by its position in the dictionary; `otherwise` for nulls."""
    kind = object if isinstance(otherwise, str | None) else np.int32
    return np.array([*table, otherwise], kind)[values.indices.fill_null(-1).to_numpy(zero_copy_only=False)]


def _split_of_file(name: str) -> str | None:
    return split_of_name(re.split(r"[-_.]", posixpath.basename(name))[0])


def _class_names(folder: Folder, metadata: Sequence[dict[bytes, bytes]]) -> list[str] | None:
    """Names of integer labels, from Hugging Face's features or from the manifest beside our own shards.

    Both are optional: the labels' own values are the names then.
    """
    for entry in metadata:
        try:
            if names := json.loads(entry[b"huggingface"])["info"]["features"]["label"]["names"]:
                return names
        except (ValueError, KeyError, TypeError):
            continue
    if any(b"shape" in entry for entry in metadata):
        try:
            return json.loads(folder.read("manifest.json"))["info"]["classes"] or None
        except (MissingFileError, ValueError, KeyError, TypeError):
            pass
    return None


@contextmanager
def _opened(folder: Folder, name: str) -> Iterator[pq.ParquetFile]:
    """A file to read from, whose damage is one clear error."""
    where = f"{folder.url}/{name}"
    with folder.open(name) as handle:
        try:
            yield pq.ParquetFile(handle, buffer_size=_BUFFER)
        except pa.ArrowMemoryError as error:
            raise PipelineError(f"{where}: there is not enough memory to read it ({error})") from None
        except (pa.ArrowException, OSError) as error:
            if isinstance(error, OSError) and error.errno is not None:
                raise  # the storage's, not Parquet's
            raise PipelineError(f"{where} is not readable Parquet: {error}") from None


def _look(folder: Folder, name: str) -> _File:
    """Everything but the images."""
    where = f"{folder.url}/{name}"
    with _opened(folder, name) as file:
        column, _ = _image_column(file, where)
        about, schema = file.metadata, file.schema_arrow
        groups = [about.row_group(number) for number in range(about.num_row_groups)]
        size = 0
        for group in groups:
            chunks = (group.column(index) for index in range(group.num_columns))
            size += sum(x.total_uncompressed_size for x in chunks if x.path_in_schema.split(".")[0] == column)
        table = file.read(columns=[name for name in ("label", "split") if name in schema.names])
        labels, splits = (
            table[wanted].combine_chunks() if wanted in schema.names else pa.nulls(about.num_rows, pa.string())
            for wanted in ("label", "split")
        )
        return _File(
            [group.num_rows for group in groups], size, _distinct(labels), _distinct(splits), schema.metadata or {}
        )


def _distinct(column: pa.Array) -> pa.DictionaryArray:
    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    return column.dictionary_encode()


def _image_column(file: pq.ParquetFile, where: str) -> tuple[str, list[int] | None]:
    """Name of the column of images, and their (C, H, W) where they are pixels and not encoded."""
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
    return column, shape


def _read(groups: Sequence[_Group], folder: Folder, form: Form) -> Iterator[tuple[str, np.ndarray | str]]:
    """The images of consecutive row groups."""
    for name, of_file in groupby(groups, lambda group: group.name):
        wanted = list(of_file)
        where = f"{folder.url}/{name}"
        row = wanted[0].first
        with _opened(folder, name) as file:
            column, shape = _image_column(file, where)
            numbers = [group.number for group in wanted]
            for batch in file.iter_batches(_BATCH, row_groups=numbers, columns=[column], use_threads=False):
                images = batch.column(0)
                if pa.types.is_struct(images.type):
                    images = pc.struct_field(images, "bytes")
                for image in images.to_pylist():
                    yield f"{name} row {row}", _pixels(image, shape, form, f"{where} row {row}")
                    row += 1


def _pixels(image: bytes | None, shape: list[int] | None, form: Form, where: str) -> np.ndarray | str:
    if image is None:
        return "the row holds no image bytes"
    if shape is None:
        return decode_or_reason(image, form, where)
    return fit_one(np.frombuffer(image, np.uint8).reshape(shape), form)
