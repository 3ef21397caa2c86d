"""The scripts in benchmarks/data, as far as they go without a registry."""

import importlib
import sys
from pathlib import Path

import pytest
from PIL import Image

FOLDER = Path(__file__).parents[1] / "benchmarks" / "data"


@pytest.fixture
def emoji():
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("emoji")
    sys.path.remove(str(FOLDER))
    for name in ("emoji", "npm"):
        del sys.modules[name]


def sheet(colours):
    """A row of cells: a border in the next cell's way, and a transparent picture with a coloured left half."""
    image = Image.new("RGBA", (34 * len(colours), 34), (1, 2, 3, 255))
    for column, colour in enumerate(colours):
        image.paste((0, 0, 0, 0), (34 * column + 1, 1, 34 * column + 33, 33))
        image.paste(colour, (34 * column + 1, 1, 34 * column + 17, 33))
    return image


def test_pictures_lie_on_white_without_borders_and_repetitions(emoji):
    sheets = {
        "google": sheet(["red", "red", "blue"]),
        "twitter": sheet(["green", "blue", "green"]),
    }

    def there(column, **more):
        return {"sheet_x": column, "sheet_y": 0, "has_img_google": True, "has_img_twitter": True} | more

    records = [
        there(2, unified="B", category="Objects", sort_order=2),
        there(
            0, unified="A", category="People", sort_order=1, skin_variations={"1": there(1, has_img_twitter=False)}
        ),
    ]
    found = [
        (picture.getpixel((0, 0)), picture.getpixel((31, 31)), *rest)
        for picture, *rest in emoji.pictures(records, sheets)
    ]
    white = (255, 255, 255)
    assert found == [
        ((255, 0, 0), white, "People", emoji.split_of("A")),
        ((0, 128, 0), white, "People", emoji.split_of("A")),
        ((0, 0, 255), white, "Objects", emoji.split_of("B")),
    ]


def test_a_tenth_each_is_held_out(emoji):
    splits = [emoji.split_of(f"{code:X}") for code in range(3000)]
    assert {split: round(splits.count(split) / 3000, 1) for split in set(splits)} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }
