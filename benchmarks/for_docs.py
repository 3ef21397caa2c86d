"""What the documentation shows of finished runs: every draw as CSV, quality against speed, a wall of images.

    python benchmarks/for_docs.py runs/mnist-1 runs/mnist-2 --name mnist

writes docs/results/mnist.csv, docs/images/mnist-speed.png and docs/images/mnist-wall.png; the pictures are of the
first run. The wall has a row each of test images, N(0, I), a mixture of ten Gaussians, the sampler net before phase
`decoder`, where there was one, and after it, each decoded by the same decoder. Nothing is selected.
"""

import argparse
import csv
import io
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldcvae.training.encode import encode_split
from ldcvae.training.world import keyed_generator
from ldcvae.variants import GENERATORS
from pipeline.compare.page import speed
from pipeline.config.load import load_config
from pipeline.judge.generators import budget_of, fitted
from pipeline.judge.pages.pictures import image_grid
from pipeline.store.data.splits import spaced_images, split_images
from pipeline.store.model import load_before, load_model
from pipeline.store.run import Run, open_run

COLUMNS = 14
WALL = ("prior", "gmm", "sampler")


def opened(path: Path) -> Run:
    """The run in a folder, by the configuration that lies in it."""
    return open_run(load_config(path / "config.yaml", [f"storage={path.parent}", f"name={path.name}"]))


def metrics_of(run: Run) -> dict[str, Any]:
    found: dict[str, Any] = run.folder.read_json("evaluation/metrics.json")
    return found


def titles(run: Run, metrics: dict[str, Any]) -> dict[str, str]:
    """Generator -> what to call it."""
    return {name: GENERATORS[name].title(budget_of(run.config)) for name in metrics["generators"]}


def rows_as_csv(runs: list[Run]) -> str:
    """A line for each run's seed, generator and draw; and for reconstructions and real training images."""
    file = io.StringIO()
    writer = None
    for run in runs:
        metrics = metrics_of(run)
        lines = [
            {"generator": name, "label": titles(run, metrics)[name], "draw": draw}
            | {figure: values[draw] for figure, values in row["values"].items()}
            for name, row in metrics["generators"].items()
            for draw in range(metrics["draws"])
        ]
        for other in ("reconstruction", "floor"):
            lines.append({"generator": other, "label": other, "draw": 0} | metrics[other])
        for line in lines:
            line = {"run": run.config.name, "seed": metrics["seed"]} | line
            if writer is None:
                names = dict.fromkeys([*line, "fd_second", "mse"])
                writer = csv.DictWriter(file, list(names), restval="", extrasaction="ignore", lineterminator="\n")
                writer.writeheader()
            writer.writerow(
                {key: f"{value:.6g}" if isinstance(value, float) else value for key, value in line.items()}
            )
    return file.getvalue()


def speed_picture(run: Run) -> bytes:
    metrics = metrics_of(run)
    names = titles(run, metrics)
    rows = [
        {
            "label": names[name],
            "bound": GENERATORS[name].kind == "bound",
            "figures": row,
            "spread": row["spread"],
            "values": row["values"],
        }
        for name, row in metrics["generators"].items()
    ]
    shown = {row["label"]: name for row, name in zip(rows, metrics["generators"], strict=True) if not row["bound"]}
    return speed({"": rows}, shown, f"{metrics['extractor']['figure']}, lower is better")


@torch.inference_mode()
def wall(run: Run) -> bytes:
    model = load_model(run)
    encodings = encode_split(model, split_images(run, "train"))
    config = run.config.model_copy(
        update={"evaluate": run.config.evaluate.model_copy(update={"generators": list(WALL)})}
    )
    test = spaced_images(split_images(run, "test"), COLUMNS)
    assert isinstance(test, Tensor)
    rows = [test.float() / 255]
    latents = {}
    for name, draw in fitted(config, model, encodings, None, lambda purpose: keyed_generator("cpu", 0, purpose)):
        latents[name] = draw(COLUMNS, keyed_generator("cpu", 0, "wall", name))
        rows.append(model.decode(latents[name]))
    before = load_before(run, model)
    if before is not None:
        rows.insert(-1, before.decode(latents["sampler"]))
    return image_grid(torch.cat(rows).numpy(), COLUMNS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--name", required=True)
    parser.add_argument("--docs", type=Path, default=Path(__file__).parents[1] / "docs")
    arguments = parser.parse_args()
    runs = [opened(path) for path in arguments.runs]
    (arguments.docs / "results").mkdir(exist_ok=True)
    (arguments.docs / f"results/{arguments.name}.csv").write_text(rows_as_csv(runs))
    (arguments.docs / f"images/{arguments.name}-speed.png").write_bytes(speed_picture(runs[0]))
    (arguments.docs / f"images/{arguments.name}-wall.png").write_bytes(wall(runs[0]))


if __name__ == "__main__":
    main()
