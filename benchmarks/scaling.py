"""How the three directions of the sampler net scale with the latent dimension d and the number of particles n.

    python benchmarks/scaling.py [--dims 8,16,32,64] [--particles 128,512] [key=value …]

One LDC-VAE for each d on the bundled digits, all nets from the same GMM base with the same steps, by
`pipeline.compare`: FD of the images, MMD² and sliced Wasserstein distance of the latents to those of test images.
Trainings of an autoencoder are shared by all n. With `storage=FOLDER` it goes on where it was interrupted.
"""

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldcvae.variants import DIRECTIONS
from pipeline import compare
from pipeline.config.load import load_config
from pipeline.store.run import open_run

__all__ = ["compare_rows", "figure_cells"]

CONFIG = Path(__file__).parents[1] / "configs" / "digits_study.yaml"
FIGURES = (("fd", 1.0), ("mmd2", 1e3), ("sliced_wasserstein", 1.0))


def compare_rows(generators: Sequence[str], settings: Sequence[str]) -> dict[str, dict[str, Any]]:
    """Rows by generator, on LDC-VAE with SVGD encoder, of the digits study with other `key=value` settings."""
    config = load_config(CONFIG, ["train.epochs=100", "sampler.steps=1000", *settings])
    chosen = {
        "autoencoders": {"ldc_svgd": [1.0]},
        "generators": {name: [1.0] if name in DIRECTIONS else [] for name in generators},
        "only": {},
    }
    config = config.model_copy(update={"compare": config.compare.model_copy(update=chosen)})
    run = open_run(config)
    compare.run(run)
    rows = run.folder.read_json("compare/results.json")["rows"]
    return {row["generator"]: row for row in rows}


def figure_cells(row: Mapping[str, Any], figures: Sequence[tuple[str, float]] = FIGURES) -> str:
    """Means and standard deviations of some (figure, factor) as cells of a table."""
    return " | ".join(f"{by * row['figures'][key]:.2f} ± {by * row['spread'][key]:.2f}" for key, by in figures)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", default="8,16,32,64")
    parser.add_argument("--particles", default="128,512")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    lines = ["| d | n | latents | FD-classifier | MMD² · 1e3 | sliced Wasserstein |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as storage:
        for dim in map(int, asked.dims.split(",")):
            for particles in map(int, asked.particles.split(",")):
                settings = [f"storage={storage}", f"name=scaling-{dim}", "compare.seeds=2", "evaluate.draws=2"]
                settings += [f"model.latent_dim={dim}", f"sampler.particles={particles}", *asked.overrides]
                for name, row in compare_rows(("gmm", *DIRECTIONS, "encoder"), settings).items():
                    own = str(particles) if name in DIRECTIONS else ""
                    line = f"| {dim} | {own} | {row['label']} | {figure_cells(row)} |"
                    lines += [] if line in lines else [line]
    sys.stdout.write("\n".join(["", *lines, ""]))


if __name__ == "__main__":
    main()
