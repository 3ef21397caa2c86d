"""The data set format: what is written comes back, and what was changed on storage is refused by name."""

import io

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config.errors import PipelineError
from pipeline.config.load import parse_config
from pipeline.store.data.shards import encode_shard, load_split, write_split
from pipeline.store.run import open_run


@pytest.fixture
def written(tmp_path):
    """A run with 25 training images in shards of 10, 3 for validation without labels, and no test images."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (28, 3, 4, 6), dtype=np.uint8)
    labels = rng.integers(0, 2, 25)
    run = open_run(parse_config({"storage": str(tmp_path), "name": "run"}))

    def work(fingerprint):
        names = write_split(run.folder, "train", images[:25], labels, 10)
        names += write_split(run.folder, "validation", images[25:], None, 10)
        return names, {"shape": [3, 4, 6], "counts": {"train": 25, "validation": 3}, "classes": ["a", "b"]}

    run.stage("data", {}, work)
    return run, images, labels


def test_round_trip_over_several_shards(written):
    run, images, labels = written
    assert run.folder.files("data/train*") == [f"data/train-{i:05d}.parquet" for i in range(3)]
    train, validation = load_split(run, "train"), load_split(run, "validation")
    assert torch.equal(train.pixels, torch.from_numpy(images[:25]))
    assert train.labels.tolist() == labels.tolist()
    assert train.classes == ("a", "b")
    assert train.pixels.dtype == torch.uint8
    assert train.labels.dtype == validation.labels.dtype == torch.int64
    assert torch.equal(validation.pixels, torch.from_numpy(images[25:]))
    assert validation.labels.tolist() == [-1] * 3


def test_shards_are_plain_parquet(written):
    run, images, _ = written
    table = pq.read_table(io.BytesIO(run.folder.read("data/train-00001.parquet")))
    assert table.column_names == ["image", "label", "split"]
    assert table.schema.metadata[b"shape"] == b"3,4,6"
    assert table["image"][0].as_py() == images[10].tobytes()


@pytest.mark.parametrize("where", [4, 1000, -20])
def test_a_flipped_byte_is_refused_by_name(written, where):
    run, *_ = written
    content = bytearray(run.folder.read("data/train-00001.parquet"))
    content[where] ^= 1
    run.folder.write("data/train-00001.parquet", bytes(content))
    with pytest.raises(PipelineError, match=r"train-00001\.parquet is damaged: sha256 .* run .* with --force"):
        load_split(run, "train")
    assert len(load_split(run, "validation").pixels) == 3


def test_a_missing_or_swapped_shard_is_refused(written):
    run, *_ = written
    run.folder.write("data/train-00001.parquet", run.folder.read("data/train-00000.parquet"))
    with pytest.raises(PipelineError, match=r"train-00001\.parquet is damaged"):
        load_split(run, "train")
    run.folder.remove("data/train-00001.parquet")
    with pytest.raises(PipelineError, match=r"train-00001\.parquet does not exist"):
        load_split(run, "train")


def test_an_empty_split_is_an_error(written):
    with pytest.raises(PipelineError, match="has no test images"):
        load_split(written[0], "test")


@pytest.mark.parametrize("images", [np.zeros((2, 8, 8), np.uint8), np.zeros((2, 1, 8, 8), np.float32)])
def test_only_uint8_images_of_four_dimensions(images):
    with pytest.raises(ValueError, match="uint8"):
        encode_shard(images, None, "train")


def test_equal_images_give_equal_bytes():
    images = np.arange(2 * 64, dtype=np.uint8).reshape(2, 1, 8, 8)
    assert encode_shard(images, None, "train") == encode_shard(images.copy(), None, "train")
    # A transposed view is stored by its values, not its memory.
    turned = images.transpose(0, 1, 3, 2)
    assert encode_shard(turned, None, "test") == encode_shard(np.ascontiguousarray(turned), None, "test")
