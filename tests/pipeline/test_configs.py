"""Every shipped configuration: it loads, fits its data's shape, and reads small files of its data's own format."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.config.load import load_config, override
from pipeline.config.sections import Config
from pipeline.prepare.sources import find_source
from pipeline.store.model import build_model
from pipeline.tune.space import build_space

CONFIGS = Path(__file__).parents[2] / "configs"
SHAPES = {"mnist": (1, 28, 28), "cifar10": (3, 32, 32), "celeba64": (3, 64, 64), "fashion_mnist": (1, 28, 28)}
SHAPES |= {
    "fashion_mnist_study": (1, 28, 28),
    "fashion_mnist_16_study": (1, 28, 28),
    "fashion_mnist_64_study": (1, 28, 28),
    "emoji": (3, 32, 32),
    "digits": (1, 8, 8),
    "digits_study": (1, 8, 8),
    "digits_full_tune": (1, 8, 8),
    "images": (3, 64, 64),
}
GIVEN = {"images": ["data.path=/data/cats"]}  # what only a user knows


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_config_is_whole(path: Path) -> None:
    config = load_config(path, GIVEN.get(path.stem, []))
    model = build_model(config, SHAPES[path.stem])
    assert model.sample(2).shape == (2, *SHAPES[path.stem])
    if config.tune != Config().tune:
        build_space(config)


def local(name: str, folder: Path) -> Config:
    return override(load_config(CONFIGS / f"{name}.yaml"), {"data.path": str(folder), "data.download": False})


def test_cifar10_files(tmp_path, monkeypatch) -> None:
    from torchvision.datasets import CIFAR10

    # The hashes that torchvision checks are those of the real files.
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda *_: True)
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    pixels = np.arange(2 * 3072, dtype=np.uint32).reshape(2, 3072).astype(np.uint8)
    for name in [*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"]:
        (folder / name).write_bytes(pickle.dumps({"data": pixels, "labels": [1, 0]}))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": ["airplane", "automobile"]}))
    raw = find_source(local("cifar10", tmp_path)).load()
    assert raw.images.shape == (12, 3, 32, 32)
    assert np.array_equal(raw.images[0].reshape(-1), pixels[0])
    assert raw.splits.tolist() == ["train"] * 10 + ["test"] * 2
    assert raw.classes == ("airplane", "automobile")


def test_celeba_files_are_cropped_to_the_face_and_resized(tmp_path, monkeypatch) -> None:
    from torchvision.datasets import CelebA

    monkeypatch.setattr(CelebA, "_check_integrity", lambda self: True)
    folder = tmp_path / "celeba"
    (folder / "img_align_celeba").mkdir(parents=True)
    names = [f"{number:06d}.jpg" for number in range(1, 7)]
    inner = Image.new("RGB", (140, 140), (0, 200, 0))
    for name in names:
        image = Image.new("RGB", (178, 218), (200, 0, 0))
        image.paste(inner, (19, 39))  # the centred square of 140 pixels
        image.save(folder / "img_align_celeba" / name, quality=95)
    (folder / "list_eval_partition.txt").write_text(
        "".join(f"{name} {number // 2}\n" for number, name in enumerate(names))
    )
    (folder / "identity_CelebA.txt").write_text("".join(f"{name} {number}\n" for number, name in enumerate(names)))
    tables = {"list_attr_celeba": "Smiling", "list_bbox_celeba": "x_1", "list_landmarks_align_celeba": "lefteye_x"}
    for table, column in tables.items():
        rows = "".join(f"{name} 1\n" for name in names)
        (folder / f"{table}.txt").write_text(f"6\n{column}\n{rows}")
    raw = find_source(local("celeba64", tmp_path)).load()
    assert raw.images.shape == (6, 3, 64, 64)
    assert raw.splits.tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    inside = raw.images[:, :, 4:60, 4:60]
    assert inside[:, 1].min() > 190  # nothing of the surroundings
    assert inside[:, 0].max() < 10
