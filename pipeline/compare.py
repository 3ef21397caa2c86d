"""Compare autoencoders and latent generators on one data set: same networks, budget, optimizer and seeds.

Reads the data set, which is made first if it is missing. Every knob is chosen on validation images, every figure is
of test images; docs/compare.md tells how. Writes `compare/results.json`, the table `compare/results.md` and the page
`compare/index.html`. Each training and each generator is a Ray task whose result is kept: killed at any moment, the
same command goes on, and a row or seed that is added costs no more than itself.
"""

import asyncio
import importlib.util
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

from pipeline import prepare
from pipeline.cli import main
from pipeline.cluster import connect, in_job, use_cuda
from pipeline.compare_autoencoders import AUTOENCODER_LABELS, decoder_passes, train_autoencoder
from pipeline.compare_cells import Cell, Common, autoencoder_cell, generator_cell
from pipeline.compare_generators import GENERATOR_LABELS, judge_generator, passes
from pipeline.compare_goals import goals
from pipeline.compare_page import make_page, markdown_table
from pipeline.dataset import load_split, read_dataset_manifest
from pipeline.errors import ConfigError, PipelineError
from pipeline.evaluate import image_figures
from pipeline.extractors import build_extractor
from pipeline.memory import keep_freed_memory
from pipeline.progress import Display
from pipeline.report import machine
from pipeline.schema import Config
from pipeline.schema_study import AUTOENCODERS, GENERATORS
from pipeline.stage import Manifest, run_stage, say
from pipeline.storage import Folder
from pipeline.training_images import some_images, training_images
from pipeline.trial import failure_reason
from pipeline.weights import build_model

__all__ = ["run"]

_SELECTOR = "gmm"  # whose validation FD chooses among an autoencoder's candidates


def _compute(work: Callable[..., dict[str, Any]], job: dict[str, Any], cell: Cell, common: Common) -> dict[str, Any]:
    """One cell in a process of Ray's; a failure that would come again is a result too."""
    import torch

    keep_freed_memory()
    torch.set_num_threads(job["threads"])
    try:
        return work(job, cell, common)
    except PipelineError:
        raise
    except Exception as error:
        return {"cell": cell.job, "failure": failure_reason(error)}


class _Study:
    """Computes what is missing, in parallel, and remembers every record.

    Args:
        config: the run's configuration.
        folder: the run's.
        data: digest of the data set.
        common: what all cells share.
    """

    def __init__(self, config: Config, folder: Folder, data: str, common: Common):
        import ray

        self.config, self.folder, self.data = config, folder, data
        self.features = common.extractor.sha256
        cuda, settings = use_cuda(config.train.device), config.compare
        gpus = settings.gpus_per_cell if settings.gpus_per_cell is not None else float(cuda)
        have = ray.cluster_resources()
        if config.ray.address is None and not in_job():
            for what, wanted, key in (
                ("CPU", settings.cpus_per_cell, "compare.cpus_per_cell"),
                ("GPU", gpus, "compare.gpus_per_cell"),
            ):
                if wanted > have.get(what, 0):
                    raise ConfigError(f"{key}: {wanted:g} {what}s for a cell, Ray has {have.get(what, 0):g}")
        self.task: Any = ray.remote(_compute).options(num_cpus=settings.cpus_per_cell, num_gpus=gpus)
        self.common = ray.put(common)
        self.job = {
            "config": config.model_dump(mode="json"),
            "run": folder.url,
            "threads": settings.cpus_per_cell,
        }
        self.display = Display("compare")
        self.total, self.done, self.kept = self._count(), 0, 0

    def _count(self) -> int:
        settings = self.config.compare
        count = 0
        for name, candidates in settings.autoencoders.items():
            count += (2 * len(candidates) if len(candidates) > 1 else 1) + settings.seeds - 1
            for generator in settings.generators_of(name):
                count += max(1, len(settings.generators[generator])) + settings.seeds - 1
        return count

    async def compute(self, work: Callable[..., dict[str, Any]], cell: Cell) -> dict[str, Any]:
        """The cell's record, from storage or anew."""
        import ray

        if self.folder.exists(cell.record):
            record = self.folder.read_json(cell.record)
            self.kept += 1
        else:
            try:
                record = await self.task.remote(work, self.job, cell, self.common)
            except (ray.exceptions.WorkerCrashedError, ray.exceptions.OutOfMemoryError) as error:
                record = {"cell": cell.job, "failure": failure_reason(error)}
        self.done += 1
        figure = record.get("failure") or f"FD {record['figures']['fd']:.4g}"
        setting = "" if cell.job["setting"] is None else f" {cell.job['setting']:g}"
        note = f"{cell.job['name']}{setting}, seed {cell.job['seed']}: {figure}, {self.done} of {self.total} cells"
        self.display.update({"phase": "cells", "done": min(1.0, self.done / self.total)}, note)
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
                record = await self.compute(judge_generator, generator_cell(self.config, cell, _SELECTOR, None))
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
        self.done -= 1 if len(candidates) > 1 else 0  # the chosen one was counted among the candidates
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
        self.done -= 1 if table else 0
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


def _results(config: Config, folder: Folder, common: Common, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    data, evaluate = read_dataset_manifest(folder), config.evaluate
    texts = {
        "components": evaluate.gmm_components,
        "euler_steps": config.compare.euler_steps,
        "chain_steps": evaluate.langevin_steps,
    }
    autoencoders, rows, failures = [], [], []
    for name, of in found.items():
        if "failure" in of:
            failures.append({"autoencoder": name, "generator": None, "reason": of["failure"]})
            continue
        about = {"name": name, "label": AUTOENCODER_LABELS[name], "knob": AUTOENCODERS[name]}
        autoencoders.append(about | {"decoder_passes": decoder_passes(name, config.train)} | of["autoencoder"])
        for generator, row in of["generators"].items():
            if "failure" in row:
                failures.append({"autoencoder": name, "generator": generator, "reason": row["failure"]})
                continue
            label = GENERATOR_LABELS[generator].format(**texts)
            if generator == "prior":
                label = "VampPrior mixture" if name == "vampprior" else "prior N(0, I)"
            about = {"autoencoder": name, "generator": generator, "label": label, "knob": GENERATORS[generator]}
            rows.append(about | {"bound": generator == "encoder", "passes": passes(generator, config)} | row)
    train = training_images(folder, config.train.memory_mb)
    others = common.extractor(some_images(train, evaluate.num_images, config.seed, "floor"))
    return {
        "schema": 1,
        "split": "test",
        "num_images": evaluate.num_images,
        "num_reference": len(common.test),
        "neighbours": evaluate.neighbours,
        "draws": evaluate.draws,
        "seeds": [config.seed + seed for seed in range(config.compare.seeds)],
        "extractor": common.extractor.describe(),
        "floor": image_figures(others, common.test, evaluate.neighbours),
        "data": {"source": data.info["source"], "shape": list(common.shape)} | data.info["counts"],
        "budget": {
            "epochs": config.train.epochs,
            "batch_size": config.train.batch_size,
            "latent_dim": config.model.latent_dim,
            "parameters": sum(
                weight.numel()
                for name, weight in build_model(config, common.shape).named_parameters()
                if name.startswith(("encoder.", "decoder."))
            ),
        },
        "machine": machine(),
        "threads": config.compare.cpus_per_cell,
        "date": datetime.now(UTC).date().isoformat(),
        "command": f"python -m pipeline.compare  # config.yaml of {config.name}",
        "autoencoders": autoencoders,
        "rows": rows,
        "goals": goals(rows),
        "failures": failures,
    }


def _check(config: Config) -> None:
    mistakes = []
    if "maf" in config.compare.generators and importlib.util.find_spec("zuko") is None:
        mistakes.append("compare.generators.maf: needs zuko: pip install 'ldcvae[compare]'")
    if any(len(c) > 1 for c in config.compare.autoencoders.values()) and _SELECTOR not in config.compare.generators:
        mistakes.append(f"compare.generators: {_SELECTOR} is missing, by which candidates of autoencoders are chosen")
    if any(name.startswith("ldc_svgd") for name in config.compare.autoencoders) and config.train.particles < 2:
        mistakes.append("train.particles: ldc_svgd needs at least 2, got 1")
    if mistakes:
        raise ConfigError("\n  ".join(["the comparison cannot be made:", *mistakes]))


def run(config: Config, force: bool = False) -> Manifest:
    """Compare what `compare.autoencoders` and `compare.generators` name, unless that is done.

    Args:
        config: the run's configuration.
        force: compute every cell anew.

    Returns:
        The stage's manifest; `info` holds the goals.

    Raises:
        ConfigError: if a generator's package is missing or a cell does not fit the cluster.
        PipelineError: if no cell could be computed, with the reasons.
    """
    _check(config)
    data = prepare.run(config)
    sections = ("model", "train", "sampler", "evaluate", "compare")
    carried_out = {"num_workers", "device", "checkpoint_epochs", "checkpoint_steps", "keep_checkpoints"}
    depends_on = {name: getattr(config, name).model_dump(mode="json", exclude=carried_out) for name in sections}

    def work(folder: Folder, _: str) -> tuple[list[str], dict[str, Any]]:
        if force:
            folder.remove("compare")
        shape = read_dataset_manifest(folder).info["shape"]
        extractor = build_extractor(folder, config.evaluate, config.seed, data, config.train.memory_mb)
        splits = (extractor(load_split(folder, split).pixels) for split in ("validation", "test"))
        common = Common((shape[0], shape[1], shape[2]), extractor, *splits)
        with connect(config):
            study = _Study(config, folder, data.digest, common)
            found = asyncio.run(study.all())
            study.display.close()
        say(f"compare: {study.done} cells, {study.kept} of them kept from before")
        results = _results(config, folder, common, found)
        if not results["rows"]:
            reasons = {failure["reason"] for failure in results["failures"]}
            raise PipelineError(f"nothing could be compared: {'; '.join(sorted(reasons))}")
        return _write(folder, results)

    return run_stage(config, "compare", depends_on | {"data": data.digest, "seed": config.seed}, work, force)


def _write(folder: Folder, results: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    table = markdown_table(results)
    grids = {row["grid"]: folder.read(row["grid"]) for row in results["rows"]}
    files = make_page(results, grids) | {"compare/results.md": table.encode()}
    for name, content in files.items():
        folder.write(name, content)
    folder.write_json("compare/results.json", results)
    say(table)
    for goal in results["goals"]:
        say(f"{'met' if goal['met'] else 'NOT met'}: {goal['claim']}: {goal['detail']}")
    say(f"compare: {folder.url}/compare/index.html")
    return [*files, "compare/results.json"], {"goals": results["goals"], "failures": results["failures"]}


if __name__ == "__main__":
    main("compare")
