"""Cells of a comparison in the test's own process, where `pipeline.compare` gives each a Ray task."""

from types import SimpleNamespace

from pipeline.compare.schedule import Schedule


class CellsHere(Schedule):
    """Computes cells in this process, without Ray."""

    def __init__(self, run, reference):
        self.config, self.folder, self.given = run.config, run.folder, (run, reference)
        self.data, self.features = run.data.digest, reference.extractor.sha256
        self.display = SimpleNamespace(update=lambda *_: None)
        self.total, self.weight = self._work()
        self.records, self.failed, self.retry_failed, self.kept, self.made = {}, [], False, 0, 0.0

    async def _anew(self, work, cell):
        return work(self.given[0], cell, self.given[1])
