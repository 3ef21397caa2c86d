"""Shards that tasks write: the bytes that one process would write, for any number of tasks, and its errors."""

import io

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from images import encoded, save
from PIL import Image

from pipeline import prepare
from pipeline.config.errors import PipelineError
from pipeline.config.load import load_config, parse_config
from pipeline.prepare import files, parquet, scatter
from pipeline.prepare import write as write_stage
from pipeline.remote.connect import connect
from pipeline.store.data import shards
from pipeline.store.run import open_run


def run(tmp_path, name, **data):
    """Prepare: the run's folder of data, name -> content, and what its manifest tells."""
    content = {"name": name, "storage": str(tmp_path / "runs"), "data": data, "ray": {"num_cpus": 2}}
    opened = open_run(parse_config(content))
    manifest = prepare.run(opened)
    found = {name: opened.folder.read(name) for name in opened.folder.below("data") if "manifest" not in name}
    assert sorted(found) == sorted(manifest.outputs)  # and no scratch
    return found, manifest


@pytest.fixture
def by_tasks(monkeypatch):
    """Every source is large; the tasks run one after the other in this process, which claims `workers` of them."""

    def here(workers, block_bytes):
        monkeypatch.setattr(files, "PARALLEL_FROM", 0)
        monkeypatch.setattr(parquet, "PARALLEL_BYTES", 0)
        monkeypatch.setattr(scatter, "BLOCK_BYTES", block_bytes)
        monkeypatch.setattr(scatter, "parallel_map", lambda task, jobs, workers, what: map(task, jobs))

        def write(config, folder, images):
            try:
                return scatter._write(config, folder, images, workers)
            finally:
                folder.remove("data/scratch")

        monkeypatch.setattr(write_stage, "write_scattered", write)

    return here


def pictures(folder, count=150, bad=()):
    """Grey and coloured files in three classes, some without any; those numbered in `bad` are none."""
    rng = np.random.default_rng(0)
    for number in range(count):
        pixels = rng.integers(0, 256, (7, 9, 3) if number % 4 == 1 else (8, 7), dtype=np.uint8)
        path = folder / ["a", "b", "c", ""][number % 4] / f"{number:03d}.png"
        save(path, Image.fromarray(pixels))
        if number in bad:
            path.write_bytes(b"none")


@pytest.mark.parametrize(("workers", "block_bytes"), [(1, 10**6), (1, 3000), (3, 3000), (50, 1)])
@pytest.mark.parametrize("data", [{"images_per_shard": 17}, {"max_train_images": 40, "images_per_shard": 9}])
def test_folders_give_the_bytes_of_one_process(tmp_path, by_tasks, workers, block_bytes, data):
    pictures(tmp_path / "pictures", bad=(3, 50, 51))
    data |= {"source": "folder", "path": str(tmp_path / "pictures"), "image_size": 6, "on_bad_image": "skip"}
    here, alone = run(tmp_path, "here", **data)
    by_tasks(workers, block_bytes)
    there, together = run(tmp_path, "there", **data)
    assert there == here
    assert together.info == alone.info
    assert together.outputs == alone.outputs
    assert together.info["skipped_count"] == 3
    assert together.info["shape"] == [3, 6, 6]


@pytest.mark.parametrize("workers", [1, 4])
@pytest.mark.parametrize("kind", ["pixels", "encoded", "split"])
def test_parquet_gives_the_bytes_of_one_process(tmp_path, by_tasks, kind, workers):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (120, 1, 5, 6), dtype=np.uint8)
    for number, rows in enumerate((slice(0, 50), slice(50, 120))):
        part, labels = images[rows], rng.integers(0, 3, 120)[rows]
        if kind == "pixels":
            table = pq.read_table(io.BytesIO(shards.encode_shard(part, labels, "train")))
        else:
            rows = {"image": [{"bytes": encoded(Image.fromarray(x[0])), "path": None} for x in part]}
            names = [["cat", None, "dog"][label] for label in labels]
            table = pa.table(rows | {"label": pa.array(names).dictionary_encode()})
        if kind == "split":
            splits = [["train", "train", "val", None][label] for label in rng.integers(0, 4, len(part))]
            table = table.append_column("split", pa.array(splits))
        (tmp_path / "files").mkdir(exist_ok=True)
        pq.write_table(table, tmp_path / f"files/{number}.parquet", row_group_size=23)
    data = {"source": "parquet", "path": str(tmp_path / "files"), "images_per_shard": 20, "image_size": 5}
    here, alone = run(tmp_path, "here", **data)
    by_tasks(workers, 20 * 3 * 25)
    there, together = run(tmp_path, "there", **data)
    assert there == here
    assert together.info == alone.info
    assert together.info["classes"] == (["0", "1", "2"] if kind == "pixels" else ["cat", "dog"])


def test_shards_are_cut_by_bytes_too(tmp_path, by_tasks, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 10 * 3 * 36)
    pictures(tmp_path / "pictures")
    data = {"source": "folder", "path": str(tmp_path / "pictures"), "image_size": 6}
    here, alone = run(tmp_path, "here", **data)
    assert {pq.ParquetFile(io.BytesIO(here[f"data/train-{i:05d}.parquet"])).metadata.num_rows for i in (0, 1)} == {10}
    by_tasks(2, 1000)
    # The first image is grey, so that shards are planned three times too long; then the first pass is done again.
    assert run(tmp_path, "there", **data)[0] == here
    assert run(tmp_path, "null", images_per_shard=None, **data)[0] == here
    assert alone.info["counts"]["train"] == 108


def test_errors_are_those_of_one_process(tmp_path, by_tasks):
    folder = tmp_path / "pictures"
    pictures(folder, bad=(9,))
    data = {"source": "folder", "path": str(folder)}
    by_tasks(2, 1000)
    with pytest.raises(PipelineError, match=r"pictures/b/009\.png: not a PNG.*data\.on_bad_image=skip"):
        run(tmp_path, "bad", image_size=6, **data)
    with pytest.raises(PipelineError, match=r"differ in size: 003\.png is 7x8 pixels, b/001\.png is 9x7; set"):
        run(tmp_path, "sizes", on_bad_image="skip", **data)
    for path in folder.rglob("*.png"):
        path.write_bytes(b"none")
    with pytest.raises(PipelineError, match=r"no readable image, 150 bad ones; 003\.png"):
        run(tmp_path, "none", on_bad_image="skip", **data)
    assert not open_run(parse_config({"name": "bad", "storage": str(tmp_path / "runs")})).has("data")


@pytest.mark.slow
def test_ray_writes_the_same_bytes(tmp_path, monkeypatch, capfd):
    pictures(tmp_path / "pictures", 600, bad=(7, 300))
    data = {"source": "folder", "path": str(tmp_path / "pictures"), "images_per_shard": 50, "image_size": 6}
    here, alone = run(tmp_path, "here", on_bad_image="skip", **data)
    monkeypatch.setattr(files, "PARALLEL_FROM", 1)
    with connect(load_config(None, ["ray.num_cpus=2"])):
        there, together = run(tmp_path, "there", on_bad_image="skip", **data)
        assert there == here
        assert together.info == alone.info
        with pytest.raises(PipelineError) as error:
            run(tmp_path, "there", **data)
    assert capfd.readouterr().err == ""
    assert str(error.value).startswith(f"{tmp_path}/pictures/007.png: not a PNG")
    assert "\n" not in str(error.value)
