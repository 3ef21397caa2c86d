"""Judge the peers' images with the run's own extractor and put them beside the run's own results.

Runs in the project's environment, after train_pythae.py, with the same config and overrides as export.py:

    python benchmarks/peers/judge.py FOLDER [--config FILE] [key=value …]

Prints the table and writes all figures as FOLDER/peers.json and FOLDER/peers.md. "Ours" are the rows of the run's
`compare/results.json`; without that file, or where it was judged in another way, their columns stay empty.
"""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from exchange import LABELS, SAMPLERS, cell, digest, read_images, read_json, write_json
from export import compared, parse
from table import lines, markdown, rows

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config
from pipeline.judge.extractors import Extractor, build_extractor
from pipeline.judge.figures import Judge
from pipeline.store.data.shards import load_split
from pipeline.store.run import Run, open_run

__all__ = ["judge", "measure"]


def _images(path: Path) -> torch.Tensor:
    return torch.from_numpy(read_images(path))


def measure(folder: Path, spec: Mapping[str, Any], extractor: Extractor, held_out: torch.Tensor, k: int) -> dict:
    """Figures of everything that the peers have made: `<model>/<sampler>` -> figure -> one value a seed.

    Raises:
        PipelineError: if a cell is missing or was made with another spec.
    """
    own, found = Judge(extractor, extractor(held_out), k, torch.device("cpu")), {}
    for name in LABELS:
        for seed in spec["seeds"]:
            path = cell(folder, "trained", name, seed)
            if not path.exists() or read_json(path)["spec"] != digest(spec):
                raise PipelineError(
                    f"{path} is missing or of another spec: run train_pythae.py in the peers' environment"
                )
            images = _images(cell(folder, "reconstructions", name, seed))
            error = float((images.double() - held_out.double()).div(255.0).square().mean())
            figures = {"mse": error, "fd": own.distance(extractor(images))}
            cells = {f"{name}/reconstruction": figures}
            for sampler in SAMPLERS[name]:
                features = extractor(_images(cell(folder, "samples", name, sampler, seed)))
                cells[f"{name}/{sampler}"] = own.figures(features)
            for key, values in cells.items():
                for figure, value in values.items():
                    found.setdefault(key, {}).setdefault(figure, []).append(value)
    return found


def _mismatch(results: Mapping[str, Any], judged: Mapping[str, Any]) -> str | None:
    """Why the run's results were not judged as the peers are."""
    theirs = results | {"extractor": results["extractor"]["sha256"]}
    wrong = [key for key, value in judged.items() if theirs.get(key) != value]
    return f"compare/results.json has another {', '.join(wrong)}" if wrong else None


def judge(folder: Path, run: Run) -> dict[str, Any]:
    """Judge everything and write `peers.json` and `peers.md`.

    Raises:
        PipelineError: if a stage, a cell or the spec is missing.
    """
    if not (folder / "spec.json").exists():
        raise PipelineError(f"{folder}/spec.json does not exist: run export.py first")
    spec, settings = read_json(folder / "spec.json"), run.config.evaluate
    if spec["data"] != run.data.digest:
        raise PipelineError(f"{folder} was exported from other data than {run.folder.url} holds: run export.py again")
    held_out = load_split(run, spec["split"]).pixels
    extractor = build_extractor(run)
    judged = {"extractor": extractor.sha256, "split": spec["split"], "num_images": spec["num_images"]}
    results, note = compared(run), None
    if results is None:
        note = f"{run.folder.url}/compare/results.json does not exist, so there is nothing of ours beside"
    elif note := _mismatch(results, judged | {"neighbours": settings.neighbours}):
        results = None
    found = measure(folder, spec, extractor, held_out, settings.neighbours)
    content = {"schema": 1, "spec": spec, "extractor": extractor.describe(), "num_reference": len(held_out)}
    content |= {"neighbours": settings.neighbours, "note": note, "rows": rows(found, spec, results)}
    write_json(folder / "peers.json", content)
    (folder / "peers.md").write_text(markdown(content), "utf-8")
    return content


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments, exporting=False)
    try:
        content = judge(options.folder, open_run(load_config(options.config, options.overrides)))
    except (ConfigError, PipelineError) as error:
        sys.exit(f"error: {error}")
    for figure, reconstruction in (("fd", False), ("mse", True)):
        title = "MSE" if reconstruction else content["extractor"]["figure"]
        print(f"{title:28}{'pythae':>20}{'ours':>20}{'difference':>12}")
        for label, theirs, ours, units in lines(content, figure, reconstruction):
            print(f"{label:28}{theirs:>20}{ours:>20}{units:>12}")
    print(f"{content['note'] + '; ' if content['note'] else ''}all figures: {options.folder}/peers.md")


if __name__ == "__main__":
    main()
