"""From templates to pages, and from numbers to the texts of a table."""

import base64
import hashlib
import math
import os
import platform
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jinja2 import Environment, PackageLoader, StrictUndefined

__all__ = ["Entry", "format_column", "machine", "render"]


class Entry(NamedTuple):
    """A number of the table as text.

    Attributes:
        value: the mean, an en dash where there is none.
        spread: the standard deviation over draws, or empty.
    """

    value: str
    spread: str


def _significant(value: float, digits: int) -> float:
    return round(value, digits - 1 - math.floor(math.log10(abs(value)))) if value else value


def format_column(
    values: Sequence[float | None], spreads: Sequence[float | None], small: bool = False, rate: bool = False
) -> tuple[list[Entry], int]:
    """One column of the table, all with the same decimals: four digits of the largest, or one more for the smallest.

    Args:
        values: means; None where there is none.
        spreads: standard deviations, as many.
        small: show the column times 1000 when all of it is below 0.1.
        rate: figures over several orders of magnitude, rounded to three digits each.

    Returns:
        The entries, and the factor 1 or 1000 by which they were multiplied.

    Example:
        >>> format_column([287.61, None, 0.5], [1.25, None, None])
        ([Entry(value='287.61', spread='1.25'), Entry(value='–', spread=''), Entry(value='0.50', spread='')], 1)
    """
    largest = max((abs(value) for value in values if value is not None), default=0.0)
    factor = 1000 if small and 0 < largest < 0.1 else 1
    decimals = 3 if not largest else max(0, min(3, 3 - math.floor(math.log10(largest * factor))))
    least = min((value * factor for value in values if value), default=0.0)
    # 143.4 ± 1.0 in one row must not make 0.48 ± 0.10 of another 0.5.
    if not rate and decimals == 1 and 0 < least < 1:
        decimals = 2

    def text(value: float | None, digits: int, missing: str) -> str:
        if value is None:
            return missing
        value = _significant(value, digits) if rate else value * factor
        return f"{value:,.{decimals}f}".replace("-", "\N{MINUS SIGN}")

    pairs = zip(values, spreads, strict=True)
    return [Entry(text(mean, 3, "\N{EN DASH}"), text(spread, 2, "")) for mean, spread in pairs], factor


def machine() -> str:
    """Processor and accelerator of this machine; the page is usually made where the run was."""
    names = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""  # Linux has no better place
    cpu = re.search(r"^model name\s*: (.*)", names, re.M)
    text = f"{cpu[1] if cpu else platform.processor() or platform.machine()}, {os.cpu_count()} logical CPUs"
    return text + (f", {torch.cuda.get_device_name()}" if torch.cuda.is_available() else "")


def _csp_hash(script: str) -> str:
    """The source expression that lets a page's Content-Security-Policy run this inline script and no other."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()


def render(content: Mapping[str, Any], template: str = "report.html.j2") -> bytes:
    """A page from one of this package's templates and its variables, every one escaped."""
    options: dict[str, Any] = {"autoescape": True, "trim_blocks": True, "lstrip_blocks": True}
    environment = Environment(loader=PackageLoader("pipeline.judge.pages", "."), undefined=StrictUndefined, **options)
    environment.filters["data_uri"] = lambda png: "data:image/png;base64," + base64.b64encode(png).decode()
    environment.filters["csp_hash"] = _csp_hash
    return environment.get_template(template).render(content).encode()
