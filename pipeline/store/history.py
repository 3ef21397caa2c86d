"""A training run's figures on storage: `metrics.jsonl` and TensorBoard events, two views of one history.

The history travels in the checkpoint and both files are rewritten from it, so that after any kill and restart they
have neither gaps nor duplicates.
"""

import io
import json
from typing import Any

from pipeline.store.folder import Folder
from pipeline.store.schema import Line, parse_as

__all__ = ["HISTORY_FILES", "parse_history", "read_history", "write_history"]

HISTORY_FILES = ("train/metrics.jsonl", "train/tensorboard/events.out.tfevents.0.ldcvae")

_AGAIN = "run `python -m pipeline.train --force` with the same config"


def write_history(folder: Folder, history: list[dict[str, Any]]) -> None:
    """Write both files.

    Args:
        folder: the run's.
        history: records with `phase`, `step`, `time` and any figures.
    """
    # Here, as importing it takes a second or more, and most processes that read a history write none.
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.record_writer import RecordWriter

    folder.write(HISTORY_FILES[0], "".join(json.dumps(record) + "\n" for record in history).encode())
    buffer = io.BytesIO()
    writer = RecordWriter(buffer)
    writer.write(Event(wall_time=0.0, file_version="brain.Event:2").SerializeToString())
    for record in history:
        values = [
            Summary.Value(tag=f"{record['phase']}/{name}", simple_value=value)
            for name, value in record.items()
            if name not in ("phase", "step", "time") and isinstance(value, int | float)
        ]
        event = Event(wall_time=record.get("time", 0.0), step=record["step"], summary=Summary(value=values))
        writer.write(event.SerializeToString())
    folder.write(HISTORY_FILES[1], buffer.getvalue())


def read_history(folder: Folder) -> list[dict[str, Any]]:
    """The records of `train/metrics.jsonl`.

    Raises:
        PipelineError: if it is not there.
    """
    return parse_history(folder.read(HISTORY_FILES[0]), f"{folder.url}/{HISTORY_FILES[0]}")


def parse_history(content: bytes, name: str = HISTORY_FILES[0]) -> list[dict[str, Any]]:
    """The records of that file's content.

    Raises:
        PipelineError: naming a line that is no record.
    """
    return [
        parse_as(Line, line, f"{name}, line {number}", _AGAIN) for number, line in enumerate(content.splitlines(), 1)
    ]
