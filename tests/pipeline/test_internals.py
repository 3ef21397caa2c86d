"""Names that Ray and Optuna do not promise to keep stand in one module each, and the installed versions have them."""

import ast
import importlib
import inspect
import re
from pathlib import Path

import optuna
import pytest
import ray

from pipeline.remote import internals as of_ray
from pipeline.tune import internals as of_optuna

ROOT = Path(__file__).parents[2]
PRIVATE = (
    r"_ot_trials|_trial_id|class_cache|AutoscalingCoordinator|cancel_request|train_run_context|print_to_stdstream|"
    r"_actor_task_failed|"
    r"\._contains\("
)


def lacks(library, name, where):
    needs = " or ".join(module.__name__ for module in (of_ray, of_optuna))
    version = f"{library.__name__} {library.__version__}"
    return f"{version} has no {name} in {where}, which {needs} needs: adapt it, or pin an older version"


def source(module):
    return inspect.getsource(importlib.import_module(module))


def test_rays_coordinator_of_reservations_is_where_it_was():
    where = "ray.data._internal.cluster_autoscaler.default_autoscaling_coordinator"
    try:
        text = source(where)
    except ImportError:
        pytest.fail(lacks(ray, "module", where))
    assert f'"{of_ray.COORDINATOR}"' in text, lacks(ray, of_ray.COORDINATOR, where)
    assert re.search(r"def cancel_request\(\s*self,\s*requester_id\b", text), lacks(
        ray, "cancel_request(requester_id)", where
    )


def test_a_trainer_tells_what_it_reserves_under():
    from ray.train import ScalingConfig
    from ray.train.torch import TorchTrainer

    trainer = TorchTrainer(print, scaling_config=ScalingConfig(num_workers=1))
    name = of_ray.reservation_of(trainer)
    where = "ray.train.torch.TorchTrainer"
    assert name is not None, lacks(ray, "train_run_context.run_id", where)
    assert re.fullmatch(r"train-\w+", name)


def test_tune_copies_keys_from_where_they_are_taken(monkeypatch):
    where = "ray.tune.execution.class_cache"
    module = importlib.import_module(where)
    assert hasattr(module, "ENV_VARS_TO_PROPAGATE"), lacks(ray, "ENV_VARS_TO_PROPAGATE", where)
    monkeypatch.setattr(module, "ENV_VARS_TO_PROPAGATE", {"AWS_SECRET_ACCESS_KEY", "OTHER"})
    of_ray.keep_keys_out_of_runtime_environments()
    left = module.ENV_VARS_TO_PROPAGATE
    assert left == {"OTHER"}


def test_pages_about_processes_that_died_are_not_printed(monkeypatch):
    where = "ray._private.worker"
    module, shown = importlib.import_module(where), []
    assert hasattr(module, "print_to_stdstream"), lacks(ray, "print_to_stdstream", where)
    called = r'print_to_stdstream\(\s*\{\s*"lines": \[error_message\]'
    assert re.search(called, source(where)), lacks(ray, "print_to_stdstream of error messages", where)
    monkeypatch.setattr(module, "print_to_stdstream", lambda data, ignore_prefix: shown.append(data["lines"][0]))
    of_ray.drop_death_notices()
    of_ray.drop_death_notices()
    for line in (
        "Task f failed due to oom. There are",
        "A worker died or was killed while executing",
        "no room for f",
    ):
        module.print_to_stdstream({"lines": [line], "pid": "raylet", "is_err": False}, ignore_prefix=False)
    assert shown == ["no room for f"]


def test_a_trial_that_is_killed_for_memory_is_one_that_was_lost(monkeypatch):
    from ray.air.execution._internal import RayActorManager

    name, where = "_actor_task_failed", "ray.air.execution._internal.RayActorManager"
    assert hasattr(RayActorManager, name), lacks(ray, name, where)
    seen = []
    monkeypatch.setattr(RayActorManager, name, lambda self, tracked_actor_task, exception: seen.append(exception))
    of_ray.count_killed_trials_as_lost()
    of_ray.count_killed_trials_as_lost()
    other = ValueError("got 3")
    for error in (ray.exceptions.OutOfMemoryError("a page"), other):
        getattr(RayActorManager, name)(None, tracked_actor_task=None, exception=error)
    assert isinstance(seen[0], ray.exceptions.RayActorError)
    assert str(seen[0]) == "a page"
    assert seen[1] is other


def test_optunas_trials_can_be_opened_again():
    study = optuna.create_study()
    study.ask().suggest_float("x", 0, 1)
    (running,) = study.get_trials(states=(optuna.trial.TrialState.RUNNING,))
    assert hasattr(running, "_trial_id"), lacks(optuna, "_trial_id", "FrozenTrial")
    again = of_optuna.resume(study, of_optuna.storage_id(running))
    assert (again.number, again.params) == (running.number, running.params)
    assert hasattr(optuna.distributions.FloatDistribution(0, 1), "_contains"), lacks(
        optuna, "_contains", "distributions"
    )
    assert of_optuna.contains(optuna.distributions.IntDistribution(0, 4, step=2), 2)
    assert not of_optuna.contains(optuna.distributions.IntDistribution(0, 4, step=2), 5)


def test_tunes_searcher_keeps_its_trials_where_it_did():
    from ray.tune.search.optuna import OptunaSearch

    search = OptunaSearch({"x": optuna.distributions.FloatDistribution(0, 1)}, metric="m", mode="min")
    assert hasattr(search, "_ot_trials"), lacks(ray, "_ot_trials", "OptunaSearch")
    assert of_optuna.open_trials(search) is search._ot_trials


@pytest.mark.parametrize("path", sorted((ROOT / "pipeline").rglob("*.py")), ids=lambda path: path.stem)
def test_no_other_module_knows_them(path):
    if path.name == "internals.py":
        return
    words = {node.attr for node in ast.walk(ast.parse(path.read_text("utf-8"))) if isinstance(node, ast.Attribute)}
    assert not re.findall(PRIVATE, path.read_text("utf-8"))
    assert "_internal" not in words
