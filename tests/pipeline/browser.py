"""Pages in a real browser: what a script sees there, and screenshots, light and dark.

The documentation's screenshots are made by

    python tests/pipeline/browser.py runs/mnist-2/report/index.html docs/images/report 1200,1150
    python tests/pipeline/browser.py runs/digits_study/compare/index.html docs/images/compare 1200,1300
"""

import html
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

CHROMIUM = shutil.which("chromium")
DARK = "--blink-settings=preferredColorScheme=0"
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--mute-audio"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--hide-scrollbars"),
    "--virtual-time-budget=5000",
)

needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


def _run(page: Path, *flags: str) -> str:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory() as profile:
        command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, page.resolve().as_uri()]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def probed(page: Path, *flags: str) -> Any:
    """What a page's own script has left as JSON in `<pre id="probe">`."""
    found = re.search(r'<pre id="probe">(.*?)</pre>', _run(page, "--dump-dom", *flags), re.S)
    assert found is not None
    return json.loads(html.unescape(found[1]))


def screenshot(page: Path, png: Path, size: str, dark: bool = False) -> None:
    """The top of a page as a picture, `size` "width,height" in its own pixels."""
    _run(page, f"--screenshot={png.resolve()}", f"--window-size={size}", *[DARK] * dark)


def main(page: str, stem: str, size: str = "1200,1000") -> None:
    for dark in (False, True):
        png = Path(f"{stem}-{'dark' if dark else 'light'}.png")
        screenshot(Path(page), png, size, dark)
        Image.open(png).convert("RGB").quantize(128).save(png, optimize=True)  # half of the bytes, hardly seen


if __name__ == "__main__":
    main(*sys.argv[1:])
