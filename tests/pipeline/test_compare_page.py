"""The page of a study: whole, safe, self-contained and sortable; and its table in Markdown."""

import base64
import csv
import hashlib
import html
import io
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from browser import needs_browser, probed
from PIL import Image

from pipeline.compare.page import make_page, speed
from pipeline.compare.tables import against_table, csv_table, markdown_table
from pipeline.judge.pages.pictures import DARK, LIGHT, image_grid

ATTACK = "GMM <b>& | co"
FD = {"prior": 47.0, "gmm": 14.0, "score_difference": 10.5, "encoder": 9.5}
LABELS = {"prior": "prior N(0, I)", "gmm": ATTACK, "score_difference": "sampler net", "encoder": "encoder posterior"}
LOW = ("fd", "kid", "mmd2", "sliced_wasserstein", "seconds", "peak_mb")
HIGH = ("precision", "recall", "density", "coverage", "latents_per_s")
COLUMNS = (*LOW[:2], *HIGH[:4], *LOW[2:4], "nearest", "latents_per_s", "passes", "tried", *LOW[4:])


def over_seeds(means, seeds):
    values = {key: [mean and mean * (1 + 0.01 * (seed - 1)) for seed in range(seeds)] for key, mean in means.items()}
    if seeds == 1:
        values = {key: [mean] for key, mean in means.items()}
    spread = {key: None if mean is None else (mean / 100 if seeds > 1 else 0.0) for key, mean in means.items()}
    return {"figures": means, "spread": spread, "values": values}


def study(seeds=3, worse=1.2):
    """Two autoencoders with four generators each; on the second every figure is `worse` times what it is first."""
    autoencoders, rows = [], []
    for scale, name, label in ((worse, "beta_vae", "beta-VAE"), (1.0, "ldc_svgd", "LDC-VAE, SVGD encoder")):
        chosen = (
            {"knob": "weight of the KL", "setting": 4.0} if name == "beta_vae" else {"knob": None, "setting": None}
        )
        table = [{"setting": 0.25, "fd": None}, {"setting": 4.0, "fd": 13.25}] if name == "beta_vae" else []
        figures = {"mse": 0.01 * scale, "fd": 9.7 * scale, "seconds": 300.0, "peak_mb": 600.0}
        about = {"name": name, "label": label, "decoder_passes": 1, "candidates": table}
        autoencoders.append(about | chosen | over_seeds(figures, seeds))
        for place, (generator, fd) in enumerate(FD.items()):
            figures = dict.fromkeys(("fd", *LOW), fd * scale / 100) | {"fd": fd * scale, "mmd2": fd * scale / 1e5}
            figures |= dict.fromkeys(HIGH, 9.0 / (fd * scale)) | {"latents_per_s": 10 ** (7 - place) / scale}
            figures |= {"nearest_train": 0.5 if generator == "encoder" else 0.99, "nearest_held_out": 1.0}
            if generator == "gmm" and name == "beta_vae":
                figures |= {"kid": None, "latents_per_s": None, "nearest_train": None, "peak_mb": None}
            tuned = {"knob": "components", "setting": 50, "candidates": [{"setting": 50, "fd": 13.0}]}
            free = {"knob": None, "setting": None, "candidates": []}
            about = {"autoencoder": name, "generator": generator, "label": LABELS[generator], "passes": place}
            about |= {"bound": generator == "encoder", "grid": f"compare/grids/{name}-{generator}.png"}
            rows.append(about | (tuned if generator == "gmm" else free) | over_seeds(figures, seeds))
    return {
        "schema": 1,
        "split": "test",
        "num_images": 10_000,
        "num_reference": 10_000,
        "neighbours": 5,
        "draws": 1,
        "seeds": list(range(seeds)),
        "extractor": {"name": "classifier", "figure": "FD-classifier", "accuracy": None, "sha256": "ab" * 32},
        "floor": {"fd": 0.09, "kid": 1e-3, "precision": 0.95, "recall": 0.94, "density": 1.0, "coverage": 0.97},
        "data": {"source": "idx", "shape": [1, 28, 28], "train": 30_000, "validation": 6_000, "test": 10_000},
        "budget": {"epochs": 12, "batch_size": 128, "latent_dim": 16, "parameters": 1_234_567},
        "command": "python -m pipeline.compare --config 'a & b.yaml'",
        "machine": "Some CPU, 2 logical CPUs",
        "threads": 1,
        "date": "2026-11-22",
        "autoencoders": autoencoders,
        "rows": rows,
        "goals": [
            {"claim": "lower FD than <i>GMM</i>", "met": True, "detail": "10.5 ± 0.1 against 14.0 ± 0.1"},
            {"claim": "lower FD than the bound", "met": False, "detail": "10.5 against 9.5"},
        ],
        "failures": [{"autoencoder": "vampprior", "generator": None, "reason": "loss is <nan>"}],
    }


def grids_of(results):
    """A grid of its own for every row."""
    shades = np.linspace(0, 1, len(results["rows"]))
    images = (np.full((4, 1, 8, 8), shade) for shade in shades)
    return {row["grid"]: image_grid(image, 2) for row, image in zip(results["rows"], images, strict=True)}


@pytest.fixture(scope="module", params=[3, 1], ids=["three seeds", "one seed"])
def made(request):
    """A study not to be changed: (results, files, page)."""
    results = study(request.param)
    files = make_page(results, grids_of(results))
    return results, files, files["compare/index.html"].decode()


class Balance(HTMLParser):
    """Collects the tags that are open; every end must close the last."""

    EMPTY = frozenset({"meta", "img", "source", "br", "link", "input", "hr"})

    def __init__(self):
        super().__init__()
        self.open, self.seen = [], []

    def handle_starttag(self, tag, attrs):
        self.seen.append(tag)
        assert len(dict(attrs)) == len(attrs), f"an attribute of {tag} comes twice"
        if tag not in self.EMPTY:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"line {self.getpos()[0]}"


def test_page_is_well_formed_and_loads_nothing(made):
    _, files, page = made
    parser = Balance()
    parser.feed(page)
    parser.close()
    assert not parser.open
    assert parser.seen.count("script") == 1
    loaded = re.findall(r"""(?:src|srcset|href|url|action|data)\s*[=(]\s*["']([^"']*)""", page)
    assert {url.partition(",")[0] for url in loaded} == {"data:image/png;base64", "https://arxiv.org/abs/2109.10640"}
    assert "default-src 'none'" in page
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))
    inlined = {base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    assert {content for name, content in files.items() if name.endswith(".png")} <= inlined


def test_the_policy_allows_the_script_and_no_other(made):
    page = made[2]
    script = re.search(r"<script>(.*?)</script>", page, re.S)[1]
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in policy
    assert policy.count("script-src") == 1
    assert "unsafe-inline" not in policy.partition("script-src")[2]
    assert not re.search(r"<[^>]*\son\w+=", page)  # a handler in an attribute would not run


def test_files_are_pictures_for_light_and_dark_pages_and_reproducible(made):
    results, files, _ = made
    pictures = {"speed", "speed-dark", "distances-ldc_svgd", "distances-ldc_svgd-dark"}
    assert set(files) == {"compare/index.html"} | {f"compare/{name}.png" for name in pictures}
    for name, content in files.items():
        if name.endswith(".png"):
            surface = DARK.surface if "dark" in name else LIGHT.surface
            corner = Image.open(io.BytesIO(content), formats=["PNG"]).convert("RGB").getpixel((2, 2))
            assert "#" + bytes(corner).hex() == surface
    assert make_page(results, grids_of(results)) == files


def test_markup_in_labels_and_values_is_text(made):
    page = made[2]
    assert "<b>" not in page
    assert "<i>GMM" not in page
    assert "<nan>" not in page
    assert "GMM &lt;b&gt;&amp; | co" in page
    assert "vampprior" in page
    assert "loss is &lt;nan&gt;" in page


def cells(page):
    """Row -> column -> (sort value, whether it is the column's best, text)."""
    body = page[page.index("data-sortable>") : page.index("Autoencoders</h2>")]
    found = {}
    for key, row in re.findall(r'<tr data-row="([^"]*)"(.*?)</tr>', body, re.S):
        cells = re.findall(r"<td( data-value=\"([^\"]*)\")?( class=\"top\")?>(.*?)</td>", row, re.S)
        texts = [html.unescape(re.sub(r"<.*?>", "", text)).split() for *_, text in cells]
        found[key] = {
            column: (value, bool(best), " ".join(text))
            for column, (_, value, best, _), text in zip(COLUMNS, cells, texts, strict=True)
        }
    return found


def test_the_table_has_every_row_with_its_numbers(made):
    results, _, page = made
    table = cells(page)
    assert list(table) == [f"{row['autoencoder']}/{row['generator']}" for row in results["rows"]] + ["floor"]
    several = len(results["seeds"]) > 1
    own = table["ldc_svgd/score_difference"]
    assert own["fd"] == ("10.5", True, "10.50 ±0.10" if several else "10.50")
    assert own["mmd2"][2].split()[0] == "0.105"
    assert own["latents_per_s"][2].split()[0] == "100,000"
    assert own["nearest"][2].split()[0] == "0.990"
    missing = table["beta_vae/gmm"]
    assert [key for key in COLUMNS if missing[key] == ("", False, "–")] == [
        "kid",
        "nearest",
        "latents_per_s",
        "peak_mb",
    ]
    assert table["floor"]["fd"][2] == "0.09"
    assert table["floor"]["passes"][2] == "–"
    assert [key for key, *_ in re.findall(r'<tr data-row="([^"]*)" class="[^"]*bound"', page)]
    assert page.count('class="first"') == 2  # a line above every autoencoder


def test_the_best_of_each_column_is_marked_bounds_left_out(made):
    table = cells(made[2])
    best = {column: [key for key, row in table.items() if row[column][1]] for column in COLUMNS}
    for column in (*LOW, *HIGH[:4]):  # all these go with FD, in which the bound would win
        assert best[column] == ["ldc_svgd/score_difference"], column
    assert best["latents_per_s"] == ["ldc_svgd/prior"]
    assert best["nearest"] == best["passes"] == []  # neither end is best
    section = made[2].partition("Autoencoders</h2>")[2]
    marked = re.findall(r'<tr data-autoencoder="(\w+)">(.*?)</tr>', section, re.S)
    assert {name: row.count('class="top"') for name, row in marked} == {"beta_vae": 2, "ldc_svgd": 4}  # two are equal


def test_goals_settings_and_what_was_tried_are_told(made):
    text = re.sub(r"\s+", " ", html.unescape(re.sub(r"<[^>]*>", " ", made[2])))
    assert "1 of 2 met" in text
    assert re.findall(r"(not met|met) lower FD than", text) == ["met", "not met"]
    assert "weight of the KL: 4" in text
    assert text.count("0.25 :") + text.count("0.25:") == 2  # in the table of autoencoders and in the tuning record
    assert ("that of sampler net on LDC-VAE, SVGD encoder : 10.50" in text) == (len(made[0]["seeds"]) > 1)
    assert "python -m pipeline.compare --config 'a & b.yaml'" in text
    assert "sha256 abababababab" in text
    assert "accurate" not in text  # this extractor's accuracy is not known


def sample_captions(page):
    part = page.partition("Samples</h2>")[2].partition("How it was made")[0]
    return [html.unescape(text).partition(", FD")[0] for text in re.findall(r"<figcaption>(.*?)</figcaption>", part)]


def test_samples_of_ldc_vae_come_first_then_the_best_of_each(made):
    captions = sample_captions(made[2])
    assert captions[:4] == list(LABELS.values())
    assert captions[4:] == ["beta-VAE: sampler net", "LDC-VAE, SVGD encoder: sampler net"]


def test_missing_grids_are_left_out():
    results = study()
    assert sample_captions(make_page(results, {})["compare/index.html"].decode()) == []
    kept = grids_of(results)
    del kept["compare/grids/ldc_svgd-score_difference.png"]
    captions = sample_captions(make_page(results, kept)["compare/index.html"].decode())
    assert captions == ["prior N(0, I)", ATTACK, "encoder posterior", "beta-VAE: sampler net"]


def test_a_study_with_little_in_it():
    results = study()
    results |= {"autoencoders": results["autoencoders"][:1], "goals": [], "failures": [], "floor": {}}
    results["rows"] = results["rows"][:4]
    files = make_page(results, {})
    assert "compare/distances-beta_vae.png" in files  # without an LDC-VAE the first autoencoder is shown
    assert "Goals</h2>" not in files["compare/index.html"].decode()
    assert "Failures</h2>" not in files["compare/index.html"].decode()
    results["rows"] = [row | {"candidates": []} for row in results["rows"] if not row["bound"]]
    results["autoencoders"] = [one | {"candidates": []} for one in results["autoencoders"]]
    page = make_page(results, {})["compare/index.html"].decode()
    assert not re.search(r"[Bb]ound", page.partition("<body>")[2].partition("<script>")[0])
    assert "<details>" not in page
    for row in results["rows"]:
        row["figures"] = dict.fromkeys(row["figures"])
        row["values"] = {}
    files = make_page(results, {})
    assert list(files) == ["compare/index.html"]
    assert "The lowest" not in files["compare/index.html"].decode().partition("</header>")[0]


def lead(results):
    page = make_page(results, {})["compare/index.html"].decode()
    return re.sub(r"\s+", " ", page.partition("<body>")[2].partition("Quality and speed")[0]), page


def test_the_lowest_is_named_when_it_is_lower_by_more_than_the_spread(made):
    page = re.sub(r"\s+", " ", made[2])
    if len(made[0]["seeds"]) > 1:
        assert "looking up training images is that of <strong>sampler net</strong>" in page
    else:
        assert "looking up training images is that of" not in page
        assert "and one seed tells no spread." in page


def test_a_lead_within_the_spread_over_seeds_is_no_lead():
    results = study(worse=1.001)
    shown, _ = lead(results)
    assert "is that of" not in shown
    assert re.search(
        r"No pair is clearly the best: sampler net on .* and sampler net on .* differ by .* 95 % interval", shown
    )


def test_a_study_that_decides_nothing_warns_and_names_no_winner():
    shown, page = lead(study() | {"doubts": ["12 <test> images are too few"], "goals": []})
    assert "12 &lt;test&gt; images are too few" in shown
    assert "is that of" not in shown
    assert 'class="top"' not in page
    assert 'class="top"' in lead(study())[1]


def test_speed_draws_sampler_nets_in_their_colour_and_the_bound_as_a_line():
    rows = study()["rows"][4:]

    def count(shown, colour):
        png = speed({"VAE": shown}, {"prior N(0, I)": "prior", "sampler net": "score_difference"}, "FD")
        picture = np.asarray(Image.open(io.BytesIO(png)).convert("RGB")).astype(int)
        wanted = [int(colour[i : i + 2], 16) for i in (1, 3, 5)]
        return int((np.abs(picture - wanted).max(-1) <= 20).sum())

    prior, net, bound = rows[0], rows[2], rows[3]
    assert count([prior, net], LIGHT.sampler) > 1.5 * count([prior], LIGHT.sampler) > 0  # the legend has one too
    assert count([prior, bound], LIGHT.muted) > count([prior], LIGHT.muted) + 500
    unknown = net | {"figures": net["figures"] | {"latents_per_s": None}}
    assert count([prior, unknown], LIGHT.sampler) == count([prior], LIGHT.sampler)


def test_markdown_has_a_line_for_each_row(made):
    results = made[0]
    lines = markdown_table(results).splitlines()
    assert len(lines) == 2 + len(results["rows"])
    heading, rule, *rows = ([part.strip() for part in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines)
    assert heading[:8] == ["autoencoder", "latents", "FD-classifier", "KID", *HIGH[:4]]
    assert heading[8:] == ["MMD² · 1e3", "latents/s", "settings tried", "training, s"]
    assert set(rule) == {"---"}
    assert {len(row) for row in rows} == {len(heading)}
    assert [row[0] for row in rows] == ["beta-VAE", "", "", "", "LDC-VAE, SVGD encoder", "", "", ""]
    assert rows[5][1] == r"GMM &lt;b&gt;&amp; \| co"
    assert rows[7][1] == "encoder posterior, the bound"
    assert rows[6][2] == ("10.50 ± 0.10" if len(results["seeds"]) > 1 else "10.50")
    assert rows[1][3] == "–"


def test_a_second_extractor_and_the_net_against_each_have_columns_of_their_own():
    results = study()
    one = {"generator": "gmm", "label": ATTACK, "decoder": False, "bound": False, "pairs": 6, "ahead": 5, "mean": 3.5}
    rows = [one | {"low": 3.1, "high": 3.9, "verdict": "better"}]
    rows += [one | {"decoder": True, "low": None, "high": None, "verdict": "not distinguishable"}]
    second = [one | {"mean": 1.7e-5, "low": 1.1e-5, "high": 2.3e-5, "verdict": "better"}]
    results |= {
        "against": rows,
        "against_second": second,
        "second_extractor": {"name": "random", "figure": "FD-random"},
    }
    for row in results["rows"]:
        row["figures"]["fd_second"], row["values"]["fd_second"] = 1.62e-4, [1.5e-4, 1.6e-4, 1.76e-4]
        row["spread"]["fd_second"] = 1.3e-5
    page = make_page(results, {})["compare/index.html"].decode()
    assert "5 of 6" in page
    assert "3.1 to 3.9" in page
    assert "FD-random lower by" in page
    assert "1.1e-05 to 2.3e-05" in page
    assert "not distinguishable" in page
    assert "0.162" in page  # times a thousand, or it would be 0.000
    table = markdown_table(results).splitlines()
    assert "FD-random · 1e3" in table[0]
    assert "0.162 ± 0.013" in table[2]
    lines = against_table(results).splitlines()
    assert lines[2].startswith(r"| GMM &lt;b&gt;&amp; \| co | 5 of 6 | 3.5 | 3.1 to 3.9 | better")
    assert lines[3].endswith("with phase decoder | 5 of 6 | 3.5 | – | not distinguishable |")
    assert against_table(study()) == ""


def test_the_csv_has_every_row_and_seed(made):
    results = made[0]
    rows = list(csv.DictReader(io.StringIO(csv_table(results))))
    assert len(rows) == len(results["rows"]) * len(results["seeds"])
    for row, (expected, number) in zip(
        rows, ((one, k) for one in results["rows"] for k in range(len(results["seeds"]))), strict=True
    ):
        assert row["label"] == expected["label"]
        assert float(row["fd"]) == expected["values"]["fd"][number]
        assert row["kid"] == (
            "" if expected["values"]["kid"][number] is None else str(expected["values"]["kid"][number])
        )


# In a browser

PROBE = """
addEventListener("load", () => {
  const headings = [...document.querySelectorAll("table[data-sortable] thead th")];
  const rows = () => [...document.querySelectorAll("table[data-sortable] tbody tr")].map((row) => row.dataset.row);
  const sorted = () => headings.map((heading) => heading.getAttribute("aria-sort"));
  const seen = { first: rows(), steps: [], buttons: headings.map((h) => h.querySelector("button").tabIndex) };
  for (const name of JOBS) {
    const index = headings.findIndex((heading) => heading.dataset.key === name || heading.innerText.trim() === name);
    headings[index].querySelector("button").click();
    seen.steps.push([sorted()[index], sorted().filter((state) => state !== "none").length, rows()]);
  }
  seen.foot = document.querySelector("table[data-sortable] tfoot tr").dataset.row;
  seen.overflow = document.documentElement.scrollWidth - innerWidth;
  seen.loaded = performance.getEntriesByType("resource").map((entry) => entry.name);
  seen.hint = document.getElementById("hint").hidden;
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
"""


def browse(page, folder, jobs, size):
    """What the browser makes of the page under its own policy, to which only the probe's hash is added."""
    probe = PROBE.replace("JOBS", json.dumps(jobs))
    digest = base64.b64encode(hashlib.sha256(probe.encode()).digest()).decode()
    page = page.replace("script-src ", f"script-src 'sha256-{digest}' ", 1)
    (folder / "copy.html").write_text(page.replace("</body>", f"<script>{probe}</script></body>"))
    return probed(folder / "copy.html", f"--window-size={size}")


@needs_browser
@pytest.mark.parametrize("size", ["1400,2000", "500,2000"], ids=["wide", "phone"])
def test_a_heading_sorts_in_a_browser(tmp_path, size):
    results = study()
    page = make_page(results, {})["compare/index.html"].decode()
    jobs = ["fd", "fd", "fd", "latents_per_s", "latents_per_s", "kid"]
    seen = browse(page, tmp_path, jobs, size)
    original = [f"{row['autoencoder']}/{row['generator']}" for row in results["rows"]]

    def ordered(column, descending):
        known = {f"{row['autoencoder']}/{row['generator']}": row["figures"][column] for row in results["rows"]}
        unknown = [key for key in original if known[key] is None]  # come last either way
        return sorted(known.keys() - set(unknown), key=lambda key: known[key], reverse=descending) + unknown

    assert seen["first"] == original
    assert seen["steps"] == [
        ["ascending", 1, ordered("fd", False)],
        ["descending", 1, ordered("fd", True)],
        ["none", 0, original],
        ["descending", 1, ordered("latents_per_s", True)],  # the best come first
        ["ascending", 1, ordered("latents_per_s", False)],
        ["ascending", 1, ordered("kid", False)],
    ]
    assert seen["foot"] == "floor"
    assert seen["buttons"] == [0] * (2 + len(COLUMNS))  # reached by the keyboard
    assert not seen["hint"]
    assert seen["overflow"] <= 0  # only the tables scroll sideways, not the page
    assert not [url for url in seen["loaded"] if not url.startswith("data:")]
