"""Joining and starting Ray: one clear error; ranges of workers that fit the batch."""

import pytest
import ray

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config
from pipeline.remote.connect import connect
from pipeline.store.run import open_run
from pipeline.train.stage import _check


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], r"Ray did not start: The node timed out during startup\.; .* the same command may work later"),
        (["ray.address=10.0.0.9:6379"], r"ray\.address: cannot join the cluster at 10\.0\.0\.9:6379: The node timed"),
    ],
)
def test_a_ray_that_does_not_start_is_one_line(monkeypatch, overrides, message):
    def fail(**options):
        raise Exception("The node timed out during startup.\nDetails that fill a screen.")

    monkeypatch.setattr(ray, "init", fail)
    with pytest.raises(PipelineError, match=message) as error, connect(load_config(None, overrides)):
        pass
    assert "\n" not in str(error.value)


def test_every_number_of_workers_in_a_range_must_divide_the_batch(tmp_path):
    overrides = ["train.num_workers=[1,4]", "train.batch_size=64", "sampler.particles=96", f"storage={tmp_path}"]
    run = open_run(load_config(None, overrides))
    run.stage("data", {}, lambda _: ([], {"shape": [1, 8, 8]}))
    with pytest.raises(ConfigError) as error:
        _check(run)
    assert "train.batch_size: 64 does not divide over train.num_workers=[1, 4] (3 of them)" in str(error.value)
    assert "sampler.particles" not in str(error.value)


@pytest.mark.parametrize("value", ["0", "[4,1]", "[1]", "[1,2,3]", "two", "1.5", "true"])
def test_what_is_no_number_of_workers_is_refused_in_one_line(value):
    with pytest.raises(
        ConfigError, match=r"train\.num_workers: must be a number from 1 up, or \[least, most\]"
    ) as error:
        load_config(None, [f"train.num_workers={value}"])
    assert str(error.value).count("\n") == 1
