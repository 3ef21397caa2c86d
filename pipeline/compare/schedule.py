"""The cells of a comparison as Ray tasks: what depends on what, which candidate is chosen, means over seeds."""

import asyncio
import statistics
from collections.abc import Callable
from typing import Any

from ldcvae.training.heap import keep_freed_memory
from ldcvae.variants import AUTOENCODERS, GENERATORS
from pipeline.compare.autoencoders import train_autoencoder
from pipeline.compare.cells import Cell, autoencoder_cell, generator_cell
from pipeline.compare.judge import judge_generator
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.judge.figures import Reference
from pipeline.judge.generators import budget_of
from pipeline.remote.connect import on_cluster, use_cuda
from pipeline.remote.failures import failure_reason
from pipeline.remote.progress import Display
from pipeline.store.run import Run

__all__ = ["SELECTOR", "Schedule"]

SELECTOR = "gmm"
"""The generator whose FD on validation images chooses among an autoencoder's candidates."""


Work = Callable[[Run, Cell, Reference], dict[str, Any]]


def _compute(work: Work, run: Run, cell: Cell, reference: Reference) -> dict[str, Any]:
    """One cell in a process of Ray's; a failure that would come again is a result too."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(run.config.compare.cpus_per_cell)
    try:
        return work(run, cell, reference)
    except PipelineError:
        raise
    except Exception as error:
        return {"cell": cell.job, "failure": failure_reason(error)}


class Schedule:
    """Computes what is missing, in parallel, and remembers every record.

    Args:
        run: of the comparison.
        reference: what all cells are judged by.
    """

    def __init__(self, run: Run, reference: Reference):
        import ray

        config = run.config
        self.config, self.folder = config, run.folder
        self.data, self.features = run.data.digest, reference.extractor.sha256
        cuda, settings = use_cuda(config.train.device), config.compare
        gpus = settings.gpus_per_cell if settings.gpus_per_cell is not None else float(cuda)
        have = ray.cluster_resources()
        if not on_cluster(config):
            for what, wanted, key in (
                ("CPU", settings.cpus_per_cell, "compare.cpus_per_cell"),
                ("GPU", gpus, "compare.gpus_per_cell"),
            ):
                if wanted > have.get(what, 0):
                    raise ConfigError(f"{key}: {wanted:g} {what}s for a cell, Ray has {have.get(what, 0):g}")
        # A process for each cell: what the one before has left would count as this one's peak memory.
        own = ray.remote(max_calls=1)(_compute)
        self.task: Any = own.options(num_cpus=settings.cpus_per_cell, num_gpus=gpus)
        self.run, self.reference = ray.put(run), ray.put(reference)
        self.display = Display("compare")
        self.total, self.weight = self._work()
        self.records: dict[str, dict[str, Any]] = {}
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
            for generator in settings.generators_of(name):
                cells = max(1, len(settings.generators[generator])) + settings.seeds - 1
                # The mixture that an autoencoder was chosen by is there already.
                cells -= generator == SELECTOR and len(candidates) > 1
                weights += [self._weight(generator)] * cells
        return len(weights), sum(weights)

    async def compute(self, work: Work, cell: Cell) -> dict[str, Any]:
        """The cell's record, from memory, from storage or anew."""
        import ray

        if cell.key in self.records:
            return self.records[cell.key]
        if self.folder.exists(cell.record):
            record = self.folder.read_json(cell.record)
            self.kept += 1
        else:
            try:
                record = await self.task.remote(work, self.run, cell, self.reference)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                record = {"cell": cell.job, "failure": failure_reason(error)}
        self.records[cell.key] = record
        name, setting, seed = (cell.job[key] for key in ("name", "setting", "seed"))
        self.made += self._weight(name)
        figure = record.get("failure") or f"FD {record['figures']['fd']:.4g}"
        chosen = "" if setting is None else f" {setting:g}"
        note = f"{name}{chosen}, seed {seed}: {figure}, {len(self.records)} of {self.total} cells"
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
                record = await self.compute(judge_generator, generator_cell(self.config, cell, SELECTOR, None))
            return {"setting": setting, "fd": record.get("selection")}

        return _best(await asyncio.gather(*map(judged, candidates)))

    async def generator(self, name: str, parents: list[Cell]) -> dict[str, Any]:
        """A generator on the trained autoencoders of all seeds: its candidates on the first, the best on the rest."""
        candidates = self.config.compare.generators[name]
        chosen: float | None = candidates[0] if candidates else None
        table: list[dict[str, Any]] = []
        if len(candidates) > 1:
            cells = [generator_cell(self.config, parents[0], name, setting) for setting in candidates]
            records = await asyncio.gather(*(self.compute(judge_generator, cell) for cell in cells))
            chosen, table = _best(
                [{"setting": s, "fd": r.get("selection")} for s, r in zip(candidates, records, strict=True)]
            )
            if chosen is None:
                return {"failure": records[0]["failure"]}
        cells = [generator_cell(self.config, parent, name, chosen) for parent in parents]
        records = await asyncio.gather(*(self.compute(judge_generator, cell) for cell in cells))
        if failed := [record["failure"] for record in records if "failure" in record]:
            return {"failure": failed[0]}
        return {"setting": chosen, "candidates": table, "grid": f"{cells[0].folder}/grid.png"} | _over_seeds(records)

    async def rows(self, name: str) -> dict[str, Any]:
        """Everything about one autoencoder."""
        setting, table = await self.choose(name)
        if setting is None and table:
            return {"failure": "no candidate could be trained"}
        cells = [self.autoencoder(name, setting, seed) for seed in range(self.config.compare.seeds)]
        records = await asyncio.gather(*(self.compute(train_autoencoder, cell) for cell in cells))
        if failed := [record["failure"] for record in records if "failure" in record]:
            return {"failure": failed[0]}
        names = self.config.compare.generators_of(name)
        found = await asyncio.gather(*(self.generator(generator, cells) for generator in names))
        own = {"setting": setting, "candidates": table} | _over_seeds(records)
        return {"autoencoder": own, "generators": dict(zip(names, found, strict=True))}

    async def all(self) -> dict[str, dict[str, Any]]:
        """Everything, by autoencoder."""
        names = list(self.config.compare.autoencoders)
        return dict(zip(names, await asyncio.gather(*map(self.rows, names)), strict=True))


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
