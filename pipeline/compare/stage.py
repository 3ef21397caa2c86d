"""Runs a comparison: its cells, the figures they give, the claims these decide, and the page."""

import asyncio
import shlex
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from ldcvae.variants import AUTOENCODERS, GENERATORS
from pipeline import prepare
from pipeline.compare.cells import DECODER, Cell, raised_formats
from pipeline.compare.claims import against, goals
from pipeline.compare.page import make_page
from pipeline.compare.schedule import SELECTOR, Schedule
from pipeline.compare.select import check_names, hours, possible_cells, remove_cells
from pipeline.compare.tables import against_table, csv_table, markdown_table
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config
from pipeline.judge.doubts import doubts, label_share, require_neighbours
from pipeline.judge.figures import Reference, make_reference
from pipeline.judge.generators import budget_of
from pipeline.judge.pages.render import machine
from pipeline.remote.connect import connect
from pipeline.remote.failures import kind_of_record
from pipeline.remote.hardware import missing
from pipeline.store.data.splits import some_images, split_images
from pipeline.store.folder import Folder
from pipeline.store.manifest import Manifest, say
from pipeline.store.model import build_model
from pipeline.store.run import Run
from pipeline.store.weights import FILES, decoder_parts, judge_parts

__all__ = ["run"]

FORMAT = 4  # of results, claims and page; cells have numbers of their own; CONTRIBUTING.md says when to raise it


def _results(run: Run, reference: Reference, found: dict[str, dict[str, Any]]) -> dict[str, Any]:
    config, data, evaluate = run.config, run.data, run.config.evaluate
    budget, model = budget_of(config), build_model(config, run.shape)
    autoencoders, rows, failures = [], [], []
    for name, of in found.items():
        if "failure" in of:
            failures.append({"autoencoder": name, "generator": None} | _reason(of))
            continue
        one = AUTOENCODERS[name.removesuffix(DECODER)]
        label = one.label + (" + decoder" if name.endswith(DECODER) else "")
        about = {"name": name, "label": label, "knob": one.knob}
        autoencoders.append(about | {"decoder_passes": one.passes(config.train.particles)} | of["autoencoder"])
        for generator, row in of["generators"].items():
            if "failure" in row:
                failures.append({"autoencoder": name, "generator": generator} | _reason(row))
                continue
            record = GENERATORS[generator]
            about = {
                "autoencoder": name,
                "generator": generator,
                "label": record.title(budget, one.prior),
                "knob": record.knob,
            }
            passes = record.passes(budget, config.model.latent_dim)
            rows.append(about | {"bound": record.kind == "bound", "passes": passes} | row)
            if not record.fitted:  # what the clock says is noise
                for part in ("figures", "spread"):
                    row[part]["seconds"] = None
    judge = reference.judge("test", evaluate.neighbours, torch.device("cpu"))
    others = some_images(split_images(run, "train"), evaluate.num_images, config.seed, "floor")
    results = {
        "schema": 1,
        "name": config.name,
        "split": "test",
        "selection_images": config.compare.selection_images,
        "num_images": evaluate.num_images,
        "num_reference": len(reference.features["test"]),
        "neighbours": evaluate.neighbours,
        "draws": evaluate.draws,
        "seeds": [config.seed + seed for seed in range(config.compare.seeds)],
        "extractor": reference.extractor.describe(),
        **({} if reference.second is None else {"second_extractor": reference.second.describe()}),
        "floor": judge.of_images(others),
        "data": {"source": data.info["source"], "shape": list(run.shape)} | data.info["counts"],
        "budget": {
            "epochs": config.train.epochs,
            "batch_size": config.train.batch_size,
            "latent_dim": config.model.latent_dim,
            "parameters": sum(
                weight.numel()
                for name, weight in model.named_parameters()
                if name.startswith(("encoder.", "decoder."))
            ),
        },
        "machine": machine(),
        "threads": config.compare.cpus_per_cell,
        "date": datetime.now(UTC).date().isoformat(),
        "command": _command(),
        "autoencoders": autoencoders,
        "rows": rows,
        "failures": failures,
    }
    results["doubts"] = doubts(results, label_share(data.info["label_counts"]))
    # What the figures cannot decide is neither met nor missed.
    results["goals"] = [] if results["doubts"] else _goals(rows)
    results["against"] = [] if results["doubts"] else against(rows)
    if reference.second is not None and not results["doubts"]:
        results["against_second"] = against(rows, "fd_second")
    if config.compare.decoder != "none":
        results["decoder"] = {"which": config.compare.decoder, "note": model.config.decoder_note}
    return results


def _goals(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The claims, of autoencoders without phase `decoder` and of those with it, never one against the other."""
    names = {name: record.label for name, record in AUTOENCODERS.items()}
    plain = [row for row in rows if not row["autoencoder"].endswith(DECODER)]
    sharp = [row | {"autoencoder": row["autoencoder"].removesuffix(DECODER)} for row in rows if row not in plain]
    after = [goal | {"claim": f"after phase decoder, {goal['claim']}"} for goal in goals(sharp, names)]
    return [*goals(plain, names), *after]


def _reason(row: dict[str, Any]) -> dict[str, Any]:
    return {"reason": row["failure"], "cell": row.get("cell"), "kind": row.get("kind")}


def _command() -> str:
    """How this was called, for the record; from Python, what would do the same.

    Without what was to be made anew: whoever repeats it wants the same page, not to pay for those cells again.
    """
    stage = Path(sys.argv[0]).parts[-2:] == ("compare", "__main__.py")
    called, forced = [], False
    for word in sys.argv[1:] if stage else ["--config", "config.yaml"]:
        if word.startswith("-") or "=" in word:
            forced = word == "--force"
        if not forced and word != "--retry-failed":
            called.append(word)
    return shlex.join(["python", "-m", "pipeline.compare", *called])


def _check(config: Config) -> None:
    mistakes = []
    for name in config.compare.generators:
        if (lacking := missing(GENERATORS[name])) is not None:
            mistakes.append(f"compare.generators.{name}: needs {lacking[0]}: {lacking[1]}")
    if any(len(c) > 1 for c in config.compare.autoencoders.values()) and SELECTOR not in config.compare.generators:
        mistakes.append(f"compare.generators: {SELECTOR} is missing, by which candidates of autoencoders are chosen")
    for name in config.compare.autoencoders:
        if AUTOENCODERS[name].encoder == "svgd" and config.train.particles < 2:
            mistakes.append(f"train.particles: {name} needs at least 2, got {config.train.particles}")
    if config.compare.decoder != "none" and not config.decoder.epochs:
        mistakes.append(f"decoder.epochs: compare.decoder={config.compare.decoder} needs at least 1")
    if mistakes:
        raise ConfigError("\n  ".join(["the comparison cannot be made:", *mistakes]))


def _may_pass(run: Run, retry_failed: bool) -> bool:
    """Whether the comparison that is there lacks cells that are tried again now."""
    if not run.has("compare"):
        return False
    info = run.manifest("compare").info
    failed = info.get("failed", info.get("failures", []))  # the latter: of a version that kept only rows
    count = sum(retry_failed or kind_of_record(one, "reason") == "transient" for one in failed)
    if count:
        say(f"compare: {count} failed {'cell is' if count == 1 else 'cells are'} tried again")
    return count > 0


def _clear(folder: Folder, failed: list[dict[str, str]], cells: list[Cell]) -> None:
    """Remove checkpoints of cells that are done, or failed for good; the others go on from theirs the next time."""
    passing = {one["cell"] for one in failed if one["kind"] == "transient"}
    kept = {cell.key for cell in cells if cell.name in passing}
    for key in {name.split("/")[2] for name in folder.below("compare/checkpoints")} - kept:
        folder.remove(f"compare/checkpoints/{key}")
    if not kept:
        folder.remove("compare/checkpoints")


def _tell(schedule: Schedule, force: bool) -> None:
    whole = [record for record in schedule.records.values() if "failure" not in record]
    more = f" ({hours(whole)} in all); --force '*' computes them anew" if force else ""
    count = len(schedule.records)
    say(f"compare: {count} {'cell' if count == 1 else 'cells'}, {schedule.kept} of them kept from before{more}")
    for one in schedule.failed:
        remedy = "the next run tries it again" if one["kind"] == "transient" else "--retry-failed tries it again"
        say(f"compare: {one['cell']} failed: {one['reason']}; {remedy}")


def run(run: Run, force: bool = False, cells: Sequence[str] = (), retry_failed: bool = False) -> Manifest:
    """See `pipeline.compare.run`."""
    config, folder = run.config, run.folder
    _check(config)
    check_names(config, folder, cells)
    data = prepare.run(run)
    sections = ("model", "train", "sampler", "evaluate", "compare")
    left_out = config.train.operational | FILES
    depends_on = {name: getattr(config, name).kept_under(left_out) for name in sections} | judge_parts(config)
    if config.compare.decoder != "none":
        depends_on |= decoder_parts(config)
    if raised := raised_formats():  # else a finished comparison would go on showing cells of an older format
        depends_on["cells"] = raised

    def work(_: str) -> tuple[list[str], dict[str, Any]]:
        reference = make_reference(run, "validation", "test")
        hashes = reference.extractor.sha256 or "", reference.second_sha256
        possible = [*possible_cells(config, data.digest, *hashes)]
        if cells:
            remove_cells(folder, possible, cells)
        with connect(config):
            schedule = Schedule(run, reference, retry_failed)
            found = asyncio.run(schedule.all())
            schedule.display.close()
        # Of a cell whose process was lost between its record and its last checkpoint's end.
        _clear(folder, schedule.failed, possible)
        _tell(schedule, force)
        results = _results(run, reference, found)
        if not results["rows"]:
            reasons = {failure["reason"] for failure in results["failures"]}
            raise PipelineError(f"nothing could be compared: {'; '.join(sorted(reasons))}")
        written, info = _write(folder, results)
        return written, info | {"failed": schedule.failed}

    def check() -> None:
        require_neighbours(
            config.evaluate.neighbours,
            data.info["counts"],
            {
                "validation": ("compare.selection_images", config.compare.selection_images),
                "test": ("evaluate.num_images", config.evaluate.num_images),
            },
        )

    again = force or bool(cells) or _may_pass(run, retry_failed)
    inputs = depends_on | {"data": data.digest, "seed": config.seed}
    return run.stage("compare", inputs, work, again, FORMAT, check=check)


def _write(folder: Folder, results: dict[str, Any]) -> tuple[list[str], dict[str, Any]]:
    table = "\n".join(filter(None, [markdown_table(results), against_table(results)]))
    grids = {row["grid"]: folder.read(row["grid"]) for row in results["rows"] if folder.exists(row["grid"])}
    files = make_page(results, grids) | {"compare/results.md": table.encode()}
    files["compare/results.csv"] = csv_table(results).encode()
    for name, content in files.items():
        folder.write(name, content)
    folder.write_json("compare/results.json", results)
    say(table)
    for doubt in results["doubts"]:
        say(f"compare: WARNING: {doubt}; so no claim is decided")
    for goal in results["goals"]:
        said = "met" if goal["met"] else "NOT met"
        say(f"{said}: {goal['claim']}: {goal['detail']}")
    say(f"compare: {folder.url}/compare/index.html")
    return [*files, "compare/results.json"], {"goals": results["goals"], "failures": results["failures"]}
