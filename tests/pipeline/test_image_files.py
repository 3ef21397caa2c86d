"""Image files: every mode to one form, folders to labels and splits, and the same bytes with and without Ray."""

import numpy as np
import pytest
from images import encoded, load, save
from PIL import Image

from pipeline.config.errors import PipelineError
from pipeline.config.load import parse_config
from pipeline.prepare import decode as image_files
from pipeline.prepare import gather as collector
from pipeline.prepare.decode import BadImage, Form, decode, to_array
from pipeline.prepare.sources import describe_passed_over, find_source


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("1", 1, [255]),
        ("L", 70, [70]),
        ("LA", (70, 255), [70]),
        ("LA", (0, 0), [255]),  # transparent: white
        ("I;16", 0x4567, [0x45]),
        ("P", 3, None),
        ("RGB", (10, 20, 30), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 255), [10, 20, 30]),
        ("RGBA", (10, 20, 30, 0), [255, 255, 255]),
        ("RGBA", (0, 0, 0, 128), [127, 127, 127]),
    ],
)
def test_modes_of_png(mode, colour, expected):
    image = Image.new(mode, (6, 4), colour)
    if mode == "P":
        image.putpalette([0, 0, 0] * 3 + [9, 8, 7])
        expected = [9, 8, 7]
    pixels = decode(encoded(image))
    assert pixels.shape == (len(expected), 4, 6)
    assert pixels.dtype == np.uint8
    assert (pixels == np.array(expected)[:, None, None]).all()


def test_cmyk_jpeg_transparent_palette_and_first_frame():
    assert decode(encoded(Image.new("CMYK", (8, 8)), "JPEG")).min() == 255
    palette = Image.new("P", (4, 4), 0)
    palette.putpalette([1, 2, 3])
    assert (decode(encoded(palette, transparency=0)) == 255).all()
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    animated = encoded(frames[0], save_all=True, append_images=frames[1:])
    assert decode(animated)[:, 0, 0].tolist() == [255, 0, 0]


def test_exif_orientation_is_applied():
    upright = np.zeros((4, 6), np.uint8)
    upright[0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # stored turned: rotate by 90 degrees clockwise to see it
    stored = Image.fromarray(np.ascontiguousarray(np.rot90(upright)))
    assert np.array_equal(decode(encoded(stored, exif=exif))[0], upright)


def test_resize_crops_the_centre_without_blurring_and_antialiases():
    pixels = np.random.default_rng(0).integers(0, 256, (30, 41), dtype=np.uint8)
    assert np.array_equal(to_array(Image.fromarray(pixels), Form(30))[0], pixels[:, 5:35])
    stripes = np.tile(np.array([0, 255], np.uint8), (64, 32))
    small = to_array(Image.fromarray(stripes), Form(8))
    assert 100 < small.min() <= small.max() < 155  # nearest neighbour would give 0 or 255


def test_channels_are_converted():
    assert to_array(Image.new("RGB", (4, 4), (255, 0, 0)), Form(channels=1)).tolist()[0][0][0] == 76  # Rec. 601 luma
    assert to_array(Image.new("L", (4, 4), 9), Form(channels=3))[:, 0, 0].tolist() == [9, 9, 9]
    assert load("digits", image_size=12, channels=3).images.shape == (1797, 3, 12, 12)


def test_decompression_bomb_is_refused(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    with pytest.raises(BadImage, match="decompression bomb"):
        decode(encoded(Image.new("L", (15, 15))), Form(8))


def test_folder_with_nested_labels(tmp_path):
    for number, name in enumerate(["cat/a.png", "cat/deep/er/b.JPG", "dog/c.jpeg", "root.png"]):
        save(tmp_path / name, Image.new("L", (5, 5), 50 * number))
    save(tmp_path / "cat/._a.png", Image.new("L", (9, 9)))  # hidden, as in archives from macOS
    (tmp_path / "README.md").write_text("not looked at")
    raw = load("folder", tmp_path)
    assert raw.images[:, 0, 0, 0].tolist() == [0, 50, 100, 150]
    assert raw.labels.tolist() == [0, 0, 1, -1]
    assert raw.classes == ("cat", "dog")
    assert raw.images.shape == (4, 1, 5, 5)
    save(tmp_path / "dog/colour.png", Image.new("RGB", (5, 5), (1, 2, 3)))
    raw = load("folder", tmp_path)
    assert raw.images.shape == (5, 3, 5, 5)  # grey ones become RGB among coloured ones
    assert raw.images[3, :, 0, 0].tolist() == [1, 2, 3]


def test_other_formats_are_read_like_png(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (6, 5, 3), dtype=np.uint8)
    options = {"a.webp": {"lossless": True}, "b.BMP": {}, "c.tif": {}, "d.tiff": {"compression": "tiff_lzw"}}
    for name, how in options.items():
        save(tmp_path / name, Image.fromarray(pixels), **how)
    assert (load("folder", tmp_path).images == pixels.transpose(2, 0, 1)).all()
    frames = [Image.new("L", (5, 6), shade) for shade in (40, 200)]
    save(tmp_path / "e.gif", frames[0], save_all=True, append_images=frames[1:])
    save(tmp_path / "f.tif", Image.new("I;16", (5, 6), 0x4567))
    raw = load("folder", tmp_path)
    assert raw.images[4:, :, 0, 0].tolist() == [[40] * 3, [0x45] * 3]


def test_files_of_other_endings_are_counted(tmp_path):
    for name in ("README", "a.txt", "b/c.TXT", "b/d.svg", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")
    with pytest.raises(PipelineError, match=r"no files for source 'folder': .*; it has 2 of ending \.txt, 1 without"):
        load("folder", tmp_path)
    save(tmp_path / "e.png", Image.new("L", (4, 4)))
    source = find_source(parse_config({"data": {"source": "folder", "path": str(tmp_path)}}))
    assert source.passed_over == {".txt": 2, "": 1, ".svg": 1}
    many = describe_passed_over({f".{number:02}": 3 for number in range(12)})
    assert many.endswith("3 of ending .09, 6 of 2 other endings")


def test_too_little_memory_is_no_bad_image(tmp_path, monkeypatch):
    save(tmp_path / "a.png", Image.new("L", (4, 4)))

    def full(*_):
        raise MemoryError

    monkeypatch.setattr(image_files, "to_array", full)
    with pytest.raises(PipelineError, match=r"/a\.png: there is not enough memory"):
        load("folder", tmp_path, on_bad_image="skip")


def test_folder_with_splits(tmp_path):
    names = ["train/x/1.png", "train/y/2.png", "val/x/3.png", "test/y/4.png", "preview.png", "extra/5.png"]
    for name in names:
        save(tmp_path / name, Image.new("L", (4, 4)))
    raw = load("folder", tmp_path)
    assert raw.splits.tolist() == ["test", "train", "train", "validation"]
    assert raw.labels.tolist() == [1, 0, 1, 0]
    assert raw.classes == ("x", "y")
    assert [entry["file"] for entry in raw.skipped] == ["extra/5.png", "preview.png"]


def test_a_class_called_train_is_no_split(tmp_path):
    for name in ("car/1.png", "plane/2.png", "train/3.png"):
        save(tmp_path / name, Image.new("L", (4, 4)))
    raw = load("folder", tmp_path)
    assert raw.classes == ("car", "plane", "train")
    assert set(raw.splits) == {"train"}


def test_bad_images_fail_or_are_skipped(tmp_path):
    save(tmp_path / "good.png", Image.new("L", (4, 4)))
    (tmp_path / "text.png").write_text("I am no image")
    cut = encoded(Image.effect_noise((64, 64), 50))
    (tmp_path / "cut.png").write_bytes(cut[: len(cut) // 2])
    with pytest.raises(PipelineError, match=r"cut\.png: .*truncated.*data\.on_bad_image=skip"):
        load("folder", tmp_path)
    raw = load("folder", tmp_path, on_bad_image="skip")
    assert len(raw.images) == 1
    assert [entry["file"] for entry in raw.skipped] == ["cut.png", "text.png"]
    assert raw.skipped[1]["reason"] == "not a PNG, JPEG, WEBP, BMP, TIFF or GIF image (13 bytes)"
    (tmp_path / "good.png").unlink()
    with pytest.raises(PipelineError, match=r"no readable image, 2 bad ones; cut\.png"):
        load("folder", tmp_path, on_bad_image="skip")


def test_sizes_that_differ_need_image_size(tmp_path):
    save(tmp_path / "a.png", Image.new("L", (8, 6)))
    save(tmp_path / "b.png", Image.new("L", (9, 6)))
    with pytest.raises(PipelineError, match=r"a\.png is 8x6 pixels, b\.png is 9x6; set data\.image_size"):
        load("folder", tmp_path)
    assert load("folder", tmp_path, image_size=4).images.shape == (2, 1, 4, 4)


def test_many_images_lie_in_temporary_files(monkeypatch):
    rng = np.random.default_rng(0)
    images = [rng.integers(0, 256, (1 if number % 3 else 3, 8, 8), dtype=np.uint8) for number in range(40)]
    files = []
    make = collector._on_disk

    def on_disk(size):
        files.append(size)
        return make(size)

    monkeypatch.setattr(collector, "_on_disk", on_disk)

    def collect():
        gathered = collector.Collector("fail", "here")
        for number in rng.permutation(len(images)).tolist():
            gathered.add(number, str(number), images[number])
        return gathered.finish()

    in_memory, indices = collect()
    assert not files
    monkeypatch.setattr(collector, "IN_MEMORY", 1000)
    monkeypatch.setattr(collector, "_BLOCK", 500)
    on_storage, again = collect()
    assert files[-1] == 40 * 3 * 64
    assert len(files) > 5
    assert (on_storage == in_memory).all()
    assert (indices == again).all()


@pytest.mark.parametrize(("mode", "kind"), [("F", "floating-point"), ("I", "32-bit")])
def test_pixels_that_do_not_say_what_is_white_are_refused(mode, kind):
    content = encoded(Image.new(mode, (4, 4), 1), "TIFF")
    with pytest.raises(BadImage, match=f"{kind} pixels from 1 to 1 do not say where white is"):
        decode(content)
    assert decode(encoded(Image.new("I;16", (4, 4), 0x4567), "TIFF")).tolist() == [[[0x45] * 4] * 4]
