"""IDX files, Parquet and torchvision: what each reader accepts, and what it says of files that are wrong."""

import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from fsspec.implementations.local import LocalFileSystem
from images import encoded, load, save
from PIL import Image

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import parse_config
from pipeline.prepare.sources import find_source
from pipeline.store.data.shards import encode_shard

FASHION = Path("/usr/share/datasets/fashion-mnist")


def idx(array):
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">u4").tobytes() + array.tobytes()


@pytest.fixture
def mnist(tmp_path):
    """Six training and two test images of 4x5 pixels; one file is gzipped."""
    rng = np.random.default_rng(0)
    train, test = rng.integers(0, 256, (2, 6, 4, 5), dtype=np.uint8)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(train))
    (tmp_path / "train-labels-idx1-ubyte.gz").write_bytes(gzip.compress(idx(np.arange(6, dtype=np.uint8)), mtime=0))
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(idx(test[:2]))
    (tmp_path / "t10k-labels-idx1-ubyte").write_bytes(idx(np.array([5, 0], np.uint8)))
    return tmp_path, train, test[:2]


def test_digits():
    raw = load("digits")
    assert raw.images.shape == (1797, 1, 8, 8)
    assert (raw.images.min(), raw.images.max(), raw.classes) == (0, 255, tuple("0123456789"))
    assert set(raw.splits) == {"train"}
    assert raw.images[0, 0, 0].tolist() == [0, 0, 80, 207, 143, 16, 0, 0]  # 0 0 5 13 9 1 0 0 of 16


def test_idx(mnist):
    folder, train, test = mnist
    raw = load("idx", folder)
    assert np.array_equal(raw.images[:, 0], np.concatenate([train, test]))
    assert raw.labels.tolist() == [0, 1, 2, 3, 4, 5, 5, 0]
    assert raw.splits.tolist() == ["train"] * 6 + ["test"] * 2
    assert raw.classes == tuple("012345")
    (folder / "classes.txt").write_text("a\nb\nc\nd\ne\nf\n")
    assert load("idx", f"file://{folder}").classes == tuple("abcdef")
    (folder / "classes.txt").write_text("a\nb\n")
    with pytest.raises(PipelineError, match=r"classes\.txt: labels run from 0 to 5, but there are 2"):
        load("idx", folder)


def test_idx_without_labels_and_test(mnist):
    folder, train, _ = mnist
    for name in ("train-labels-idx1-ubyte.gz", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte"):
        (folder / name).unlink()
    raw = load("idx", folder)
    assert raw.labels is None
    assert raw.classes == ()
    assert len(raw.images) == len(train)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train-images-idx3-ubyte", b"", "no IDX file of 3 dimensions"),
        ("train-images-idx3-ubyte", idx(np.zeros(6, np.uint8)), "starts with 0x00000801, not 0x00000803"),
        ("train-images-idx3-ubyte", idx(np.zeros((6, 4, 5), np.uint8))[:-1], r"header says \(6, 4, 5\), 120 bytes"),
        ("train-images-idx3-ubyte", b"\0\0\x08\x03" + b"\xff" * 12, "is damaged"),
        ("train-labels-idx1-ubyte.gz", b"not gzip", "is damaged"),
        ("train-labels-idx1-ubyte.gz", gzip.compress(idx(np.arange(6, dtype=np.uint8)), mtime=0)[:-9], "is damaged"),
        (
            "train-labels-idx1-ubyte.gz",
            gzip.compress(idx(np.arange(5, dtype=np.uint8)), mtime=0),
            "5 labels, .* 6 images",
        ),
        (
            "t10k-images-idx3-ubyte",
            idx(np.zeros((2, 3, 3), np.uint8)),
            r"images are \(3, 3\), the training images \(4, 5\)",
        ),
    ],
    # Named, since pytest would write the bytes themselves, and pytest-xdist wants the same names in each process.
    ids=[
        "empty",
        "labels for images",
        "cut short",
        "header of 2^32",
        "no gzip",
        "gzip cut short",
        "too few",
        "other size",
    ],
)
def test_corrupted_idx_is_named(mnist, name, content, message):
    (mnist[0] / name).write_bytes(content)
    with pytest.raises(PipelineError, match=message) as error:
        load("idx", mnist[0])
    assert f"{mnist[0]}/{name}" in str(error.value)


@pytest.mark.skipif(not FASHION.exists(), reason="Debian's dataset-fashion-mnist is not installed")
def test_real_fashion_mnist():
    raw = load("idx", FASHION)
    assert raw.images.shape == (70_000, 1, 28, 28)
    assert np.bincount(raw.labels).tolist() == [7000] * 10
    assert (raw.splits == "test").sum() == 10_000
    assert raw.images[:60_000].mean() / 255 == pytest.approx(0.2860, abs=1e-4)  # the set's published mean


@pytest.mark.parametrize("source", ["folder", "parquet", "idx"])
def test_missing_or_empty_folder(tmp_path, source):
    with pytest.raises(PipelineError, match=r"data\.path=.*no such file or folder"):
        load(source, tmp_path / "missing")
    with pytest.raises(PipelineError, match="has no files for source"):
        load(source, tmp_path)


def test_the_runs_own_folder_is_no_source(tmp_path):
    for path in (tmp_path, tmp_path / "run" / "data", tmp_path / "run"):
        content = {"source": "parquet", "path": str(path)}
        with pytest.raises(ConfigError, match="lie inside each other"):
            find_source(parse_config({"data": content, "storage": str(tmp_path), "name": "run"}))


def test_own_shards_come_back(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (7, 3, 4, 5), dtype=np.uint8)
    labels = np.arange(7) % 2
    (tmp_path / "a.parquet").write_bytes(encode_shard(images[:4], labels[:4], "train"))
    (tmp_path / "b.parquet").write_bytes(encode_shard(images[4:], labels[4:], "test"))
    raw = load("parquet", tmp_path)
    assert np.array_equal(raw.images, images)
    assert raw.labels.tolist() == labels.tolist()
    assert raw.splits.tolist() == ["train"] * 4 + ["test"] * 3
    assert raw.classes == ("0", "1")
    (tmp_path / "manifest.json").write_text(json.dumps({"info": {"classes": ["cat", "dog"]}}))
    assert load("parquet", tmp_path).classes == ("cat", "dog")
    assert np.array_equal(load("parquet", tmp_path / "b.parquet").images, images[4:])  # one file
    assert load("parquet", tmp_path, image_size=4, channels=1).images.shape == (7, 1, 4, 4)


@pytest.mark.parametrize("column", ["image", "img"])
def test_hugging_face_parquet(tmp_path, column):
    pictures = [encoded(Image.new("L", (4, 4), value)) for value in (10, 20, 30)]
    features = {"label": {"names": ["zero", "one", "two"], "_type": "ClassLabel"}}
    for name, rows in (("train-00000-of-00001.parquet", [0, 1]), ("test-00000-of-00001.parquet", [2])):
        structs = [{"bytes": pictures[row], "path": f"{row}.png"} for row in rows]
        table = pa.table({column: structs, "label": [row % 2 for row in rows]})
        metadata = {"huggingface": json.dumps({"info": {"features": features}})}
        pq.write_table(table.replace_schema_metadata(metadata), tmp_path / name)
    raw = load("parquet", tmp_path)
    assert raw.images[:, 0, 0, 0].tolist() == [30, 10, 20]
    assert raw.splits.tolist() == ["test", "train", "train"]
    assert raw.labels.tolist() == [0, 0, 1]
    assert raw.classes == ("zero", "one", "two")


def test_parquet_of_bytes_with_string_labels(tmp_path):
    pictures = [encoded(Image.new("L", (4, 4))), b"no image", None]
    table = {"image": pa.array(pictures, pa.binary()), "label": ["dog", "cat", "eel"], "split": ["train"] * 3}
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match=r"x\.parquet row 1: not a PNG, JPEG"):
        load("parquet", tmp_path)
    raw = load("parquet", tmp_path, on_bad_image="skip")
    assert raw.classes == ("dog",)
    assert [entry["file"] for entry in raw.skipped] == ["x.parquet row 1", "x.parquet row 2"]


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"picture": [b"x"]}, "has no column image; its columns: picture"),
        ({"image": ["text"]}, "column image is string"),
        ({"image": pa.array([b"abc"], pa.binary(3))}, "3 bytes, but the metadata's shape"),
        ({"image": [b"x"], "label": [0.5]}, "column label is double"),
        ({"image": [b"x"], "split": ["exam"]}, "row 0: split is 'exam'"),
    ],
)
def test_wrong_parquet_is_named(tmp_path, table, message):
    pq.write_table(pa.table(table), tmp_path / "x.parquet")
    with pytest.raises(PipelineError, match=message) as error:
        load("parquet", tmp_path)
    assert "x.parquet" in str(error.value)


def test_damaged_parquet_is_named(tmp_path):
    (tmp_path / "x.parquet").write_bytes(b"PAR1 nothing")
    with pytest.raises(PipelineError, match=r"x\.parquet is not readable Parquet"):
        load("parquet", tmp_path)


def test_torchvision_mnist_from_local_files(tmp_path, mnist):
    folder, train, test = mnist
    raw_folder = tmp_path / "cache" / "MNIST" / "raw"
    raw_folder.mkdir(parents=True)
    for path in folder.glob("*-ubyte*"):
        content = path.read_bytes()
        content = gzip.decompress(content) if path.suffix == ".gz" else content
        (raw_folder / path.name.removesuffix(".gz")).write_bytes(content)
    raw = load("torchvision", tmp_path / "cache", name="MNIST", download=False)
    assert np.array_equal(raw.images[:, 0], np.concatenate([train, test]))
    assert raw.splits.tolist() == ["train"] * 6 + ["test"] * 2
    assert raw.labels.tolist() == [0, 1, 2, 3, 4, 5, 5, 0]
    assert raw.classes[0] == "0 - zero"


def test_torchvision_set_with_named_splits(tmp_path):
    for number, split in enumerate(("train", "valid", "test")):
        for label in ("AA", "BB"):
            save(tmp_path / "country211" / split / label / "x.png", Image.new("RGB", (20, 10), (number, 0, 0)))
    raw = load("torchvision", tmp_path, name="Country211", download=False, image_size=8)
    assert raw.images.shape == (6, 3, 8, 8)
    assert raw.splits.tolist() == ["train"] * 2 + ["validation"] * 2 + ["test"] * 2
    assert raw.images[:, 0, 0, 0].tolist() == [0, 0, 1, 1, 2, 2]
    assert raw.classes == ("AA", "BB")


def test_an_error_of_torchvisions_is_no_missing_split_and_no_bad_image(tmp_path, monkeypatch):
    options = {"name": "Country211", "download": False, "image_size": 8, "on_bad_image": "skip"}
    for split in ("train", "valid", "test"):
        save(tmp_path / "country211" / split / "AA" / "x.png", Image.new("RGB", (20, 10)))

    def damaged(folder):
        if Path(folder).name == "valid":
            raise ValueError("the list of classes is damaged")
        return ["AA"], {"AA": 0}

    with monkeypatch.context() as patch:
        patch.setattr("torchvision.datasets.folder.find_classes", damaged)
        with pytest.raises(PipelineError, match=r"Country211 in .* cannot be read: the list of classes is damaged"):
            load("torchvision", tmp_path, **options)
    for error, told in ((MemoryError(), "not enough memory"), (OSError(5, "Input/output error"), "cannot be read")):

        def fail(self, index, error=error):
            raise error

        with monkeypatch.context() as patch:
            patch.setattr("torchvision.datasets.DatasetFolder.__getitem__", fail)
            with pytest.raises(PipelineError, match=f"Country211 train 0.* {told}"):
                load("torchvision", tmp_path, **options)


@pytest.mark.parametrize("source", ["folder", "parquet", "idx"])
def test_a_storage_that_cannot_be_listed_is_not_taken_for_empty(tmp_path, monkeypatch, source):
    (tmp_path / "sub").mkdir()

    def refuse(self, path, *args, **kwargs):
        raise PermissionError(13, f"Permission denied: {path}")

    for method in ("info", "ls"):
        with monkeypatch.context() as patch:
            patch.setattr(LocalFileSystem, method, refuse)
            with pytest.raises(PipelineError, match=r"cannot list .*Permission denied"):
                load(source, tmp_path)


def test_class_names_that_cannot_be_read_are_not_taken_for_missing(tmp_path, monkeypatch):
    (tmp_path / "a.parquet").write_bytes(encode_shard(np.zeros((4, 1, 2, 2), np.uint8), np.arange(4), "train"))
    (tmp_path / "manifest.json").write_text("{")
    assert load("parquet", tmp_path).classes == ("0", "1", "2", "3")
    read = LocalFileSystem.cat_file

    def refuse(self, path, *args, **kwargs):
        if path.endswith("manifest.json"):
            raise PermissionError(13, "Permission denied")
        return read(self, path, *args, **kwargs)

    monkeypatch.setattr(LocalFileSystem, "cat_file", refuse)
    with pytest.raises(PipelineError, match=r"cannot read .*manifest\.json: Permission denied"):
        load("parquet", tmp_path)


def test_torchvision_mistakes(tmp_path):
    with pytest.raises(ConfigError, match="no usable set 'CIFAR01'; did you mean CIFAR10"):
        load("torchvision", tmp_path, name="CIFAR01")
    with pytest.raises(PipelineError, match=r"CIFAR10 in .*data\.download is false.*data\.path"):
        load("torchvision", tmp_path, name="CIFAR10", download=False)
    with pytest.raises(ConfigError, match="local folder"):
        load("torchvision", "s3://bucket/x", name="CIFAR10")
