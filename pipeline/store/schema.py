"""What the JSON files of a run hold, checked when they are read: a hash says that a file is whole, not what it is."""

import json
from functools import cache
from typing import Annotated, Any, NotRequired, TypeVar

from pydantic import AllowInfNan, ConfigDict, Field, TypeAdapter, ValidationError, with_config
from typing_extensions import TypedDict

from pipeline.config.errors import PipelineError

__all__ = ["INFO", "Classifier", "DataInfo", "Holder", "Line", "Metrics", "Record", "RowGroups", "parse_as"]

T = TypeVar("T")
_Number = Annotated[float, AllowInfNan(False)] | None
_Count = Annotated[int, Field(ge=0)]
_Figures = dict[str, _Number]
_open = with_config(ConfigDict(extra="allow"))  # later versions may write more


@_open
class DataInfo(TypedDict):
    """`info` of data/manifest.json."""

    source: str
    shape: Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=3, max_length=3)]
    counts: dict[str, _Count]
    classes: list[str]
    label_counts: NotRequired[dict[str, _Count]]


@_open
class _Trial(TypedDict):
    number: NotRequired[int]
    figures: _Figures
    overrides: NotRequired[dict[str, Any]]


class _Trials(TypedDict):
    COMPLETE: _Count
    PRUNED: _Count
    FAIL: _Count


@_open
class TuneInfo(TypedDict):
    """`info` of tune/manifest.json."""

    trials: _Trials
    metrics: list[str]
    pareto: list[int]
    default: _Trial
    best: _Trial
    pictures: dict[str, str]


class _Goal(TypedDict):
    claim: str
    met: bool
    verdict: NotRequired[str]
    detail: str


@_open
class _Failed(TypedDict):
    reason: str
    cell: NotRequired[str | None]
    kind: NotRequired[str | None]


@_open
class CompareInfo(TypedDict):
    """`info` of compare/manifest.json."""

    goals: list[_Goal]
    failures: NotRequired[list[_Failed]]
    failed: NotRequired[list[_Failed]]


INFO: dict[str, Any] = {"data": DataInfo, "tune": TuneInfo, "compare": CompareInfo}
"""Stage -> what its manifest's `info` holds, where somebody reads it."""


@_open
class _Extractor(TypedDict):
    name: str
    figure: str
    sha256: NotRequired[str | None]
    accuracy: NotRequired[_Number]


@_open
class _Row(TypedDict, total=False):
    fd: _Number
    fd_second: _Number
    kid: _Number
    precision: _Number
    recall: _Number
    density: _Number
    coverage: _Number
    mmd2: _Number
    sliced_wasserstein: _Number
    latents_per_s: _Number
    mse: _Number
    spread: _Figures
    values: dict[str, list[_Number]]


@_open
class Metrics(TypedDict):
    """evaluation/metrics.json."""

    split: str
    extractor: _Extractor
    second_extractor: NotRequired[_Extractor]
    num_images: _Count
    draws: _Count
    generators: dict[str, _Row]
    num_reference: NotRequired[_Count]
    device: NotRequired[str | None]
    decoder: NotRequired[dict[str, Any] | None]
    reconstruction: NotRequired[_Row]
    floor: NotRequired[_Row]


@_open
class Classifier(TypedDict):
    """evaluation/classifier.json."""

    made_of: dict[str, Any]
    accuracy: _Number
    sha256: str


@_open
class Record(TypedDict):
    """record.json of a comparison's cell."""

    cell: dict[str, Any]
    failure: NotRequired[str]
    kind: NotRequired[str]
    figures: NotRequired[_Figures]
    selection: NotRequired[_Number]
    files: NotRequired[dict[str, str]]


@_open
class Holder(TypedDict):
    """lock.json."""

    owner: Annotated[str, Field(min_length=1)]
    machine: str
    pid: int
    born: str
    what: str
    since: str
    renewed: Annotated[float, AllowInfNan(False)]


@_open
class Line(TypedDict):
    """A line of train/metrics.jsonl."""

    phase: str
    step: _Count


RowGroups = dict[str, list[tuple[_Count, str]]]
"""data/row_groups/<split>.json: shard -> (rows, hash) of its row groups."""


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)


def parse_as(kind: Any, content: Any, what: str, remedy: str) -> Any:
    """Parsed JSON, if it is what it should be.

    Args:
        kind: a type of this module.
        content: bytes of a JSON file, or what has been parsed already.
        what: the file's name, for the error.
        remedy: what to do, for the error.

    Raises:
        PipelineError: naming file, key, and what is wrong with it.

    Example:
        >>> parse_as(RowGroups, b'{"a.parquet": [[2, "ab"]]}', "groups.json", "prepare again")
        {'a.parquet': [(2, 'ab')]}
        >>> parse_as(Classifier, {"made_of": {}, "accuracy": "high"}, "classifier.json", "evaluate again")
        Traceback (most recent call last):
        pipeline.config.errors.PipelineError: classifier.json is damaged: accuracy: Input should be ...
    """
    try:
        return _adapter(kind).validate_python(json.loads(content) if isinstance(content, bytes) else content)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        value = repr(first["input"])
        shown = value if len(value) <= 60 else f"{value[:60]}…"
        reason = f"{key}: {first['msg']}, got {shown}"
    except (ValueError, RecursionError) as error:
        reason = f"no JSON: {error}"
    raise PipelineError(f"{what} is damaged: {reason}; {remedy}")
