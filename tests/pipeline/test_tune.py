"""The search without Ray: space, study, one trial, pictures."""

import dataclasses
import io
import json
import math
import re
import time
from types import SimpleNamespace

import cloudpickle
import optuna
import pyarrow.parquet as pq
import pytest
import ray.train
import torch
from optuna.storages import InMemoryStorage, JournalStorage
from optuna.trial import TrialState
from ray.exceptions import RayActorError
from sqlalchemy.engine import make_url
from test_failures import DIED, KILLED

from ldcvae import LDCVAE, LDCVAEConfig
from ldcvae.training.monitor import NonFiniteLossError
from ldcvae.training.world import World
from pipeline import prepare
from pipeline.config.errors import ConfigError, PipelineError, StorageError
from pipeline.config.load import load_config, override
from pipeline.config.sections import Config
from pipeline.judge.generators import TimedParts
from pipeline.remote.failures import failure_reason
from pipeline.store.data.shards import load_split
from pipeline.store.folder import Folder
from pipeline.store.model import build_model
from pipeline.store.run import open_run
from pipeline.tune import processes
from pipeline.tune.failures import Deaths, reason_of
from pipeline.tune.plots import search_pictures
from pipeline.tune.search import StudyScheduler, StudySearch
from pipeline.tune.space import build_space
from pipeline.tune.stage import _best_yaml, _template
from pipeline.tune.study import (
    FolderJournal,
    best_trial,
    build_sampler,
    directions,
    enqueue_points,
    open_storage,
    table_bytes,
    trials_table,
)
from pipeline.tune.trial import WORST, Shared, _Running, run_trial

SMALL = [
    "model.width=16",
    "model.depth=1",
    "train.epochs=4",
    "sampler.width=16",
    "sampler.depth=1",
    "sampler.particles=128",
    "sampler.steps=40",
    "evaluate.classifier_epochs=1",
    "tune.num_images=64",
    "tune.reports=4",
]


def with_space(space: dict, *overrides: str) -> Config:
    return load_config(None, [*overrides, f"tune.space={json.dumps(space)}"])


def mistakes(space: dict, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        build_space(with_space(space, *overrides))
    return str(caught.value)


def test_the_shipped_space_is_valid_and_begins_with_the_defaults():
    space = build_space(Config())
    assert space.only_sampler
    assert space.params(Config())["sampler.particles"] == 512
    assert space.overrides(space.params(Config()))["sampler.bandwidths"][0] == 0.13
    hot = with_space({"sample.temperature": {"type": "uniform", "low": 1.0, "high": 1.4}})
    assert build_space(hot).only_sampler  # nothing of an autoencoder depends on it


def test_all_mistakes_are_told_at_once():
    text = mistakes(
        {
            "sampler.particle": {"type": "int", "low": 8, "high": 16},
            "sampler.particles": {"type": "logint", "low": 1, "high": 512},
            "sampler.posterior_noise": {"type": "uniform", "low": 0.5, "high": 1.5},
            "sampler.direction": {"type": "choice", "values": []},
            "sampler.base": {"type": "choice", "values": ["normal", "gauss"]},
            "sampler.learning_rate": {"type": "loguniform", "low": 0, "high": 0.1},
            "train.epochs": {"type": "uniform", "low": 100, "high": 400},
            "train.particles": {"type": "int", "low": 4, "high": 4},
            "train.num_workers": {"type": "int", "low": 1, "high": 2},
            "evaluate.draws": {"type": "int", "low": 1, "high": 2},
            "sampler.bandwidths.smallest": {"type": "loguniform", "low": 0.1, "high": 0.5},
            "sampler.steps": {"type": "int", "low": 10.5, "high": 4000},
            "sampler.depth": {"type": "choice", "low": 1, "values": [1]},
        }
    )
    assert "sampler.particle: unknown key; did you mean sampler.particles?" in text
    assert "tune.space.sampler.particles: Input should be greater than or equal to 4, got 1" in text
    assert "tune.space.sampler.posterior_noise: Input should be less than or equal to 1, got 1.5" in text
    assert "tune.space.sampler.direction: values is empty" in text
    assert "tune.space.sampler.base: Input should be 'normal' or 'gmm', got 'gauss'" in text
    assert "tune.space.sampler.learning_rate: low must be above 0 on a log scale, got 0" in text
    assert "tune.space.train.epochs: Input should be a valid integer" in text
    assert "tune.space.train.particles: low must be below high, got 4 and 4" in text
    assert "tune.space.train.num_workers: changes how training is carried out" in text
    allowed = "model, train, decoder, sampler and sample.temperature"
    assert f"tune.space.evaluate.draws: only keys of {allowed} can be searched" in text
    assert "reaches 0.5, not below the least sampler.bandwidths.largest, 0.42" in text
    assert "tune.space.sampler.steps: type int needs whole numbers" in text
    assert "tune.space.sampler.depth: type choice takes values, not low" in text


@pytest.mark.parametrize(
    ("space", "overrides", "expected"),
    [
        ({"sampler.particles": {"type": "int", "low": 8, "high": 64}}, [], "particles is 512, outside 8…64"),
        ({"sampler.base": {"type": "choice", "values": ["normal"]}}, ["sampler.base=gmm"], "not among the choices"),
        (
            {"sampler.particles": {"type": "logint", "low": 8, "high": 1024}},
            ["train.num_workers=2"],
            "must divide over train.num_workers=2",
        ),
        (
            {"train.particles": {"type": "int", "low": 1, "high": 8}},
            [],
            "objective 'svgd' needs at least 2",
        ),
        (
            {"sampler.particles": {"type": "int", "low": 8, "high": 1024}},
            ["tune.start_from=[{sampler.particles: 2048}, {sampler.steps: 5}]"],
            "tune.start_from.1: sampler.steps: not searched by tune.space",
        ),
        (
            {"sampler.particles": {"type": "int", "low": 8, "high": 1024}},
            ["tune.start_from=[{sampler.particles: 2048}]"],
            "sampler.particles is 2048, outside 8…1024",
        ),
        (
            {"sampler.particles": {"type": "int", "low": 8, "high": 1024}},
            ["tune.start_from=[{sampler.particles: 64}]", "tune.num_samples=1"],
            "tune.num_samples: 1 trials do not cover",
        ),
        (
            {"sampler.particles": {"type": "int", "low": 8, "high": 1024}},
            ["tune.metrics=[fd,recall]", "tune.sampler=cmaes"],
            "cmaes takes one metric",
        ),
        (
            {
                "sampler.bandwidths": {"type": "choice", "values": [[0.13, 0.23, 0.42], [0.2]]},
                "sampler.bandwidths.count": {"type": "int", "low": 1, "high": 4},
            },
            [],
            "cannot be searched together with sampler.bandwidths itself",
        ),
    ],
)
def test_mistakes_that_depend_on_the_configuration(space, overrides, expected):
    assert expected in mistakes(space, *overrides)


def test_values_become_overrides_of_their_keys():
    space = build_space(
        with_space(
            {
                "sampler.bandwidths.smallest": {"type": "loguniform", "low": 0.05, "high": 0.2},
                "sampler.bandwidths.largest": {"type": "loguniform", "low": 0.3, "high": 0.9},
                "train.inverse_temperature": {"type": "loguniform", "low": 10, "high": 200},
                "train.particles": {"type": "int", "low": 2, "high": 8, "step": 2},
                "train.consistency": {"type": "uniform", "low": 0, "high": 1},
                "sampler.smooth": {"type": "choice", "values": [False, True]},
            }
        )
    )
    assert not space.only_sampler
    values = space.overrides(
        {
            "sampler.bandwidths.smallest": 0.1,
            "sampler.bandwidths.largest": 0.4,
            "train.particles": 6,
            "sampler.smooth": "true",
        }
    )
    assert values == {"train.particles": 6, "sampler.smooth": True, "sampler.bandwidths": [0.1, 0.2, 0.4]}
    point = space.point({"sampler.bandwidths.smallest": 0.1, "train.particles": 4})
    assert point.sampler.bandwidths == (0.1, 0.2049, 0.42)
    lists = build_space(with_space({"sampler.bandwidths": {"type": "choice", "values": [[0.13, 0.23, 0.42], [0.2]]}}))
    assert lists.overrides({"sampler.bandwidths": "[0.2]"}) == {"sampler.bandwidths": [0.2]}


@pytest.mark.parametrize("name", ["tpe", "gp", "cmaes", "random", "qmc"])
def test_every_sampler_stays_in_the_space_and_does_not_repeat_itself(name):
    config = load_config(None, [f"tune.sampler={name}"])
    space = build_space(config)
    study = optuna.create_study()
    enqueue_points(study, space)
    for _ in range(2):  # a search that goes on draws other points
        study.sampler = build_sampler(config.tune, 0, len(study.trials))
        for _ in range(6):
            trial = study.ask(space.distributions)
            study.tell(trial, trial.params["sampler.learning_rate"])
    points = [tuple(trial.params.values()) for trial in study.trials]
    assert len(set(points)) == 12
    assert points[0] == tuple(space.params(config).values())


def test_start_points_are_queued_once_and_evaluated_as_written():
    first = load_config(None, ["sampler.bandwidths=[0.1,0.3,0.4]"])
    more = load_config(
        None,
        [
            "sampler.bandwidths=[0.1,0.3,0.4]",
            "tune.start_from=[{sampler.bandwidths: [0.1, 0.5], sampler.particles: 256}]",
        ],
    )
    study = optuna.create_study()
    enqueue_points(study, build_space(first))
    for _ in range(2):
        enqueue_points(study, build_space(more))
    assert [trial.user_attrs["overrides"] for trial in study.trials] == [
        {},
        {"sampler.particles": 256, "sampler.bandwidths": [0.1, 0.5]},
    ]
    assert study.ask(build_space(first).distributions).params["sampler.bandwidths.count"] == 3


def test_a_journal_on_an_object_store_is_read_back_whole(tmp_path):
    folder = Folder(str(tmp_path))
    study = optuna.create_study(study_name="a", storage=JournalStorage(FolderJournal(folder)))
    study.tell(study.ask({"x": optuna.distributions.FloatDistribution(0, 1)}), 0.5)
    # The same format as Optuna's own journal, so that optuna-dashboard opens a copy of it.
    for storage in (JournalStorage(FolderJournal(folder)), open_storage(folder, None)):
        [trial] = optuna.load_study(study_name="a", storage=storage).trials
        assert (trial.value, trial.state) == (0.5, TrialState.COMPLETE)


def test_a_database_takes_its_password_from_the_environment(tmp_path, monkeypatch):
    folder = Folder(str(tmp_path))
    with pytest.raises(ConfigError, match="not set"):
        open_storage(folder, "postgresql://me:$NO_SUCH_PASSWORD@host/db")
    monkeypatch.setenv("STUDY_FILE", str(tmp_path / "study.db"))
    optuna.create_study(storage=open_storage(folder, "sqlite:///$STUDY_FILE"))
    assert (tmp_path / "study.db").exists()
    monkeypatch.setenv("SECRET", "hunter2")
    with pytest.raises(PipelineError) as caught:
        open_storage(folder, "sqlite:////no/such/$SECRET/study.db")
    assert "hunter2" not in str(caught.value)
    monkeypatch.setenv("SECRET", "p@ss/w$rd")
    opened = []
    monkeypatch.setattr("pipeline.tune.study.RDBStorage", lambda url: opened.append(make_url(url)))
    open_storage(folder, "postgresql://me:$SECRET@host/db")
    assert (opened[0].password, opened[0].host) == ("p@ss/w$rd", "host")

    def refused(url: str) -> None:
        raise OSError(f"cannot reach {make_url(url).password} at {url}")

    monkeypatch.setattr("pipeline.tune.study.RDBStorage", refused)
    monkeypatch.setenv("ME", "p@ss")  # a part of the password
    with pytest.raises(PipelineError, match=r"cannot reach \$SECRET at postgresql://\$ME:\$SECRET@host/db"):
        open_storage(folder, "postgresql://$ME:$SECRET@host/db")
    monkeypatch.setattr("pipeline.tune.study.RDBStorage", lambda url: opened.append(make_url(url)))
    open_storage(folder, "postgresql://host/db?password=${SECRET}")
    assert opened[-1].query["password"] == "p@ss/w$rd"
    open_storage(folder, "sqlite:///$STUDY_FILE@work/s.db")
    assert opened[-1].database == f"{tmp_path}/study.db@work/s.db"


def test_half_a_line_of_a_journal_is_cut_off(tmp_path):
    folder = Folder(str(tmp_path))
    study = optuna.create_study(study_name="a", storage=open_storage(folder, None))
    study.tell(study.ask(), 1.0)
    path = tmp_path / "tune/study.log"
    whole = path.read_bytes()
    path.write_bytes(whole + b'{"op_code": 4, "work')
    study = optuna.load_study(study_name="a", storage=open_storage(folder, None))
    study.tell(study.ask(), 2.0)
    again = optuna.load_study(study_name="a", storage=open_storage(folder, None))
    assert [trial.value for trial in again.trials] == [1.0, 2.0]
    assert path.read_bytes().startswith(whole)


def test_a_searcher_takes_no_secret_into_tunes_snapshot(tmp_path):
    search = searched(tmp_path)
    search._storage.url = "postgresql://me:hunter2@host/db"
    assert b"hunter2" not in cloudpickle.dumps(search)


def test_a_trial_that_storage_stops_goes_on_in_the_next_session(tmp_path, capsys):
    search = searched(tmp_path)
    search.suggest("a")
    trace = "Traceback (most recent call last):\npipeline.config.errors.StorageError: cannot write s3://b/x: no\n"
    (tmp_path / "error.txt").write_text(f"Failure # 1\n{trace}")
    search.deaths.on_trial_start(0, [], SimpleNamespace(trial_id="a", error_file=str(tmp_path / "error.txt")))
    search.on_trial_complete("a", error=True)
    assert search.study.trials[0].state == TrialState.RUNNING
    assert search.stuck == "cannot write s3://b/x: no"
    assert "tune: trial 0 stopped: cannot write s3://b/x: no" in capsys.readouterr().out


def test_a_new_point_needs_room_and_is_refused_before_it_is_queued(tmp_path):
    search = searched(tmp_path)
    for number in range(8):
        search.suggest(str(number))
        search.on_trial_complete(str(number), result(8, 3.0, finished=True))
    more = {"tune.start_from": [{"sampler.particles": 256}]}
    config = override(search.space.base, more)
    with pytest.raises(ConfigError, match=r"tune.num_samples: 8 leaves no room .* \(1\); must be at least 9"):
        enqueue_points(search.study, build_space(config))
    enqueue_points(search.study, search.space)
    assert len(search.study.trials) == 8
    enqueue_points(search.study, build_space(override(config, {"tune.num_samples": 9})))
    assert [trial.state for trial in search.study.trials[8:]] == [TrialState.WAITING]


def searched(tmp_path, *overrides: str) -> StudySearch:
    config = load_config(None, ["tune.num_samples=8", *overrides])
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage, directions=directions(config.tune))
    space = build_space(config)
    enqueue_points(study, space)
    sampler = build_sampler(config.tune, 0, 0)
    return StudySearch(space, sampler, study, storage, Folder(str(tmp_path)), directions(config.tune), Deaths())


def result(progress: int, value: float, finished: bool = False, failure: str = "") -> dict:
    figures = {} if failure else {"figures/fd": value, "figures/recall": 0.5}
    return {"progress": progress, "objective": value, "finished": finished, "failure": failure} | figures


def test_a_search_where_everything_fails_says_why(tmp_path):
    search = searched(tmp_path)
    for name in "ab":
        search.suggest(name)
        search.on_trial_complete(name, result(0, WORST, failure="field_rms is not finite at step 7"))
    with pytest.raises(PipelineError, match=r"no trial of the search completed: field_rms is not finite at step 7$"):
        best_trial(search.study)


def test_every_end_of_a_trial_reaches_the_study(tmp_path, capsys):
    search = searched(tmp_path)
    first, second, third, fourth = (search.suggest(name) for name in "abcd")
    assert (first["number"], first["origin"], second["origin"]) == (0, "defaults", "sampled")
    assert first["config"] == search.space.base.model_dump(mode="json")
    search.on_trial_result("b", result(2, 9.0))
    search.on_trial_complete("a", result(8, 3.0, finished=True))
    search.on_trial_complete("b", result(4, 11.0))
    search.on_trial_complete("c", result(0, WORST, failure="field_rms is not finite at step 7"))
    search.on_trial_complete("d", None, error=True)
    states = [trial.state for trial in search.study.trials]
    assert states == [TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL, TrialState.FAIL]
    assert search.study.trials[1].value == 11.0
    # Tune does not pass on the report at which a trial is stopped, by which the next session's ASHA judges too.
    assert search.study.trials[1].intermediate_values == {2: 9.0, 4: 11.0}
    reasons = [trial.user_attrs.get("reason") for trial in search.study.trials]
    assert reasons[2] == "field_rms is not finite at step 7"
    assert reasons[3] == "its process was killed or crashed"
    out = capsys.readouterr().out
    assert "tune: trial 2 failed: field_rms is not finite at step 7" in out
    assert "tune: 4/8 trials, best fd 3 (trial 0: defaults), 2 failed" in out
    table = pq.read_table(io.BytesIO(table_bytes(trials_table(search.study)))).to_pylist()
    assert [row["number"] for row in table] == [0, 1, 2, 3]
    assert table[0]["fd"] == 3.0
    assert table[0]["pareto"]
    assert table[2]["fd"] is None
    assert table[0]["param.sampler.particles"] == 512
    assert {third["number"], fourth["number"]} == {2, 3}


LOWER = "lower sampler.particles (now 300), or run fewer trials at a time (tune.max_concurrent)"


CRASHED = (
    r"its process was killed or crashed \(Worker .*\); peak 5.2 GiB: if the machine's memory ran out \(`dmesg`\), "
)


@pytest.mark.parametrize(
    ("text", "kernel", "expected"),
    [
        (KILLED, 0, r"out of memory \(peak 1.1 GiB, Ray's limit 5.3 GiB, the node .*\): Ray killed the process; "),
        (DIED, 1, r"out of memory \(peak 5.2 GiB\): the kernel killed a process; "),
        (DIED, 0, CRASHED),
    ],
)
def test_a_lost_trial_is_told_with_its_peak_and_what_to_lower(tmp_path, monkeypatch, text, kernel, expected):
    kills = 3
    monkeypatch.setattr("pipeline.remote.memory.kernel_kills", lambda: kills + kernel)
    monkeypatch.setattr("pipeline.tune.search.kernel_kills", lambda: kills)
    search = searched(tmp_path, "sampler.particles=300")
    search.suggest("a")
    for progress, peak in enumerate((5583.0, 200.0, None)):  # started again in between; a platform without figures
        search.on_trial_result("a", result(progress, 9.0) | {"peak_mb": peak})
    error = tmp_path / "error.txt"
    error.write_text(f"Failure # 1 (occurred at 10:00)\nfirst\nFailure # 2 (occurred at 11:00)\n{text}\n")
    search.deaths.on_trial_start(0, [], SimpleNamespace(trial_id="a", error_file=str(error)))
    search.on_trial_complete("a", error=True)
    reason = search.study.trials[0].user_attrs["reason"]
    assert re.fullmatch(expected + re.escape(LOWER), reason)


def test_trials_of_all_phases_have_more_to_lower():
    config = load_config(None, ["train.memory_mb=0"])  # which has nothing to give
    reason = reason_of(RayActorError(error_msg=KILLED), config, sampler_only=False)
    assert "; lower train.batch_size (now 64) or sampler.particles (now 512), or run fewer trials" in reason


def test_interrupted_trials_are_handed_out_again_first(tmp_path):
    search = searched(tmp_path)
    before = [search.suggest(name) for name in "ab"]
    search.on_trial_complete("a", result(8, 3.0, finished=True))
    again = StudySearch(
        search.space,
        build_sampler(search.space.base.tune, 0, 2),
        search.study,
        search._storage,
        search.run,
        ["minimize"],
        Deaths(),
    )
    assert again.suggest("c") == before[1]
    assert again.suggest("d")["number"] == 2
    assert len(search.study.trials) == 3


def test_several_metrics_have_a_pareto_front(tmp_path):
    search = searched(tmp_path, "tune.metrics=[fd,recall]")
    for name, fd, recall in (("a", 3.0, 0.1), ("b", 5.0, 0.9), ("c", 6.0, 0.5)):
        search.suggest(name)
        search.on_trial_complete(name, result(8, fd, finished=True) | {"figures/recall": recall})
    rows = trials_table(search.study).to_pylist()
    assert [row["pareto"] for row in rows] == [True, True, False]
    assert best_trial(search.study).number == 0
    assert [picture.name for picture in search_pictures(search.study, ["fd", "recall"])] == [
        "history",
        "parallel",
        "front",
    ]


def test_values_that_do_not_fit_together_fail_their_trial(tmp_path):
    space = {
        "train.objective": {"type": "choice", "values": ["elbo", "svgd"]},
        "train.particles": {"type": "choice", "values": [1, 4]},
    }
    config = with_space(space, "train.objective=elbo", "tune.sampler=random", "tune.num_samples=30")
    storage = InMemoryStorage()
    study = optuna.create_study(study_name="s", storage=storage)
    sampler, folder = build_sampler(config.tune, 0, 0), Folder(str(tmp_path))
    search = StudySearch(build_space(config), sampler, study, storage, folder, ["minimize"], Deaths())
    invalid = {job["invalid"] for job in (search.suggest(str(i)) for i in range(30))}
    assert "" in invalid
    assert any("needs at least 2" in reason for reason in invalid)


def test_asha_stops_what_lags_but_never_the_defaults(tmp_path):
    search = searched(tmp_path)
    for name, value in zip("abcd", (1.0, 2.0, 3.0, 4.0), strict=True):
        search.suggest(name)
        search.on_trial_result(name, result(2, value))
        search.on_trial_complete(name, result(2, value))
    scheduler = StudyScheduler(search.space.base, 1, search.study)  # what a new session sees

    def decide(origin: str, value: float) -> str:
        trial = SimpleNamespace(trial_id=f"{origin}{value}", config={"origin": origin})
        scheduler.on_trial_add(None, trial)
        return scheduler.on_trial_result(None, trial, result(2, value))

    assert decide("sampled", 9.0) == scheduler.STOP
    assert decide("sampled", 0.5) == scheduler.CONTINUE
    assert decide("defaults", 9.0) == scheduler.CONTINUE


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """Trials of a prepared run, one that trains everything and one that shares an autoencoder."""
    run = open_run(load_config(None, [*SMALL, f"storage={tmp_path_factory.mktemp('runs')}"]))
    prepare.run(run)
    wide = run.with_config(
        override(run.config, {"tune.space": {"train.ema": {"type": "uniform", "low": 0.9, "high": 0.9999}}})
    )
    whole = _template(wide, build_space(wide.config), "s")
    assert whole.shared is None
    assert (whole.run, whole.study, whole.threads) == (wide, "s", 1)
    model = build_model(run.config, whole.reference.shape)
    encodings = [model.encodings(load_split(run, split).pixels) for split in ("train", "validation")]
    weights = {k: v for k, v in model.state_dict().items() if k.startswith(("encoder.", "decoder."))}
    return {"whole": whole, "shared": dataclasses.replace(whole, run=run, shared=Shared(weights, *encodings, 0.25))}


class Killed(BaseException):
    pass


def trial(digits, kind: str, number: int, stop_at: int = 0, **changes):
    template = digits[kind]
    config = override(template.run.config, {f"sampler.{key}": value for key, value in changes.items()})
    reports = []

    def report(metrics: dict) -> None:
        reports.append(metrics)
        if stop_at and metrics["progress"] == stop_at:
            raise Killed

    own = dataclasses.replace(template, run=template.run.with_config(config), number=number)
    try:
        run_trial(own, World(), report)
    except Killed:
        assert len(own.run.folder.files(f"tune/checkpoints/s/{number:05d}/*/state.json")) == 1
    return reports


@pytest.mark.parametrize(("kind", "phases"), [("shared", 1), ("whole", 2)])
def test_a_killed_trial_goes_on_from_its_checkpoint(digits, kind, phases):
    straight = trial(digits, kind, 10 * phases)
    assert [report["progress"] for report in straight] == list(range(1, 4 * phases + 1))
    assert [report["finished"] for report in straight] == [False] * (4 * phases - 1) + [True]
    assert straight[-1]["objective"] == straight[-1]["figures"]["fd"] > 0
    for stop in (2, 4 * phases - 1, 4 * phases):
        begun = trial(digits, kind, 10 * phases + stop, stop_at=stop)
        resumed = trial(digits, kind, 10 * phases + stop)
        assert len(begun) == stop
        # The last report comes again, even when nothing is left to train.
        assert [report["progress"] for report in resumed] == list(range(min(stop + 1, 4 * phases), 4 * phases + 1))
        assert resumed[-1]["figures"]["fd"] == pytest.approx(straight[-1]["figures"]["fd"], rel=1e-6)
        assert resumed[-1]["figures"]["seconds"] > 0


def test_reports_before_there_is_a_sampler_are_those_of_the_encoder(digits):
    reports = trial(digits, "whole", 30)
    assert all(math.isfinite(report["objective"]) for report in reports)
    # Encoder draws bound the sampler: a figure of the same kind, so that ASHA can compare early.
    assert reports[3]["objective"] == pytest.approx(reports[-1]["objective"], rel=0.5)


def test_a_loss_that_is_not_finite_is_reported_and_not_raised(digits):
    reports = trial(digits, "shared", 40, learning_rate=1e30)
    assert "is not finite at step" in reports[-1]["failure"]
    assert reports[-1]["objective"] == WORST
    assert not reports[-1]["finished"]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), "out of memory: CUDA"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: 17 GB"), "out of memory: [enforce"),
        (NonFiniteLossError("kl", 12), "kl is not finite at step 12"),
        (ValueError("two\nlines"), "ValueError: two lines"),
    ],
)
def test_reasons_of_failure(error, expected):
    assert failure_reason(error).startswith(expected)


def test_running_out_of_memory_is_reported(digits, monkeypatch):
    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("pipeline.tune.trial.SamplerPhase.blocks", full)
    assert trial(digits, "shared", 50)[-1]["failure"].startswith("out of memory")


def test_the_best_configuration_is_a_config_file(tmp_path):
    config = load_config(None, ["name=mine", "train.epochs=7"])
    (tmp_path / "best.yaml").write_text(_best_yaml(config, {"sampler.particles": 300, "sampler.bandwidths": [0.2]}))
    best = load_config(tmp_path / "best.yaml")
    assert (best.name, best.train.epochs, best.sampler.particles) == ("mine-best", 7, 300)
    assert best.sampler.bandwidths == (0.2,)


def test_pictures_of_a_search(tmp_path):
    search = searched(tmp_path)
    for number in range(8):
        job = search.suggest(str(number))
        value = 1.0 + abs(math.log(job["config"]["sampler"]["particles"] / 300))
        search.on_trial_result(str(number), result(2, value))
        search.on_trial_complete(str(number), result(2 if number == 5 else 8, value, finished=number != 5))
    pictures = {picture.name: picture for picture in search_pictures(search.study, ["fd"])}
    assert list(pictures) == ["history", "parallel", "importances"]
    assert "8 trials, 7 of them completed" in pictures["history"].alt
    assert "sampler.particles" in pictures["importances"].alt
    for picture in pictures.values():
        assert picture.light != picture.dark
        assert picture.size[0] > 300


def test_images_per_s_times_drawing_and_decoding_and_nothing_else():
    class Slow:
        config = load_config(None, ["model.latent_dim=2"])
        model = LDCVAE(LDCVAEConfig((1, 8, 8), latent_dim=2))

    def draw_base(n: int, generator: torch.Generator, temperature: float) -> torch.Tensor:
        time.sleep(0.05)
        return torch.zeros(n, 2)

    Slow.model.draw_base = draw_base
    phase = SimpleNamespace(averaged=lambda base: base)
    timed = TimedParts(_Running._generate(Slow(), phase, 4, torch.Generator()), torch.device("cpu"))
    for part in timed:
        assert part.shape == (4, 1, 8, 8)
        time.sleep(0.5)  # a judge
    assert 0.05 <= timed.seconds < 0.5


@pytest.mark.parametrize("storage", [True, False])
def test_a_group_of_workers_that_storage_stops_is_no_final_failure(monkeypatch, storage):
    cause = StorageError("cannot write s3://b/x: no") if storage else ValueError("got 3")
    told: list[dict] = []

    class Trainer:
        def __init__(self, *arguments, **options): ...

        def fit(self):
            raise ray.train.TrainingFailedError("worker failed")

    run = SimpleNamespace(folder=Folder("/tmp"), config=load_config(None, []))
    trial = SimpleNamespace(run=run, study="s", number=0, shared=None, threads=1)
    monkeypatch.setattr(processes, "_own", lambda params, template: trial)
    monkeypatch.setattr(processes, "replace", lambda one, **changes: one)
    monkeypatch.setattr(processes, "use_cuda", lambda device: False)
    monkeypatch.setattr("ray.train.torch.TorchTrainer", Trainer)
    monkeypatch.setattr("ray.put", lambda value: value)
    monkeypatch.setattr("ray.tune.integration.ray_train.TuneReportCallback", ray.train.UserCallback)
    monkeypatch.setattr("ray.tune.report", told.append)
    monkeypatch.setattr("pipeline.train.failures.cause_of", lambda error: cause)
    if storage:
        with pytest.raises(StorageError, match="cannot write"):
            processes.nested_trial({"invalid": ""}, trial)
        assert told == []
    else:
        processes.nested_trial({"invalid": ""}, trial)
        assert told[0]["failure"] == "ValueError: got 3"
