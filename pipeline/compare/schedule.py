"""The cells of a comparison as Ray tasks: what depends on what, which candidate is chosen, means over seeds."""

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

from ldcvae.training.heap import keep_freed_memory
from ldcvae.variants import AUTOENCODERS, GENERATORS
from pipeline.compare.autoencoders import train_autoencoder
from pipeline.compare.cells import DECODER, Cell, autoencoder_cell, decoder_cell, generator_cell, read_record
from pipeline.compare.decoders import train_decoder
from pipeline.compare.judge import judge_generator
from pipeline.config.errors import PipelineError
from pipeline.judge.figures import Reference
from pipeline.judge.generators import budget_of
from pipeline.remote.failures import failure_kind, failure_reason
from pipeline.remote.hardware import on_shares, require_room, use_cuda
from pipeline.remote.memory import own_memory
from pipeline.remote.progress import Display
from pipeline.store.run import Run

__all__ = ["SELECTOR", "Schedule"]

SELECTOR = "gmm"
"""The generator whose FD on validation images chooses among an autoencoder's candidates."""

_TRIES = 3  # in one comparison, of a cell whose process is lost
_ENDS = {"none": [""], "all": [DECODER], "both": ["", DECODER]}  # of autoencoders' names, by `compare.decoder`

Work = Callable[[Run, Cell, Reference], dict[str, Any]]


def _compute(work: Work, run: Run, cell: Cell, reference: Reference) -> dict[str, Any]:
    """One cell in a process of Ray's; its failure is a result too."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(run.config.compare.cpus_per_cell)
    try:
        return work(run, cell, reference)
    except PipelineError:
        raise
    except Exception as error:
        return _failure(cell, error, own_memory())


def _failure(cell: Cell, error: BaseException, memory: str = "") -> dict[str, Any]:
    """The record of a cell that failed."""
    reason = failure_reason(error, memory)
    return {"cell": cell.job, "failure": reason, "kind": failure_kind(error), "finished": time.time()}


class Schedule:
    """Computes what is missing, in parallel, and remembers every record.

    Args:
        run: of the comparison.
        reference: what all cells are judged by.
        retry_failed: compute again what failed for good, not only what may pass.
    """

    def __init__(self, run: Run, reference: Reference, retry_failed: bool = False):
        import ray

        config = run.config
        self.config, self.folder = config, run.folder
        self.data, self.features = run.data.digest, reference.extractor.sha256
        self.second = reference.second_sha256
        cuda, settings = use_cuda(config.train.device), config.compare
        gpus = settings.gpus_per_cell if settings.gpus_per_cell is not None else float(cuda)
        key = "compare.cpus_per_cell" + (", compare.gpus_per_cell" if gpus else "")
        require_room(config, key, 1, "cell", {"CPU": settings.cpus_per_cell, "GPU": gpus})
        # A process for each cell: what the one before has left would count as this one's peak memory.
        alone = ray.remote(max_calls=1)(_compute)
        # Ray itself would start a cell that is killed for want of memory again without end.
        self.task: Any = alone.options(max_retries=0, num_cpus=settings.cpus_per_cell, num_gpus=gpus)
        own = run.with_config(on_shares(config, settings.gpus_per_cell))
        self.run, self.reference = ray.put(own), ray.put(reference)
        self.display = Display("compare")
        self.total, self.weight = self._work()
        self.records: dict[str, dict[str, Any]] = {}
        self.failed: list[dict[str, str]] = []
        self.retry_failed = retry_failed
        self.kept, self.made = 0, 0.0

    def _weight(self, name: str) -> float:
        """About how long a cell takes, in units of a fit in closed form: for the time left."""
        if name in AUTOENCODERS:
            return 15.0 * (1.0 + AUTOENCODERS[name].passes(self.config.train.particles))
        return 10.0 if GENERATORS[name].passes(budget_of(self.config), self.config.model.latent_dim) else 1.0

    def _work(self) -> tuple[int, float]:
        """(cells, their weight)."""
        settings, weights = self.config.compare, []
        for name, candidates in settings.autoencoders.items():
            weights += [self._weight(name)] * (max(1, len(candidates)) + settings.seeds - 1)
            weights += [self._weight(SELECTOR)] * (len(candidates) if len(candidates) > 1 else 0)
            for end in _ENDS[settings.decoder]:
                weights += [self._weight(name)] * (settings.seeds if end else 0)
                for generator in settings.generators_of(name):
                    cells = max(1, len(settings.generators[generator])) + settings.seeds - 1
                    # The mixture that an autoencoder was chosen by is there already.
                    cells -= not end and generator == SELECTOR and len(candidates) > 1
                    weights += [self._weight(generator)] * cells
        return len(weights), sum(weights)

    def _kept(self, cell: Cell) -> dict[str, Any] | None:
        """The cell's record on storage, unless it is to be computed anew."""
        if not self.folder.exists(cell.record):
            return None
        record = read_record(self.folder, cell.record)
        again = "failure" in record and (self.retry_failed or record["kind"] == "transient")
        return None if again else record

    async def _anew(self, work: Work, cell: Cell) -> dict[str, Any]:
        """The cell's record from a process of its own, from another one when the process is lost."""
        import ray

        for left in reversed(range(_TRIES)):
            try:
                record: dict[str, Any] = await self.task.remote(work, self.run, cell, self.reference)
                break
            except ray.exceptions.RayTaskError as error:
                raise error.cause if isinstance(error.cause, PipelineError) else error from None
            except ray.exceptions.RayError as error:
                if (kept := self._kept(cell)) is not None and "failure" not in kept:
                    return kept  # lost after its last word
                record = _failure(cell, error)
                record["failure"] += f", {_TRIES} times" if not left else ""
        if "failure" in record:  # what could be computed, its process has written
            self.folder.write_json(cell.record, record)
        return record

    async def compute(self, work: Work, cell: Cell) -> dict[str, Any]:
        """The cell's record, from memory, from storage or anew."""
        if cell.key in self.records:
            return self.records[cell.key]
        if (record := self._kept(cell)) is not None:
            self.kept += 1
        else:
            record = await self._anew(work, cell)
        if "failure" in record:
            self.failed.append({"cell": cell.name, "kind": record["kind"], "reason": record["failure"]})
        self.records[cell.key] = record
        self.made += self._weight(cell.job["name"])
        figure = record.get("failure") or f"FD {record['figures']['fd']:.4g}"
        note = f"{cell.name}: {figure}, {len(self.records)} of {self.total} cells"
        self.display.update({"phase": "cells", "done": min(1.0, self.made / self.weight)}, note)
        return record

    def autoencoder(self, name: str, setting: float | None, seed: int) -> Cell:
        """The cell of an autoencoder; `seed` counts from 0."""
        return autoencoder_cell(self.config, self.data, self.features, name, setting, self.config.seed + seed)

    async def choose(self, name: str) -> tuple[float | None, list[dict[str, Any]]]:
        """The best candidate of an autoencoder, with all candidates' validation FD."""
        candidates = self.config.compare.autoencoders[name]
        if len(candidates) < 2:
            return (candidates[0] if candidates else None), []

        async def judged(setting: float) -> dict[str, Any]:
            cell = self.autoencoder(name, setting, 0)
            record = await self.compute(train_autoencoder, cell)
            if "failure" not in record:
                record = await self.compute(
                    judge_generator, generator_cell(self.config, cell, SELECTOR, None, self.second)
                )
            return {"setting": setting, "fd": record.get("selection")}

        return _best(await asyncio.gather(*map(judged, candidates)))

    async def generator(self, name: str, parents: list[Cell]) -> dict[str, Any]:
        """A generator on the trained autoencoders of all seeds: its candidates on the first, the best on the rest."""
        candidates = self.config.compare.generators[name]
        chosen: float | None = candidates[0] if candidates else None
        table: list[dict[str, Any]] = []
        if len(candidates) > 1:
            cells = [generator_cell(self.config, parents[0], name, setting, self.second) for setting in candidates]
            records = await asyncio.gather(*(self.compute(judge_generator, cell) for cell in cells))
            chosen, table = _best(
                [{"setting": s, "fd": r.get("selection")} for s, r in zip(candidates, records, strict=True)]
            )
            if chosen is None:
                return _failed(cells, records) or {"failure": "no candidate could be judged"}
        cells = [generator_cell(self.config, parent, name, chosen, self.second) for parent in parents]
        records = await asyncio.gather(*(self.compute(judge_generator, cell) for cell in cells))
        if failed := _failed(cells, records):
            return failed
        own = {"setting": chosen, "candidates": table, "grid": f"{cells[0].folder}/grid.png"}
        # On validation images: what decides among generators, where one has to be named.
        selected = [record["selection"] for record in records if record.get("selection") is not None]
        own["selection"] = statistics.fmean(selected) if selected else None
        return own | _over_seeds(records)

    async def rows(self, name: str, decoder: bool = False) -> dict[str, Any]:
        """Everything about one autoencoder, or about the same with its decoder trained on."""
        setting, table = await self.choose(name)
        if setting is None and table:
            return {"failure": "no candidate could be trained"}
        cells = [self.autoencoder(name, setting, seed) for seed in range(self.config.compare.seeds)]
        records = await asyncio.gather(*(self.compute(train_autoencoder, cell) for cell in cells))
        if failed := _failed(cells, records):
            return failed
        if decoder:
            cells = [decoder_cell(self.config, cell) for cell in cells]
            records = await asyncio.gather(*(self.compute(train_decoder, cell) for cell in cells))
            if failed := _failed(cells, records):
                return failed
        names = self.config.compare.generators_of(name)
        found = await asyncio.gather(*(self.generator(generator, cells) for generator in names))
        own = {"setting": setting, "candidates": table} | _over_seeds(records)
        return {"autoencoder": own, "generators": dict(zip(names, found, strict=True))}

    async def all(self) -> dict[str, dict[str, Any]]:
        """Everything, by autoencoder; with `DECODER` at the end of its name where its decoder was trained on."""
        names = list(self.config.compare.autoencoders)
        found: dict[str, dict[str, Any]] = {}
        for end in _ENDS[self.config.compare.decoder]:  # one after the other: the second stands on cells of the first
            rows = await asyncio.gather(*(self.rows(name, bool(end)) for name in names))
            found |= {f"{name}{end}": row for name, row in zip(names, rows, strict=True)}
        return found


def _failed(cells: Sequence[Cell], records: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Why a row has no figures: the first failure of its cells; empty if there is none."""
    for cell, record in zip(cells, records, strict=True):
        if "failure" in record:
            return {"failure": record["failure"], "cell": cell.name, "kind": record["kind"]}
    return {}


def _best(candidates: list[dict[str, Any]]) -> tuple[float | None, list[dict[str, Any]]]:
    whole = [candidate for candidate in candidates if candidate["fd"] is not None]
    best = min(whole, key=lambda candidate: candidate["fd"], default=None)
    return (best["setting"] if best is not None else None), candidates


def _over_seeds(records: list[dict[str, Any]]) -> dict[str, Any]:
    values = {name: [record["figures"][name] for record in records] for name in records[0]["figures"]}
    whole = {name: None not in series for name, series in values.items()}
    return {
        "figures": {name: statistics.fmean(series) if whole[name] else None for name, series in values.items()},
        "spread": {
            name: statistics.stdev(series) if whole[name] and len(series) > 1 else (0.0 if whole[name] else None)
            for name, series in values.items()
        },
        "values": values,
    }
