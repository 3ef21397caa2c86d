"""Judging and the page hold a part of the images at a time, and say the same of images in memory and on storage."""

import shutil

import pytest
import torch
from test_old_run import OLD

from ldcvae import LDCVAE
from ldcvae.metrics import kid, prdc
from ldcvae.rivals.fitting import Fitting
from ldcvae.training.encode import encode_split
from ldcvae.training.world import World
from ldcvae.variants import GENERATORS
from pipeline.config.load import load_config, override
from pipeline.evaluate.judge import _evaluate
from pipeline.judge.extractors import Extractor
from pipeline.judge.figures import make_reference
from pipeline.report import make as report
from pipeline.store.data.splits import split_images
from pipeline.store.model import load_model
from pipeline.store.run import open_run
from pipeline.tune.trial import Trial, run_trial

MOST = 40  # images of a part


@pytest.fixture
def opened(tmp_path):
    """The run of 0.1, judged by random features."""
    shutil.copytree(OLD, tmp_path / "run-0.1")
    keys = [f"storage={tmp_path}", "name=run-0.1", "train.device=cpu", "evaluate.extractor=random"]
    return open_run(load_config(OLD / "config.yaml", [*keys, "evaluate.num_images=150", "evaluate.draws=2"]))


def under(run, values):
    return open_run(override(run.config, values))


@pytest.fixture
def sizes(monkeypatch):
    """How many images have passed encoder, decoder and extractor, each time; none may be more than a part."""
    monkeypatch.setattr("ldcvae.batches._NUMBERS", MOST * 64)
    seen = []
    for where, name in ((LDCVAE, "encode"), (LDCVAE, "decode")):
        inner = getattr(where, name)
        monkeypatch.setattr(where, name, lambda model, x, inner=inner: seen.append(len(x)) or inner(model, x))
    of = Extractor.of

    def watched(extractor, parts):
        return of(extractor, (seen.append(len(part)) or part for part in parts))

    monkeypatch.setattr(Extractor, "of", watched)
    return seen


def without_clock(metrics):
    """Figures but those of time, and the floor, whose images are others where they stream."""
    if isinstance(metrics, dict):
        return {name: without_clock(part) for name, part in metrics.items() if name not in ("latents_per_s", "floor")}
    return metrics


def test_evaluation_holds_a_part_and_is_the_same_streamed(opened, sizes):
    found = [_evaluate(under(opened, {"train.memory_mb": memory_mb}))[0] for memory_mb in (64, 0)]
    assert max(sizes) == MOST
    assert len(sizes) > 100
    assert without_clock(found[0]) == without_clock(found[1])
    assert found[1]["floor"]["fd"] == pytest.approx(found[0]["floor"]["fd"], abs=0.05)


def test_parts_change_the_figures_by_rounding_only(opened, monkeypatch):
    whole = without_clock(_evaluate(opened)[0])
    monkeypatch.setattr("ldcvae.batches._NUMBERS", MOST * 64)
    parts = without_clock(_evaluate(opened)[0])
    for name, row in whole["generators"].items():
        for figure in ("fd", "kid", "mmd2", "sliced_wasserstein"):
            assert parts["generators"][name][figure] == pytest.approx(row[figure], rel=1e-5, abs=1e-6)
    assert parts["reconstruction"] == pytest.approx(whole["reconstruction"], rel=1e-5)


def test_the_reference_is_the_same_streamed(opened, sizes):
    features = [
        make_reference(under(opened, {"train.memory_mb": memory_mb}), "validation", "test").features
        for memory_mb in (64, 0)
    ]
    assert max(sizes) == MOST
    for split in ("validation", "test"):
        assert torch.equal(features[0][split], features[1][split])


def test_pictures_of_the_page_are_the_same_streamed(opened, monkeypatch):
    pictures = []
    monkeypatch.setattr(report, "spaced_images", _noting(report.spaced_images, kinds := []))
    for memory_mb in (64, 0):
        run = under(opened, {"train.memory_mb": memory_mb})
        names, _ = report.work(run, {stage: run.manifest(stage) for stage in report.SHOWN})
        pictures.append({name: run.folder.read(name) for name in names if name.endswith(".png")})
    assert pictures[0] == pictures[1]
    assert kinds == ["Tensor", "Tensor", "PickedImages", "PickedImages"]


def _noting(inner, kinds):
    def noted(images, count):
        found = inner(images, count)
        kinds.append(type(found).__name__)
        return found

    return noted


@pytest.mark.parametrize("images", [100, 700])  # 100 train: as many are asked for, or more
def test_a_trial_is_judged_in_parts(opened, sizes, images):
    keys = {"train.epochs": 1, "train.batch_size": 32, "sampler.steps": 4, "sampler.checkpoint_steps": 4}
    keys |= {"tune.num_images": images, "tune.reports": 1, "tune.draws": 1}
    for memory_mb in (64, 0):
        run = under(opened, {**keys, "train.memory_mb": memory_mb})
        reports = []
        run.folder.remove("tune")
        run_trial(Trial(run, "study", 0, 1, make_reference(run, "validation"), None), World(), reports.append)
        assert reports[-1]["finished"], reports[-1]["failure"]
        assert [0 < report["figures"]["fd"] < 100 for report in reports] == [True, True]
    assert max(sizes) == MOST


def test_pairs_are_those_of_some_images_where_there_are_many(opened, monkeypatch):
    """Their time goes with the square of the images; the Fréchet distance is of all."""
    reference = make_reference(opened, "test")
    judge = reference.judge("test", 5, torch.device("cpu"))
    noise = torch.Generator().manual_seed(0)
    fake = judge.real[torch.randint(len(judge.real), (90,), generator=noise)] + 0.1 * judge.real.std(0)
    whole = judge.figures(fake)
    monkeypatch.setattr("pipeline.judge.figures._PAIRED", 30)
    judge = reference.judge("test", 5, torch.device("cpu"))
    real = judge.real[[len(judge.real) * place // 30 for place in range(30)]]
    some, expected = judge.figures(fake), prdc(real, fake[::3], k=5)
    for name in ("precision", "recall", "density", "coverage"):
        assert some[name] == getattr(expected, name)
    assert some["density"] != whole["density"]
    assert some["kid"] == pytest.approx(kid(fake[::3], real).mean)
    assert some["fd"] == whole["fd"]


def test_the_bound_of_held_out_images_redraws_the_posteriors_of_validation_images(opened):
    run = under(opened, {"evaluate.generators": ["encoder", "held_out"], "evaluate.num_images": 60})
    found = _evaluate(run)[0]["generators"]
    assert found["held_out"]["fd"] > 0
    assert found["held_out"]["fd"] != found["encoder"]["fd"]
    model = load_model(run)
    encodings = {split: encode_split(model, split_images(run, split)) for split in ("train", "validation")}
    noise = torch.Generator().manual_seed(0)
    draw = GENERATORS["held_out"].fit(Fitting("held_out", model, encodings["train"], encodings["validation"]))
    assert torch.equal(draw(20, noise), encodings["validation"].draw(20, torch.Generator().manual_seed(0)))
    with pytest.raises(ValueError, match="needs encodings of held-out images"):
        GENERATORS["held_out"].fit(Fitting("held_out", model, encodings["train"]))
