"""The report: a page that is whole, safe and self-contained, in a real browser too."""

import base64
import html
import io
import re
from functools import partial

import browser
import numpy as np
import pytest
import torch
from browser import DARK, needs_browser, probed
from PIL import Image

from ldcvae import LDCVAE, LDCVAEConfig
from pipeline.config.errors import PipelineError
from pipeline.config.load import parse_config
from pipeline.judge.pages.pictures import image_grid
from pipeline.judge.pages.render import format_column
from pipeline.report import make
from pipeline.report import stage as report
from pipeline.store.data.shards import encode_shard, write_split
from pipeline.store.history import HISTORY_FILES, write_history
from pipeline.store.model import MODEL_FILES, write_model
from pipeline.store.run import open_run

KEYS = ("fd", "kid", "precision", "recall", "density", "coverage", "mmd2", "sliced_wasserstein", "latents_per_s")
FD = {"prior": 28.76, "gaussian": 21.24, "gmm": 16.53, "langevin": 18.35, "sampler": 14.94, "encoder": 14.55}


def pixels(png):
    return np.asarray(Image.open(io.BytesIO(png)).convert("RGB"))


def metrics():
    generators = {}
    for number, (name, fd) in enumerate(FD.items()):
        means = dict(
            zip(KEYS, (fd, fd / 9e3, 0.7, 0.6, 0.9, 0.5 + number / 20, fd / 1e4, fd / 50, 4e6 / fd), strict=True)
        )
        generators[name] = means | {
            "spread": {key: abs(value) / 50 for key, value in means.items()},
            "values": {key: [value * 0.98, value, value * 1.02] for key, value in means.items()},
        }
    extractor = {"name": "classifier", "figure": "FD-classifier", "sha256": "ab" * 32, "accuracy": 0.97}
    return {"schema": 1, "split": "test", "extractor": extractor, "num_images": 2000, "draws": 3, "seed": 0} | {
        "reconstruction": {"mse": 0.0178, "fd": 14.69},
        "floor": {"fd": 0.5, "kid": 1e-5, "precision": 0.93, "recall": 0.94, "density": 1.0, "coverage": 0.95},
        "generators": generators,
    }


def log():
    lines = []
    for step in range(100, 2001, 100):
        shared = {"step": step, "seconds": step / 100}
        decay = 20 / step + 0.05
        first = {"loss": decay * 400, "reconstruction": decay * 9, "stein": 9 - decay, "validation_mse": decay / 9}
        lines.append({"phase": "autoencoder", "epoch": step // 50} | first | shared)
    for step in range(500, 3001, 500):
        second = {"field_rms": 30 / step, "validation_mmd2": 9 / step - 0.003, "variance_ratio": 1 - 40 / step}
        lines.append({"phase": "sampler", "validation_sliced_wasserstein": 99 / step} | second | {"step": step})
    return lines


def generated(shape):
    return np.random.default_rng(1).integers(0, 256, (120, *shape), dtype=np.uint8)


def finish(storage, figures=None, history=None, shape=(1, 8, 8), latent_dim=4, components=0, **keys):
    """A run whose earlier stages are done."""
    run = open_run(parse_config({"name": "digits", "storage": str(storage), **keys}))
    folder, rng = run.folder, np.random.default_rng(0)
    images = rng.integers(0, 256, (60, *shape), dtype=np.uint8)

    def prepare(_):
        info = {"source": "digits", "shape": list(shape), "classes": ["a", "b"], "label_counts": {"a": 30, "b": 30}}
        names = write_split(folder, "test", images, rng.integers(0, 2, 60), 40)
        return names, info | {"counts": {"train": 1234, "validation": 100, "test": 60}}

    def train(_):
        write_history(folder, log() if history is None else history)
        torch.manual_seed(0)
        model = LDCVAE(LDCVAEConfig(shape, latent_dim=latent_dim, width=16, base_components=components))
        write_model(folder, model)
        return [*HISTORY_FILES, *MODEL_FILES], {}

    def sample(_):
        names = [f"samples/images-{number:05d}.parquet" for number in range(3)]
        for name, part in zip(names, np.split(generated(shape), 3), strict=True):
            folder.write(name, encode_shard(part, None, "sample"))
        return names, {}

    def evaluate(_):
        folder.write_json("evaluation/metrics.json", metrics() if figures is None else figures)
        return ["evaluation/metrics.json"], {}

    for stage, work in zip(report.SHOWN, (prepare, train, sample, evaluate), strict=True):
        run.stage(stage, {}, work)
    return run


@pytest.fixture
def finished(tmp_path):
    return partial(finish, tmp_path)


@pytest.fixture(scope="module")
def default(tmp_path_factory):
    """A finished report, not to be changed: (its folder, manifest, page)."""
    run = finish(tmp_path_factory.mktemp("default"))
    manifest = report.run(run)
    return run.folder, manifest, run.folder.read("report/index.html").decode()


def page_of(run):
    report.run(run)
    return run.folder.read("report/index.html").decode()


def test_a_comparison_is_told_with_its_goals(finished):
    run = finished()
    goal = {"claim": "the <b>net</b> is better", "met": False, "detail": "10 against 9"}
    run.stage("compare", {}, lambda _: ([], {"goals": [goal]}))
    page = page_of(run)
    assert "Not met:</strong> the &lt;b&gt;net&lt;/b&gt; is better: 10 against 9" in page
    assert 'href="../compare/index.html"' in page


# Numbers


def test_interpolation_keeps_the_law_of_the_noise():
    start, end = torch.randn(2, 4000, 16, generator=torch.Generator().manual_seed(0))
    path = make.interpolate(start, end, 5)
    torch.testing.assert_close(path[:, 0], start)
    torch.testing.assert_close(path[:, -1], end, atol=1e-4, rtol=1e-4)
    assert (path.square().mean((0, 2)) - 1).abs().max() < 0.05  # on a straight line the middle has 0.5


def test_interpolation_in_one_dimension_is_finite():
    assert make.interpolate(torch.tensor([[1.0], [1.0]]), torch.tensor([[2.0], [-2.0]]), 9).isfinite().all()


@pytest.mark.parametrize(
    ("values", "kind", "texts", "factor"),
    [
        ([1234.5, 0.5], {}, ["1,234", "0"], 1),
        ([287.63, 0.5], {}, ["287.63", "0.50"], 1),
        ([287.63, 5.0], {}, ["287.6", "5.0"], 1),
        ([28.763, -0.5], {}, ["28.76", "−0.50"], 1),
        ([0.70004, 0.06], {}, ["0.700", "0.060"], 1),
        ([0.0123, 0.06], {}, ["0.012", "0.060"], 1),
        ([0.0123, -0.00004], {"small": True}, ["12.30", "−0.04"], 1000),
        ([1234567.0, 334.2], {"rate": True}, ["1,230,000", "334"], 1),
        ([0.0, None], {}, ["0.000", "–"], 1),
        ([None], {}, ["–"], 1),
    ],
)
def test_numbers_have_sensible_digits(values, kind, texts, factor):
    cells, found = format_column(values, [None] * len(values), **kind)
    assert ([cell.value for cell in cells], found) == (texts, factor)


# The page


def test_page_loads_nothing_and_its_pictures_are_the_files(default):
    folder, manifest, page = default
    loaded = re.findall(r"""(?:src|srcset|href|url|action|data)\s*[=(]\s*["']?([^"'\s>)]*)""", page)
    assert {url.partition(",")[0] for url in loaded} == {"data:image/png;base64", "https://arxiv.org/abs/2109.10640"}
    assert "<script" not in page
    assert "default-src 'none'" in page
    inlined = {base64.b64decode(text) for text in re.findall(r"data:image/png;base64,([^\"]+)", page)}
    files = {name for name in manifest.outputs if name.endswith(".png")}
    assert inlined == {folder.read(name) for name in files}
    assert len(files) == 3 + 2 * (2 + 8 + 1)  # galleries once; planes, curves and distances for light and dark
    assert folder.read("report/samples.png") == image_grid(generated((1, 8, 8))[:100] / 255, 10)
    assert all(alt.strip() for alt in re.findall(r'<img [^>]*alt="([^"]*)"', page))


def test_generators_are_called_as_their_records_say(default):
    rows = dict(re.findall(r'<tr data-row="(\w+)".*?<th[^>]*>(.*?)</th>', default[2], re.S))
    names = {key: " ".join(html.unescape(re.sub(r"<.*?>", "", text)).split()) for key, text in rows.items()}
    assert {key: names[key] for key in FD} == {
        "prior": "N(0, I) what a plain VAE draws from",
        "gaussian": "Gaussian fit one full Gaussian, fitted to the encodings",
        "gmm": "GMM, 10 components fitted to the encodings",
        "langevin": "Annealed Langevin, 120 steps iterative; the yardstick",
        "sampler": "Sampler net LDC-VAE, one forward pass",
        "encoder": "Encoder posterior bound: needs training images, memorises",
    }


def test_a_stage_that_has_not_run_is_named(finished):
    run = finished()
    run.folder.remove("evaluation")
    with pytest.raises(PipelineError, match=r"python -m pipeline\.evaluate"):
        report.run(open_run(run.config))


def test_page_is_made_once_and_again_when_what_it_shows_changes(finished, capsys):
    run = finished(history=[])
    first = report.run(run)
    assert report.run(run) == report.run(open_run(run.config)) == first
    assert capsys.readouterr().out.rstrip().endswith("report/index.html")
    run.folder.write("report/old.png", b"")
    again = report.run(run.with_config(parse_config(run.config.model_dump() | {"report": {"title": "Other"}})))
    assert again.outputs["report/index.html"] != first.outputs["report/index.html"]
    assert again.outputs["report/samples.png"] == first.outputs["report/samples.png"]
    assert not run.folder.exists("report/old.png")


def test_a_damaged_shard_of_samples_is_refused(finished):
    run = finished()
    run.folder.write("samples/images-00001.parquet", b"x")
    with pytest.raises(PipelineError, match=r"images-00001\.parquet is damaged"):
        report.run(run)


def test_markup_in_names_and_values_is_text(finished):
    attack = "<script>alert(1)</script>\"'"
    figures = metrics()
    figures["extractor"]["figure"] = attack
    figures["generators"][attack] = figures["generators"].pop("gmm")
    page = page_of(finished(figures, [], report={"title": attack}, data={"path": attack}))
    assert "<script" not in page
    assert page.count("&lt;script&gt;alert(1)") > 5


def test_page_of_colour_images_with_little_measured(finished):
    figures = {"split": "test", "extractor": {"name": "random", "figure": "FD-random"}, "num_images": 50, "draws": 1}
    figures["generators"] = {"sampler": {"fd": None, "kid": 0.5}, "new": {"fd": 3.0}}
    run = finished(figures, [], (3, 16, 16), latent_dim=1, components=2, report={"images": 400})
    page = page_of(run)
    assert page.count("Nothing was logged.") == 2
    assert "16×16 RGB" in re.sub(r"\s+", " ", page)
    assert 'data-row="new"' in page
    assert "of the gap" not in page
    assert "draws of the mixture" in page
    assert "Generated: 120 draws" in page  # all there are
    assert pixels(run.folder.read("report/samples.png")).shape == (11 * 68 - 4, 11 * 68 - 4, 3)


@pytest.mark.parametrize(("sampler", "words"), [(14.94, "97%"), (30.0, "does not improve on")])
def test_page_says_what_the_sampler_gains(finished, sampler, words):
    figures = metrics()
    figures["generators"]["sampler"]["fd"] = sampler
    page = page_of(finished(figures, []))
    assert words in page
    best = re.findall(r'data-row="(\w+)" class="best"', page)
    assert best == ["sampler" if sampler < 16 else "gmm"]


def test_page_says_when_there_is_no_gap_to_close(finished):
    figures = metrics()
    figures["generators"]["encoder"]["fd"] = 40.0
    assert "there is no gap" in flat(page_of(finished(figures, [])))


def flat(page):
    return re.sub(r"\s+", " ", page)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"num_reference": 12}, "12 test images are too few to judge by, at least 200"),
        ({"accuracy": 0.55}, "the classifier is right in 55% of the test images, where always giving the same label"),
    ],
)
def test_figures_that_decide_nothing_come_with_a_warning_and_without_a_winner(finished, changed, words):
    figures = metrics() | {"num_reference": changed.get("num_reference", 359)}
    figures["extractor"]["accuracy"] = changed.get("accuracy", 0.97)
    page = flat(page_of(finished(figures, [])))
    assert words in page
    assert 'class="best"' not in page
    assert "of the gap" not in page
    assert "there is no gap" not in page
    assert "None is highlighted: see the warning above." in page


def test_a_lead_within_the_spread_is_no_lead(finished):
    figures = metrics()
    figures["generators"]["sampler"] |= {"fd": 16.0, "spread": {"fd": 0.4}}
    figures["generators"]["gmm"] |= {"fd": 16.3, "spread": {"fd": 0.3}}
    page = flat(page_of(finished(figures, [])))
    assert 'class="best"' not in page
    assert re.search(r"None is highlighted: Sampler net and GMM.* differ by 0\.3 with a spread of 0\.5\.", page)
    assert "These figures decide nothing" not in page


def test_a_gap_within_the_spread_is_no_gap(finished):
    figures = metrics()
    for name in ("prior", "encoder"):
        figures["generators"][name] |= {"fd": 20.0 - 0.1 * (name == "encoder"), "spread": {"fd": 0.4}}
    assert "no gap for the sampler net to close" in flat(page_of(finished(figures, [])))


# In a browser

PROBE = """<pre id="probe"></pre><script>addEventListener("load", () => {
const all = (query) => [...document.querySelectorAll(query)];
document.getElementById("probe").textContent = JSON.stringify({
  images: all("img").map((i) => [i.complete, i.naturalWidth, i.width]),
  dark: matchMedia("(prefers-color-scheme: dark)").matches,
  current: all("img").map((i) => i.currentSrc === i.src),
  rows: all("tr[data-row]").map((r) => [r.dataset.row, ...[...r.cells].slice(1).map((c) => c.innerText)]),
  best: all("tr.best").map((r) => r.dataset.row), headings: all(".generators thead th").map((h) => h.innerText),
  title: document.title, overflow: document.documentElement.scrollWidth - innerWidth,
  background: getComputedStyle(document.body).backgroundColor,
  resources: performance.getEntriesByType("resource").map((entry) => entry.name),
}) })</script>"""


def browse(page, folder, *flags):
    """What the browser makes of the page, with a probe added to a copy of it."""
    page = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", page)
    assert "Content-Security" not in page
    (folder / "copy.html").write_text(page + PROBE)
    return probed(folder / "copy.html", *flags)


@needs_browser
@pytest.mark.parametrize(
    ("dark", "size"), [(False, "1200,3000"), (True, "500,3000")], ids=["wide and light", "phone and dark"]
)
def test_page_in_a_browser(default, tmp_path, dark, size):
    seen = browse(default[2], tmp_path, f"--window-size={size}", *[DARK] * dark)
    assert seen["title"] == "digits · LDC-VAE"
    assert len(seen["images"]) == 3 + 2 + 8 + 1
    assert all(complete and natural > 100 and shown > 100 for complete, natural, shown in seen["images"])
    assert not [url for url in seen["resources"] if not url.startswith("data:")]
    assert seen["overflow"] <= 0  # only the table scrolls sideways, not the page
    assert [row[0] for row in seen["rows"]] == [*FD, "reconstruction", "floor"]
    assert all(len(row) == 1 + len(KEYS) == len(seen["headings"]) for row in seen["rows"])
    table = {row[0]: [cell.replace("\n", " ") for cell in row[1:]] for row in seen["rows"]}
    assert table["sampler"][0] == "14.94 ±0.30"
    assert table["prior"][1] == "3.196 ±0.064"
    assert table["floor"][-1] == "–"
    assert seen["best"] == ["sampler"]
    assert seen["headings"][1].split() == ["FD-classifier", "↓"]
    assert seen["headings"][2].split() == ["KID", "·10³", "↓"]
    assert seen["dark"] is dark
    assert seen["current"] == [True] * 3 + [not dark] * 11  # galleries serve both, figures have a dark variant
    assert seen["background"] == ("rgb(20, 22, 26)" if dark else "rgb(255, 255, 255)")


@needs_browser
def test_screenshots_are_light_and_dark(default, tmp_path):
    (tmp_path / "page.html").write_text(default[2])
    browser.main(str(tmp_path / "page.html"), str(tmp_path / "page"), "900,700")
    light, dark = (pixels((tmp_path / f"page-{which}.png").read_bytes()) for which in ("light", "dark"))
    assert light.shape == dark.shape == (700, 900, 3)
    assert light[5, 5].tolist() == [255, 255, 255]
    assert dark[5, 5].tolist() == [20, 22, 26]
    assert light.std() > 10  # there is something on it


def test_the_models_card_has_data_and_figures(default):
    folder, manifest, _ = default
    assert "report/MODEL_CARD.md" in manifest.outputs
    card = folder.read("report/MODEL_CARD.md").decode()
    assert "- Data: digits, 1,234 training images of 2 classes." in card
    row = next(line for line in card.splitlines() if line.startswith("| Sampler net |"))
    assert f"{metrics()['generators']['sampler']['fd']:.4g}" in row
