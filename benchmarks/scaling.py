"""How the three directions of the sampler net scale with the latent dimension d and the number of particles n.

    python benchmarks/scaling.py [--dims 8,16,32,64] [--particles 128,512,1024] [key=value …]

One LDC-VAE for each d on the bundled digits, all nets from the same GMM base with the same steps, by
`pipeline.compare`: FD of the images, MMD² and sliced Wasserstein distance of the latents to those of test images.
Trainings of an autoencoder are shared by all n. With `storage=FOLDER` it goes on where it was interrupted.
"""

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

from pipeline import compare
from pipeline.config import load_config
from pipeline.stage import run_folder

CONFIG = Path(__file__).parents[1] / "configs" / "digits_study.yaml"
ROWS = ("gmm", "stein", "score_difference", "drift", "encoder")
FIGURES = (("fd", 1.0), ("mmd2", 1e3), ("sliced_wasserstein", 1.0))


def measure(dim: int, particles: int, overrides: list[str]) -> dict[str, dict[str, Any]]:
    """Generator -> its row of the comparison."""
    generators = {name: [1.0] if name in ROWS[1:4] else [] for name in ROWS}
    settings = [f"name=scaling-{dim}", f"model.latent_dim={dim}", f"sampler.particles={particles}"]
    settings += ["compare.seeds=2", "evaluate.draws=2", "train.epochs=100", "sampler.steps=1000"]
    config = load_config(CONFIG, [*settings, *overrides])
    chosen = {"autoencoders": {"ldc_svgd": [1.0]}, "generators": generators, "only": {}}
    config = config.model_copy(update={"compare": config.compare.model_copy(update=chosen)})
    compare.run(config)
    rows = run_folder(config).read_json("compare/results.json")["rows"]
    return {row["generator"]: row for row in rows}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dims", default="8,16,32,64")
    parser.add_argument("--particles", default="128,512,1024")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    asked = parser.parse_intermixed_args()
    lines = ["| d | n | latents | FD-classifier | MMD² · 1e3 | sliced Wasserstein |", "|---|---|---|---|---|---|"]
    with tempfile.TemporaryDirectory() as storage:
        for dim in map(int, asked.dims.split(",")):
            for particles in map(int, asked.particles.split(",")):
                for name, row in measure(dim, particles, [f"storage={storage}", *asked.overrides]).items():
                    cells = [
                        f"{scale * row['figures'][figure]:.2f} ± {scale * row['spread'][figure]:.2f}"
                        for figure, scale in FIGURES
                    ]
                    own = str(particles) if name in ROWS[1:4] else ""
                    line = f"| {dim} | {own} | {row['label']} | {' | '.join(cells)} |"
                    lines += [] if line in lines else [line]
    sys.stdout.write("\n".join(["", *lines, ""]))


if __name__ == "__main__":
    main()
