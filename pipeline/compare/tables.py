"""The tables of a comparison: Markdown for a document, CSV with all rows and seeds for whoever plots them."""

import csv
import html
import io
from collections.abc import Mapping, Sequence
from typing import Any

from pipeline.compare.page import columns_of, lines_of, tried

__all__ = ["against_table", "csv_table", "markdown_table"]

_LEFT_OUT = {"sliced_wasserstein", "nearest", "passes", "peak_mb"}


def _table(rows: Sequence[Sequence[str]]) -> str:
    # A label may hold what Markdown or HTML would take for markup.
    escaped = [[html.escape(cell, quote=False).replace("|", r"\|") for cell in cells] for cells in rows]
    return "".join("| " + " | ".join(cells) + " |\n" for cells in escaped)


def markdown_table(results: Mapping[str, Any]) -> str:
    """The study's table in Markdown, a line for each row, grouped by autoencoder.

    Args:
        results: content of `compare/results.json`.

    Returns:
        The table with its heading, means ± standard deviations over seeds, ending in a newline.

    Example:
        >>> row = {"autoencoder": "vae", "label": "GMM", "bound": False, "figures": {"fd": 14.0, "mmd2": 2e-4}}
        >>> results = {"extractor": {"figure": "FD-classifier"}, "autoencoders": [{"name": "vae", "label": "VAE"}]}
        >>> print(markdown_table(results | {"rows": [row]}).splitlines()[2])
        | VAE | GMM | 14.00 | – | – | – | – | – | 0.200 | – | – | – |
    """
    columns = [column for column in columns_of(results["rows"]) if column.key not in _LEFT_OUT]
    lines, factors = lines_of(results["rows"], columns)
    names = {"fd": results["extractor"]["figure"], "kid": "KID", "mmd2": "MMD²"}
    if "second_extractor" in results:
        names["fd_second"] = results["second_extractor"]["figure"]
    headings = [names.get(c.key, c.heading.lower()) + (" · 1e3" if factors[c.key] == 1000 else "") for c in columns]
    table = [["autoencoder", "latents", *headings], ["---"] * (len(headings) + 2)]
    for one in results["autoencoders"]:
        name = one["label"]
        for line in (line for line in lines if line.record["autoencoder"] == one["name"]):
            cells = [line.cells[column.key] for column in columns]
            texts = [f"{cell.value} ± {cell.spread}" if cell.spread else cell.value for cell in cells]
            table.append([name, line.record["label"] + (", the bound" if line.record["bound"] else ""), *texts])
            name = ""  # once for its group
    return _table(table)


def against_table(results: Mapping[str, Any]) -> str:
    """The sampler net against each generator in Markdown, a table for each extractor; empty where nothing is decided.

    Example:
        >>> one = {"label": "GMM", "decoder": False, "bound": False, "pairs": 21, "ahead": 20}
        >>> one |= {"mean": 0.5, "low": 0.3, "high": 0.7, "verdict": "better"}
        >>> print(against_table({"against": [one]}).splitlines()[2])
        | GMM | 20 of 21 | 0.5 | 0.3 to 0.7 | better |
    """
    tables = []
    for key, of in (("against", "extractor"), ("against_second", "second_extractor")):
        if results.get(key):
            tables.append(_against(results[key], results.get(of, {}).get("figure", "FD")))
    return "\n".join(tables)


def _against(rows: Sequence[Mapping[str, Any]], figure: str) -> str:
    table = [["sampler net against", "pairs ahead", f"{figure} lower by", "95 % interval", "the net is"], ["---"] * 5]
    for one in rows:
        ends = "–" if one["low"] is None else f"{one['low']:.3g} to {one['high']:.3g}"
        label = one["label"] + ", the bound" * one["bound"] + ", with phase decoder" * one["decoder"]
        table.append([label, f"{one['ahead']} of {one['pairs']}", f"{one['mean']:.3g}", ends, one["verdict"]])
    return _table(table)


def csv_table(results: Mapping[str, Any]) -> str:
    """Every row and seed with all its figures, a header first.

    Example:
        >>> row = {"autoencoder": "vae", "generator": "gmm", "label": "GMM", "bound": False, "setting": None,
        ...        "passes": 0, "figures": {"fd": 14.0}, "values": {"fd": [13.0, 15.0]}}
        >>> print(csv_table({"seeds": [0, 1], "rows": [row]}), end="")
        autoencoder,generator,label,bound,setting,tried,passes,seed,fd
        vae,gmm,GMM,False,,1,0,0,13.0
        vae,gmm,GMM,False,,1,0,1,15.0
    """
    figures = list(dict.fromkeys(name for row in results["rows"] for name in row["values"]))
    about = ("autoencoder", "generator", "label", "bound", "setting")
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow([*about, "tried", "passes", "seed", *figures])
    for row in results["rows"]:
        for number, seed in enumerate(results["seeds"]):
            of = [row["values"].get(name, []) for name in figures]
            values = [series[number] if number < len(series) else None for series in of]
            own = [row[name] for name in about] + [tried(row), row["passes"], seed]
            writer.writerow([*own, *values])
    return file.getvalue()
