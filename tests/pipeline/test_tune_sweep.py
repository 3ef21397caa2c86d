"""Whole searches on Ray: killed and continued, with failing trials, with several workers a trial."""

import json
import shutil
import signal

import optuna
import psutil
import pyarrow.parquet as pq
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FrozenTrial, TrialState
from processes import descendants, finish, here, kill_driver, start, wait_for
from test_report import finish as finished_run
from test_report import page_of

from pipeline.config.load import load_config

SPACE = {
    "sampler.learning_rate": {"type": "choice", "values": [0.001, 0.003, 1e30]},
    "sampler.posterior_noise": {"type": "uniform", "low": 0.5, "high": 1.0},
}
SWEEP = [
    f"tune.space={json.dumps(SPACE)}",
    "tune.start_from=[{sampler.learning_rate: 1.0e+30}]",
    "tune.scheduler=none",
    "tune.metrics=[fd,recall]",
    "tune.sampler=random",
    "tune.num_images=200",
    "tune.draws=1",
    "sampler.steps=600",
    "sampler.checkpoint_steps=600",
    "tune.reports=30",
]


def trials(storage) -> list[FrozenTrial]:
    backend = JournalStorage(JournalFileBackend(str(storage / "tiny/tune/study.log")))
    [name] = optuna.get_all_study_names(backend)
    return optuna.load_study(study_name=name, storage=backend).trials


def ended(storage) -> dict[int, FrozenTrial]:
    if not (storage / "tiny/tune/study.log").exists():
        return {}
    return {trial.number: trial for trial in trials(storage) if trial.state.is_finished()}


def table(storage) -> list[dict]:
    return pq.read_table(storage / "tiny/tune/trials.parquet").to_pylist()


def trial_processes(process) -> list[psutil.Process]:
    found = []
    for child in descendants(process):
        try:
            if "ImplicitFunc" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:
            continue
    return found


@pytest.mark.slow
def test_a_search_survives_kills_of_a_trial_and_of_the_driver(tmp_path, one_ray):
    here("prepare", tmp_path)
    process = start("tune", tmp_path, *SWEEP, "tune.num_samples=4")
    checkpoints = tmp_path / "tiny/tune/checkpoints"
    wait_for(lambda: list(checkpoints.glob("*/00000/000[0-9]*/state.json")), "checkpoint of a trial")
    wait_for(lambda: trial_processes(process), "process of a trial")
    trial_processes(process)[0].send_signal(signal.SIGKILL)
    wait_for(lambda: len(ended(tmp_path)) >= 2 and list(checkpoints.glob("*/*/*/state.json")), "two ended trials")
    kill_driver(process)
    before = ended(tmp_path)
    assert not (tmp_path / "tiny/tune/manifest.json").exists()
    assert len(trials(tmp_path)) > len(before)

    out, _ = here("tune", tmp_path, *SWEEP, "tune.num_samples=5")  # one more than it was begun with
    assert "go on from their checkpoints" in out
    after = ended(tmp_path)
    assert [trial.number for trial in trials(tmp_path)] == list(range(5)) == sorted(after)
    for number, trial in before.items():
        assert after[number] == trial  # values, times and figures untouched
    assert after[0].state == TrialState.COMPLETE
    assert after[1].state == TrialState.FAIL
    assert "is not finite at step" in after[1].user_attrs["reason"]
    assert not checkpoints.exists()
    assert not (tmp_path / "tiny/tune/ray").exists()  # what Tune pickles lies where nobody else reads it

    rows = table(tmp_path)
    assert [row["number"] for row in rows] == list(range(5))
    assert rows[0]["origin"] == "defaults"
    config = load_config(tmp_path / "tiny/tune/best.yaml")
    assert config.name == "tiny-best"
    assert config.sampler.learning_rate in (0.001, 0.003)
    for picture in ("history.png", "front.png", "parallel.png", "grid-best.png", "grid-default.png"):
        assert (tmp_path / "tiny/tune" / picture).read_bytes()[1:4] == b"PNG"

    out, _ = here("tune", tmp_path, *SWEEP, "tune.num_samples=5")
    assert "tune: up to date" in out

    other = finished_run(tmp_path / "other")
    shutil.copytree(tmp_path / "tiny/tune", tmp_path / "other/digits/tune")
    page = page_of(other)
    assert "<h2>Hyperparameter search</h2>" in page
    assert "Images of the best trial." in page
    assert other.folder.exists("report/search-history.png")


@pytest.mark.drill
def test_trials_of_several_workers_and_both_phases_are_stopped_without_a_hang(tmp_path):
    space = {
        "train.inverse_temperature": {"type": "loguniform", "low": 1e-3, "high": 100},
        "train.particles": {"type": "int", "low": 2, "high": 4},
    }
    process = start(
        "tune",
        tmp_path,
        f"tune.space={json.dumps(space)}",
        # Far worse than the defaults from the first report on, so ASHA stops it; the third needs its CPUs.
        "tune.start_from=[{train.inverse_temperature: 0.001}]",
        "tune.num_samples=3",
        "tune.num_images=200",
        "tune.draws=1",
        "tune.reports=2",
        "train.epochs=20",
        "train.num_workers=2",
    )
    out, _ = finish(process, timeout=400)
    assert "nothing: each trains all phases" in out
    rows = table(tmp_path)
    assert [row["number"] for row in rows] == [0, 1, 2]
    assert rows[0]["state"] == "COMPLETE"
    assert rows[1]["state"] == "PRUNED"
    assert "stopped by the scheduler" in rows[1]["reason"]
    assert {trial.state for trial in trials(tmp_path)} <= {TrialState.COMPLETE, TrialState.PRUNED}
