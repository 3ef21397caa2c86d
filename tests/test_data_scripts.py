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


def sheet(side, colours):
    """A row of cells: a border in the next cell's way, and a transparent picture with a coloured left half."""
    cell = side + 2
    image = Image.new("RGBA", (cell * len(colours), cell), (1, 2, 3, 255))
    for column, colour in enumerate(colours):
        left = cell * column + 1
        image.paste((0, 0, 0, 0), (left, 1, left + side, 1 + side))
        image.paste(colour, (left, 1, left + side // 2, 1 + side // 2))
    return image


@pytest.mark.parametrize("side", [32, 64])
def test_pictures_lie_on_white_without_borders_and_repetitions(emoji, side):
    sheets = {
        "google": sheet(side, ["red", "red", "blue"]),
        "twitter": sheet(side, ["green", "blue", "green"]),
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
        (picture.size, picture.getpixel((0, 0)), picture.getpixel((side - 1, side - 1)), *rest)
        for picture, *rest in emoji.pictures(records, sheets, side)
    ]
    white, size = (255, 255, 255), (side, side)
    assert found == [
        (size, (255, 0, 0), white, "People", emoji.split_of("A")),
        (size, (0, 128, 0), white, "People", emoji.split_of("A")),
        (size, (0, 0, 255), white, "Objects", emoji.split_of("B")),
    ]


def test_a_tenth_each_is_held_out(emoji):
    splits = [emoji.split_of(f"{code:X}") for code in range(3000)]
    assert {split: round(splits.count(split) / 3000, 1) for split in set(splits)} == {
        "train": 0.8,
        "validation": 0.1,
        "test": 0.1,
    }
