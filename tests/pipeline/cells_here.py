"""Cells of a comparison in the test's own process, where `pipeline.compare` gives each a Ray task."""

from contextlib import nullcontext
from types import SimpleNamespace

from pipeline.compare import stage
from pipeline.compare.schedule import Schedule, _compute


class CellsHere(Schedule):
    """Computes cells in this process, without Ray."""

    def __init__(self, run, reference, retry_failed=False):
        self.config, self.folder, self.given = run.config, run.folder, (run, reference)
        self.data, self.features = run.data.digest, reference.extractor.sha256
        self.second = reference.second_sha256
        self.display = SimpleNamespace(update=lambda *_: None, close=lambda: None)
        self.total, self.weight = self._work()
        self.records, self.failed, self.retry_failed, self.kept, self.made = {}, [], retry_failed, 0, 0.0

    async def _anew(self, work, cell):
        record = _compute(work, self.given[0], cell, self.given[1])
        if "failure" in record:
            self.folder.write_json(cell.record, record)
        return record


def compute_here(monkeypatch):
    """Have `pipeline.compare` itself do without Ray."""
    monkeypatch.setattr(stage, "Schedule", CellsHere)
    monkeypatch.setattr(stage, "connect", lambda _: nullcontext())
