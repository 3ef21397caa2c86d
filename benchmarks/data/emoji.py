"""Emoji of two vendors in 32x32 colour, as one Parquet file, out of the npm package emoji-datasource.

Every picture of Google's and Twitter's sheets (cells of 34 pixels with a border of 1), its transparency laid on
white, without repeated pictures. The label is the emoji's category. Both vendors' versions of an emoji and all its
skin tones are in one split, drawn by a hash of the emoji's code points: 80 % train, 10 % validation, 10 % test.

    python benchmarks/data/emoji.py [FOLDER]     # runs/sources/emoji
    python -m pipeline.run name=emoji data.source=parquet data.path=runs/sources/emoji model.latent_dim=64
"""

import hashlib
import io
import json
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from npm import fetch
from PIL import Image

PACKAGE = "emoji-datasource@16.0.0"
VENDORS = ("google", "twitter")
CELL, SIDE = 34, 32


def split_of(code: str) -> str:
    """Of a base emoji, by its code points."""
    part = int(hashlib.sha256(code.encode()).hexdigest(), 16) % 10
    return ("validation", "test")[part] if part < 2 else "train"


def cut(sheet: Image.Image, column: int, row: int) -> Image.Image:
    """One cell without its border, on white."""
    left, top = column * CELL + 1, row * CELL + 1
    cell = sheet.crop((left, top, left + SIDE, top + SIDE))
    return Image.alpha_composite(Image.new("RGBA", cell.size, "white"), cell).convert("RGB")


def pictures(records: list[dict[str, Any]], sheets: dict[str, Image.Image]) -> Iterator[tuple[Image.Image, str, str]]:
    """(picture, category, split) of every emoji, skin tone and vendor, each picture once."""
    seen = set()
    for record in sorted(records, key=lambda r: r["sort_order"]):
        for variant in (record, *record.get("skin_variations", {}).values()):
            for vendor, sheet in sheets.items():
                if not variant[f"has_img_{vendor}"]:
                    continue
                picture = cut(sheet, variant["sheet_x"], variant["sheet_y"])
                if (digest := hashlib.sha256(picture.tobytes()).digest()) not in seen:
                    seen.add(digest)
                    yield picture, record["category"], split_of(record["unified"])


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs/sources/emoji")
    folder.mkdir(parents=True, exist_ok=True)
    paths = {vendor: f"img/{vendor}/sheets/32.png" for vendor in VENDORS}
    files = fetch(PACKAGE, ["emoji.json", *paths.values()])
    sheets = {vendor: Image.open(io.BytesIO(files[path])).convert("RGBA") for vendor, path in paths.items()}
    columns: dict[str, list[Any]] = {"image": [], "label": [], "split": []}
    for picture, category, split in pictures(json.loads(files["emoji.json"]), sheets):
        buffer = io.BytesIO()
        picture.save(buffer, "PNG")
        for name, value in zip(columns, (buffer.getvalue(), category, split), strict=True):
            columns[name].append(value)
    pq.write_table(pa.table(columns), folder / "emoji.parquet")
    print(f"{len(columns['image']):,} pictures in {folder}: {dict(Counter(columns['split']))}")


if __name__ == "__main__":
    main()
