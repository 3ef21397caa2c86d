"""Compare autoencoders and latent generators on one data set: same networks, budget, optimizer and seeds.

Reads the data set, which is made first if it is missing. Every knob is chosen on validation images, every figure is
of test images; docs/compare.md tells how. Writes `compare/results.json`, the table `compare/results.md` and the page
`compare/index.html`. Each training and each generator is a Ray task whose result is kept: killed at any moment, the
same command goes on, and a row or seed that is added costs no more than itself.
"""

import asyncio
import importlib.util
import shlex
import sys
from datetime import UTC, datetime
from typing import Any

from pipeline.prepare import stage as prepare
from pipeline.__main__ import main
from pipeline.remote.connect import connect
from pipeline.compare.autoencoders import AUTOENCODER_LABELS, decoder_passes
from pipeline.compare.cells import Common
from pipeline.compare.judge import GENERATOR_LABELS, passes
from pipeline.compare.claims import goals
from pipeline.compare.page import make_page, markdown_table
from pipeline.compare.schedule import SELECTOR, Study
from pipeline.store.data.shards import load_split, read_dataset_manifest
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.evaluate.stage import image_figures
from pipeline.judge.extractors import build_extractor
from pipeline.report.stage import machine
from pipeline.config.sections import Config
from pipeline.config.studies import AUTOENCODERS, GENERATORS
from pipeline.store.manifest import Manifest, run_stage, say
from pipeline.store.folder import Folder
from pipeline.store.data.splits import some_images, training_images
from pipeline.store.model import build_model

__all__ = ["run"]


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
            if generator in ("prior", "encoder"):  # nothing is fitted: what the clock says is noise
                for part in ("figures", "spread"):
                    row[part]["seconds"] = None
    train = training_images(folder, config.train.memory_mb)
    others = common.extractor(some_images(train, evaluate.num_images, config.seed, "floor"))
    return {
        "schema": 1,
        "name": config.name,
        "split": "test",
        "selection_images": config.compare.selection_images,
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
        "command": _command(),
        "autoencoders": autoencoders,
        "rows": rows,
        "goals": goals(rows, AUTOENCODER_LABELS),
        "failures": failures,
    }


def _command() -> str:
    """How this was called, for the record; from Python, what would do the same."""
    called = sys.argv[1:] if sys.argv[0].endswith("compare.py") else ["--config", "config.yaml"]
    return shlex.join(["python", "-m", "pipeline.compare", *called])


def _check(config: Config) -> None:
    mistakes = []
    if "maf" in config.compare.generators and importlib.util.find_spec("zuko") is None:
        mistakes.append("compare.generators.maf: needs zuko: pip install 'ldcvae[compare]'")
    if any(len(c) > 1 for c in config.compare.autoencoders.values()) and SELECTOR not in config.compare.generators:
        mistakes.append(f"compare.generators: {SELECTOR} is missing, by which candidates of autoencoders are chosen")
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
            study = Study(config, folder, data.digest, common)
            found = asyncio.run(study.all())
            study.display.close()
        # Of a cell whose process was lost between its record and its last checkpoint's end.
        folder.remove("compare/checkpoints")
        say(f"compare: {len(study.records)} cells, {study.kept} of them kept from before")
        results = _results(config, folder, common, found)
        if not results["rows"]:
            reasons = {failure["reason"] for failure in results["failures"]}
            raise PipelineError(f"nothing could be compared: {'; '.join(sorted(reasons))}")
        return _write(folder, results)

    return run_stage(config, "compare", depends_on | {"data": data.digest, "seed": config.seed}, work, force)


def _write(folder: Folder, results: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    table = markdown_table(results)
    grids = {row["grid"]: folder.read(row["grid"]) for row in results["rows"] if folder.exists(row["grid"])}
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
