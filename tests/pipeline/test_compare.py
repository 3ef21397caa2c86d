"""The comparison: what it refuses, what it keeps, what it claims; and a small one, killed and continued."""

import asyncio
import copy
import json
import shutil
import time
from typing import Any

import numpy as np
import pytest
from cells_here import CellsHere, compute_here
from processes import here, orphaned, start, wait_for, wait_for_end
from scipy import stats
from test_old_run import OLD

from ldcvae.variants import AUTOENCODERS, GENERATORS
from pipeline.compare import claims
from pipeline.compare.autoencoders import train_settings
from pipeline.compare.cells import DECODER, autoencoder_cell, generator_cell
from pipeline.compare.claims import against, chosen_net, goals, interval
from pipeline.compare.stage import _results
from pipeline.config.errors import ConfigError
from pipeline.config.load import load_config, override
from pipeline.config.sections import Config
from pipeline.judge.figures import make_reference
from pipeline.judge.generators import budget_of
from pipeline.store.run import open_run

COMPARED = {name: record for name, record in GENERATORS.items() if "compare" in record.stages}
LABELS = {name: record.label for name, record in AUTOENCODERS.items()}
ALL_AUTOENCODERS = {
    name: [8.0] if record.knob == "pseudo-inputs" else [1.0] if record.knob else []
    for name, record in AUTOENCODERS.items()
}
KNOBS = {name: record.knob for name, record in COMPARED.items()}
ALL_GENERATORS = {name: [2.0] if knob == "components" else [0.1] if knob else [] for name, knob in KNOBS.items()}
ALL_GENERATORS |= {name: [1.0] for name, knob in KNOBS.items() if knob and knob.startswith("factor")}
ALL_GENERATORS |= {name: [0.001] for name, knob in KNOBS.items() if knob == "learning rate"}
SMALL = [
    "evaluate.draws=1",
    "evaluate.num_images=100",
    "compare.selection_images=100",
    "compare.euler_steps=5",
    "sampler.steps=40",
    "sampler.checkpoint_steps=10",
    "train.epochs=4",
    "train.checkpoint_epochs=1",
    "compare.seeds=1",
]


def test_every_name_has_a_label_a_knob_and_a_default() -> None:
    assert set(AUTOENCODERS) == set(Config().compare.autoencoders)
    assert set(COMPARED) == set(GENERATORS) - {"sampler"} == set(Config().compare.generators)
    assert all(record.label for record in (*AUTOENCODERS.values(), *COMPARED.values()))
    for records, chosen in ((AUTOENCODERS, Config().compare.autoencoders), (COMPARED, Config().compare.generators)):
        assert all(bool(chosen[name]) == (record.knob is not None) for name, record in records.items())
    particles, budget, dim = Config().train.particles, budget_of(Config()), Config().model.latent_dim
    assert [AUTOENCODERS[name].passes(particles) for name in ("wae_mmd", "ldc_elbo")] == [1, 4]
    passes = [GENERATORS[name].passes(budget, dim) for name in ("prior", "drift", "flow_matching", "langevin")]
    assert passes == [0, 1, 50, 120]


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("compare.autoencoders={vea: []}", "compare.autoencoders.vea: unknown; choose among vae, beta_vae"),
        ("compare.autoencoders={}", "compare.autoencoders: .* should have at least 1 item"),
        ("compare.autoencoders={vae: [1]}", r"compare.autoencoders.vae: has nothing to choose, so it must be \[\]"),
        ("compare.autoencoders={beta_vae: []}", "compare.autoencoders.beta_vae: needs at least one candidate"),
        ("compare.generators={maf: [-1]}", "compare.generators.maf: must be a list of positive numbers"),
        ("compare.generators={gmm_tuned: [2.5]}", "compare.generators.gmm_tuned: must be whole numbers"),
        ("compare.generators=gmm", "compare.generators: must be {name: "),
        ("compare.only={vea: [gmm]}", "compare.only.vea: is not among compare.autoencoders: vae, beta_vae"),
        ("compare.only={vae: [gmn]}", "compare.only.vae: gmn is not among compare.generators: prior"),
        ("compare.only={vae: []}", "compare.only.vae: an empty list is not among"),
        ("compare.temperatures=[1, 0]", "compare.temperatures.1: Input should be greater than 0"),
        ("compare.seeds=0", "compare.seeds: Input should be greater than or equal to 1"),
    ],
)
def test_mistakes_name_key_value_and_what_is_allowed(override: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(overrides=[override])


def cells(*overrides: str) -> dict[str, str]:
    config = load_config(overrides=list(overrides))
    vae = autoencoder_cell(config, "data", "features", "vae", None, 0)
    return {"vae": vae.key} | {
        name: generator_cell(config, vae, name, 0.1 if record.knob else None).key for name, record in COMPARED.items()
    }


NETS = {"stein", "score_difference", "drift"}
FLOWS = {"flow_matching", "flow_matching_from_base"}
LEARNT = {"two_stage", "maf", "mean_flow"} | FLOWS


@pytest.mark.parametrize(
    ("override", "changed"),
    [
        ("train.epochs=7", {"vae", *COMPARED}),
        ("train.num_workers=2", set()),
        ("sampler.steps=7", LEARNT | NETS),
        ("sampler.particles=64", LEARNT | NETS | {"langevin", "hmc"}),
        ("sampler.base_components=7", NETS | {"flow_matching_from_base"}),
        ("sampler.checkpoint_steps=7", set()),
        ("evaluate.langevin_steps=60", {"langevin", "hmc"}),
        ("evaluate.chain_kernels=60", {"langevin", "hmc"}),
        ("evaluate.gmm_components=7", {"gmm"}),
        ("compare.euler_steps=7", FLOWS),
        ("compare.drift_temperatures=[1]", {"drift"}),
        ("compare.seeds=7", set()),
        ("compare.temperatures=[1.0, 1.2]", {name for name, record in COMPARED.items() if record.tempered}),
        ("evaluate.draws=2", set(COMPARED)),
    ],
)
def test_a_cell_depends_on_what_it_uses_and_on_nothing_else(override: str, changed: set[str]) -> None:
    before, after = cells(), cells(override)
    assert {name for name in before if before[name] != after[name]} == changed


def test_a_cell_depends_on_the_second_extractors_weights() -> None:
    config = load_config()
    vae = autoencoder_cell(config, "data", "features", "vae", None, 0)
    keys = {generator_cell(config, vae, "gmm", None, second).key for second in ("", "aa", "bb")}
    assert len(keys) == 3
    # What came later is not in the key at its default: no cell of an earlier version is computed again for it.
    assert generator_cell(config, vae, "hmc", 0.1).key != cells("evaluate.chain_kernels=7")["hmc"]
    assert "chain_kernels" in GENERATORS["hmc"].reads[1]


def test_the_learnt_energy_in_the_encoders_target_is_of_ldc_vae_only() -> None:
    plain, fed = (load_config(overrides=[f"train.consistency={share}"]) for share in (0, 0.3))
    for name, setting, own in (("ldc_svgd", 1.0, True), ("ldc_elbo", 1.0, True), ("vae", None, False)):
        keys = {autoencoder_cell(config, "data", "features", name, setting, 0).key for config in (plain, fed)}
        assert len(keys) == 1 + own
        assert train_settings(name, setting, fed.train).consistency == (0.3 if own else 0)


def row(
    autoencoder: str, generator: str, fd: float, *, coverage: float = 0.5, rate: float = 1.0, seeds: int = 3
) -> dict:
    return {
        "autoencoder": autoencoder,
        "generator": generator,
        "label": generator,
        "bound": generator == "encoder",
        "figures": {"fd": fd, "coverage": coverage, "mmd2": 1e-4, "latents_per_s": rate},
        "spread": {"fd": 0.1, "coverage": 0.01},
        "values": {"fd": [fd + shift for shift in (-0.1, 0.0, 0.1)[:seeds]], "coverage": [coverage] * seeds},
    }


def test_only_some_generators_on_an_autoencoder() -> None:
    compare = load_config(overrides=["compare.only={vae: [drift, gmm]}"]).compare
    assert compare.generators_of("vae") == ["gmm", "drift"]
    assert compare.generators_of("ldc_svgd") == list(compare.generators)


def test_goals_count_differences_whose_interval_leaves_zero_out() -> None:
    rows = [
        row("vae", "gmm", 12.0),
        row("ldc_svgd", "gmm", 11.0, coverage=0.48),
        row("ldc_svgd", "langevin", 10.1, rate=10.0) | {"values": {"fd": [10.2, 10.2, 9.9], "coverage": [0.5] * 3}},
        row("ldc_svgd", "drift", 10.0, coverage=0.52, rate=900.0),
        row("ldc_svgd", "encoder", 9.0),
    ]
    found = {goal["claim"]: goal["met"] for goal in goals(rows, LABELS)}
    # FD too near to Langevin's; coverage; 90 times; end to end
    assert list(found.values()) == [False, True, False, True]
    rows[3]["figures"]["latents_per_s"] = 1000.0
    rows[3]["values"]["fd"] = [9.6, 9.6, 9.4]
    assert all(goal["met"] for goal in goals(rows, LABELS))
    # On one autoencoder the seeds are paired: theirs vary together, and 0.1 is enough where every seed has it.
    rows[3]["values"]["fd"], rows[2]["values"]["fd"] = [9.9, 10.0, 10.1], [10.0, 10.1, 10.2]
    first = goals(rows, LABELS)[0]
    assert first["met"]
    assert first["detail"].endswith("better by 0.10, 95 % interval 0.10 to 0.10: better")
    # Worse by as much with every seed is no draw.
    rows[2]["values"]["fd"], rows[2]["figures"]["fd"] = [9.8, 9.9, 10.0], 9.9
    assert goals(rows, LABELS)[0]["verdict"] == "worse"
    once = copy.deepcopy(rows)
    once[3]["values"] = {"fd": [10.0], "coverage": [0.52]}
    first = goals(once, LABELS)[0]
    assert not first["met"]
    assert first["detail"].startswith("10.00 (drift on LDC-VAE, SVGD encoder) against 9.90 ± 0.10 (langevin on")
    assert first["detail"].endswith("; one seed decides nothing")
    assert goals([row("vae", "gmm", 1.0)], LABELS) == []


def test_the_direction_is_chosen_on_validation_images() -> None:
    rows = [row("ldc_svgd", "stein", 9.0) | {"selection": 12.0}, row("ldc_svgd", "drift", 9.5) | {"selection": 10.0}]
    assert chosen_net(rows)["generator"] == "drift"  # though on test images the other is better
    assert goals([*rows, row("ldc_svgd", "gmm", 9.2)], LABELS)[0]["verdict"] == "worse"


def test_pairs_over_autoencoders() -> None:
    names = ("vae", "rae_l2", "ldc_svgd")
    shifts = dict(zip(names, (0.5, 0.6, 0.7), strict=True))
    rows = [row(name, "drift", 10.0) for name in names] + [row(name, "gmm", 10.0 + shifts[name]) for name in names]
    rows += [row("vae", "flow_matching", 10.0) | {"values": {"fd": [9.0, 10.1, 11.0], "coverage": [0.5] * 3}}]
    rows += [row(f"vae{DECODER}", name, fd) for name, fd in (("drift", 3.0), ("gmm", 4.0))]
    gmm, flow, sharp = against(rows)
    assert (gmm["generator"], gmm["pairs"], gmm["ahead"], gmm["verdict"]) == ("gmm", 9, 9, "better")
    # How autoencoders differ is no chance: within each of them all seeds agree to the digit.
    assert (gmm["mean"], gmm["low"], gmm["high"]) == pytest.approx((0.6, 0.6, 0.6))
    assert (flow["verdict"], flow["pairs"]) == ("not distinguishable", 3)
    assert sharp["decoder"]
    assert sharp["mean"] == pytest.approx(1.0)
    (one,) = against([row("vae", "drift", 1.0, seeds=1), row("vae", "gmm", 2.0, seeds=1)])
    assert (one["low"], one["high"], one["verdict"]) == (None, None, "not distinguishable")


def test_an_interval_over_autoencoders_covers_the_mean_over_them() -> None:
    """95 % of studies of three autoencoders, two seeds each, whose true differences are 1, 5 and -3."""
    rng = np.random.default_rng(0)
    truth, hits = np.array([1.0, 5.0, -3.0]), 0
    for _ in range(2000):
        _, low, high = interval(*(truth[:, None] + rng.normal(size=(3, 2))).tolist())
        hits += low <= truth.mean() <= high
    assert 0.93 < hits / 2000 < 0.97


def test_a_learnt_prior_is_not_pooled_with_the_normal_one() -> None:
    rows = [row(name, "drift", 10.0) for name in ("vae", "vampprior")]
    rows += [row("vae", "prior", 50.0), row("vampprior", "prior", 11.0) | {"label": "VampPrior mixture"}]
    assert [(one["label"], one["pairs"]) for one in against(rows)] == [("prior", 3), ("VampPrior mixture", 3)]


def test_better_than_every_other_is_not_better_than_the_best_mean_alone() -> None:
    rows = [row("ldc_svgd", "drift", 10.0), row("ldc_svgd", "gmm", 10.5)]
    assert goals(rows, LABELS)[0]["met"]
    rows += [row("ldc_svgd", "flow_matching", 10.6) | {"values": {"fd": [9.5, 10.8, 11.5], "coverage": [0.5] * 3}}]
    claim = goals(rows, LABELS)[0]
    assert (claim["met"], claim["verdict"]) == (False, "not distinguishable")
    assert "flow_matching" in claim["detail"]
    # Surely worse than one, though another is noisier and may be better by more.
    rows += [row("ldc_svgd", "langevin", 9.5) | {"values": {"fd": [9.4, 9.5, 9.6], "coverage": [0.5] * 3}}]
    rows += [row("ldc_svgd", "hmc", 9.0) | {"values": {"fd": [5.0, 9.0, 13.0], "coverage": [0.5] * 3}}]
    claim = goals(rows, LABELS)[0]
    assert claim["verdict"] == "worse"
    assert "(langevin on" in claim["detail"]


def test_intervals_are_students() -> None:
    differences = [0.3, -0.1, 0.4, 0.2, 0.6]
    theirs = stats.ttest_1samp(differences, 0.0).confidence_interval(0.95)
    assert interval(differences)[1:] == pytest.approx((theirs.low, theirs.high))
    ours = row("ldc_svgd", "drift", 0.0) | {"values": {"fd": [9.0, 9.4, 9.1], "coverage": [0.5] * 3}}
    other = row("vae", "gmm", 0.0) | {"values": {"fd": [9.9, 10.8, 9.6], "coverage": [0.5] * 3}}
    welch = stats.ttest_ind(other["values"]["fd"], ours["values"]["fd"], equal_var=False).confidence_interval(0.95)
    assert claims._gap(ours, other, "fd")[1:] == pytest.approx((welch.low, welch.high))


def test_every_pair_is_compared_and_more_costs_what_is_new(tmp_path) -> None:
    shutil.copytree(OLD, tmp_path / "run-0.1")
    few = {"vae": [], "vampprior": [8.0, 16.0], "rae_l2": [0.1], "ldc_svgd": [1.0]}
    only = {"vampprior": ["prior", "gmm"], "rae_l2": ["gmm", "drift"], "ldc_svgd": ["prior", "langevin", "stein"]}
    keys = [*SMALL, f"storage={tmp_path}", "name=run-0.1", "train.device=cpu", "evaluate.extractor=random"]
    keys += ["train.batch_size=32", "sampler.particles=32", "sampler.steps=10", "train.epochs=1"]

    def compare(**compared) -> tuple[dict, dict[str, Any]]:
        config = override(load_config(OLD / "config.yaml", keys), {f"compare.{k}": v for k, v in compared.items()})
        run = open_run(config)
        reference = make_reference(run, "validation", "test")
        schedule = CellsHere(run, reference)
        found = asyncio.run(schedule.all())
        assert schedule.failed == []
        assert len(schedule.records) == schedule.total
        return _results(run, reference, found), schedule.records

    results, before = compare(autoencoders=few, only=only, generators=ALL_GENERATORS)
    pairs = {(row["autoencoder"], row["generator"]) for row in results["rows"]}
    assert pairs == {(autoencoder, name) for autoencoder in few for name in only.get(autoencoder, COMPARED)}
    assert all(len(row["values"]["fd"]) == 1 for row in results["rows"])
    [vamp] = [entry for entry in results["autoencoders"] if entry["name"] == "vampprior"]
    assert vamp["setting"] == min(vamp["candidates"], key=lambda candidate: candidate["fd"])["setting"]
    priors = {row["autoencoder"]: row["label"] for row in results["rows"] if row["generator"] == "prior"}
    assert priors["vampprior"] != priors["vae"]
    # One more seed costs what is new, and changes nothing that was there.
    values = {(row["autoencoder"], row["generator"]): row["values"]["fd"][0] for row in results["rows"]}
    fewer = {name: ALL_GENERATORS[name] for name in ("prior", "gmm_tuned", "drift")}
    results, after = compare(autoencoders={"vae": []}, generators=fewer, seeds=2)
    assert all(after[key] == before[key] for key in after.keys() & before.keys())
    assert len(after.keys() & before.keys()) == 4
    assert len(results["rows"]) == len(fewer)
    for row in results["rows"]:
        assert row["values"]["fd"][0] == values["vae", row["generator"]]
        assert len(row["values"]["fd"]) == 2


def test_validation_images_choose_a_temperature_for_each_generator_and_seed(tmp_path, monkeypatch) -> None:
    compute_here(monkeypatch)
    chosen = {"gaussian": [], "drift": [1.0], "langevin": [0.1], "encoder": []}
    arguments = [
        *SMALL,
        "sampler.steps=5",
        "compare.autoencoders={vae: []}",
        f"compare.generators={json.dumps(chosen)}",
    ]

    def compare(temperatures: str) -> dict[str, dict[str, Any]]:
        here("compare", tmp_path, *arguments, f"compare.temperatures={temperatures}")
        results = json.loads((tmp_path / "tiny/compare/results.json").read_text())
        assert results["failures"] == []
        return {row["generator"]: row for row in results["rows"]}

    one, some, wide, narrow = (compare(given) for given in ("[1]", "[4, 1, 0.05]", "[4]", "[0.05]"))
    assert not any("temperature" in row["figures"] for row in one.values())
    table = (tmp_path / "tiny/compare/results.csv").read_text()
    assert "temperature" in table.splitlines()[0]
    for name in ("langevin", "encoder"):  # kept as they were: they have no temperature
        assert one[name] == some[name] == wide[name]
    for name in ("gaussian", "drift"):
        assert wide[name]["figures"]["temperature"] == 4.0
        alone = {1.0: one[name], 4.0: wide[name], 0.05: narrow[name]}
        assert some[name]["selection"] == min(row["selection"] for row in alone.values())
        assert some[name]["figures"]["fd"] == alone[some[name]["figures"]["temperature"]]["figures"]["fd"]
        assert len({row["figures"]["fd"] for row in alone.values()}) == 3


@pytest.mark.slow
def test_a_kill_costs_only_what_was_running(tmp_path, one_ray) -> None:
    generators = {"gmm": [], "drift": [1.0], "encoder": []}
    chosen = ['compare.autoencoders={"ldc_svgd": [1.0]}', f"compare.generators={json.dumps(generators)}"]
    arguments = [*SMALL, *chosen]
    process = start("compare", tmp_path, *arguments)
    cells = tmp_path / "tiny" / "compare" / "cells"

    def records() -> dict[str, float]:
        return {str(path): path.stat().st_mtime for path in cells.glob("*/record.json")}

    wait_for(lambda: len(records()) >= 2, "two finished cells")
    orphans, killed = orphaned(process), time.monotonic()
    before = records()
    assert not (tmp_path / "tiny/compare/results.json").exists()
    here("compare", tmp_path, *arguments)
    # A cell's process that was just being started looks for its node for a minute.
    wait_for_end(orphans, max(0.0, 90 - (time.monotonic() - killed)))
    assert before.items() <= records().items()  # nothing finished was computed again
    assert not (tmp_path / "tiny/compare/checkpoints").exists()
    results = json.loads((tmp_path / "tiny/compare/results.json").read_text())
    assert results["failures"] == []
    assert {row["generator"] for row in results["rows"]} == set(generators)
    assert (tmp_path / "tiny/compare/index.html").exists()
    assert here("compare", tmp_path, *arguments)[0].count("up to date") == 2  # data and comparison


def test_a_failing_cell_is_reported_and_the_others_are_kept(tmp_path, monkeypatch) -> None:
    compute_here(monkeypatch)
    generators = {"gaussian": [], "flow_matching": [1e8], "gmm_tuned": [1000000.0]}
    arguments = [*SMALL, 'compare.autoencoders={"wae_mmd": [1.0]}', f"compare.generators={json.dumps(generators)}"]
    here("compare", tmp_path, *arguments)
    results = json.loads((tmp_path / "tiny/compare/results.json").read_text())
    assert [row["generator"] for row in results["rows"]] == ["gaussian"]
    reasons = {failure["generator"]: failure["reason"] for failure in results["failures"]}
    assert "learning rate" in reasons["flow_matching"] or "finite" in reasons["flow_matching"]
    assert "a mixture of 1,000,000 components needs as many images" in reasons["gmm_tuned"]
