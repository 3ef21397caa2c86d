"""Emoji of two vendors in 32x32 or 64x64 colour, as one Parquet file, out of npm packages.

Those of 32x32 are in emoji-datasource, those of 64x64 in emoji-datasource-google and -twitter (74 and 62 MB). Every
picture of Google's and Twitter's sheets (cells with a border of one pixel), its transparency laid on white, without
repeated pictures. The label is the emoji's category. Both vendors' versions of an emoji and all its skin tones are in
one split, drawn by a hash of the emoji's code points: 80 % train, 10 % validation, 10 % test.

    python benchmarks/data/emoji.py                                   # runs/sources/emoji
    python benchmarks/data/emoji.py runs/sources/emoji-64 --side 64
    python -m pipeline.run --config configs/emoji.yaml name=emoji-64 data.path=runs/sources/emoji-64
"""

import argparse
import hashlib
import io
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from npm import fetch
from PIL import Image

PACKAGE, VERSION = "emoji-datasource", "16.0.0"
VENDORS = ("google", "twitter")
SIDES = (32, 64)  # the vendors' own packages have sheets of both, the common one of 32


def split_of(code: str) -> str:
    """Of a base emoji, by its code points."""
    part = int(hashlib.sha256(code.encode()).hexdigest(), 16) % 10
    return ("validation", "test")[part] if part < 2 else "train"


def cut(sheet: Image.Image, column: int, row: int, side: int) -> Image.Image:
    """One cell without its border, on white."""
    left, top = column * (side + 2) + 1, row * (side + 2) + 1
    cell = sheet.crop((left, top, left + side, top + side))
    return Image.alpha_composite(Image.new("RGBA", cell.size, "white"), cell).convert("RGB")


def pictures(
    records: list[dict[str, Any]], sheets: dict[str, Image.Image], side: int
) -> Iterator[tuple[Image.Image, str, str]]:
    """(picture, category, split) of every emoji, skin tone and vendor, each picture once."""
    seen = set()
    for record in sorted(records, key=lambda r: r["sort_order"]):
        for variant in (record, *record.get("skin_variations", {}).values()):
            for vendor, sheet in sheets.items():
                if not variant[f"has_img_{vendor}"]:
                    continue
                picture = cut(sheet, variant["sheet_x"], variant["sheet_y"], side)
                if (digest := hashlib.sha256(picture.tobytes()).digest()) not in seen:
                    seen.add(digest)
                    yield picture, record["category"], split_of(record["unified"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=Path("runs/sources/emoji"))
    parser.add_argument("--side", type=int, choices=SIDES, default=32, help="pixels")
    arguments = parser.parse_args()
    folder = arguments.folder
    folder.mkdir(parents=True, exist_ok=True)
    if arguments.side == 32:
        packages: dict[str, tuple[str, ...]] = {PACKAGE: VENDORS}
    else:
        packages = {f"{PACKAGE}-{vendor}": (vendor,) for vendor in VENDORS}
    sheets, files = {}, {}
    for package, vendors in packages.items():
        paths = {vendor: f"img/{vendor}/sheets/{arguments.side}.png" for vendor in vendors}
        files = fetch(f"{package}@{VERSION}", ["emoji.json", *paths.values()])
        sheets |= {vendor: Image.open(io.BytesIO(files[path])).convert("RGBA") for vendor, path in paths.items()}
    columns: dict[str, list[Any]] = {"image": [], "label": [], "split": []}
    for picture, category, split in pictures(json.loads(files["emoji.json"]), sheets, arguments.side):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        for name, value in zip(columns, (buffer.getvalue(), category, split), strict=True):
            columns[name].append(value)
    pq.write_table(pa.table(columns), folder / "emoji.parquet")
    print(f"{len(columns['image']):,} pictures in {folder}: {dict(Counter(columns['split']))}")


if __name__ == "__main__":
    main()
