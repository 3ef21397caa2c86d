"""Where images are drawn and judged: the device of a process, a task's share of the GPUs, and what manifests say.

No GPU is needed: `cuda` is what the code under test is told, and the CPU does the work.
"""

import contextlib
import shutil
from types import SimpleNamespace

import pytest
import ray
import torch
from test_old_run import OLD

from ldcvae import LDCVAE
from pipeline import sample
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config, override
from pipeline.judge import figures
from pipeline.judge.extractors import Extractor
from pipeline.judge.figures import make_reference
from pipeline.remote import connect, device
from pipeline.sample import draw
from pipeline.store.data.shards import decode_shard
from pipeline.store.folder import Folder
from pipeline.store.run import open_run


@pytest.fixture
def gpu(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)


@pytest.mark.parametrize(
    ("overrides", "kind"),
    [
        ([], "cuda"),
        (["train.device=cuda"], "cuda"),
        (["train.device=cpu"], "cpu"),
        (["ray.num_gpus=0"], "cpu"),
        (["ray.num_gpus=1"], "cuda"),
        (["train.device=cuda", "ray.num_gpus=0"], "cuda"),
    ],
)
def test_the_device_of_a_process_follows_that_of_training(gpu, overrides, kind):
    assert device.process_device(load_config(None, overrides)).type == kind


def test_without_a_gpu_auto_is_the_cpu_and_cuda_an_error(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.process_device(load_config(None, [])).type == "cpu"
    with pytest.raises(ConfigError, match=r"train\.device: 'cuda', but this process sees no GPU; give auto or cpu"):
        device.process_device(load_config(None, ["train.device=cuda"]))


@pytest.mark.parametrize(
    ("gpus", "tasks", "share"), [(1, 1, 1), (4, 2, 1), (2, 4, 0.5), (2, 3, 0.5), (1, 8, 0.125), (0, 3, 1)]
)
def test_tasks_that_run_at_a_time_share_the_gpus(monkeypatch, gpus, tasks, share):
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 8.0, "GPU": float(gpus)})
    assert connect.task_resources(True, tasks) == {"num_cpus": 1, "num_gpus": share}
    assert connect.task_resources(False, tasks) == {"num_cpus": 1}


@pytest.mark.parametrize(
    ("overrides", "gpus", "placed"),
    [
        ([], 2, False),  # no cluster: this process, which looks for a GPU itself
        (["ray.address=here"], 0, False),
        (["ray.address=here"], 2, True),
        (["ray.address=here", "train.device=cpu"], 2, False),
        (["ray.address=here", "train.device=cuda"], 0, True),  # waits for one
    ],
)
def test_judging_goes_where_training_would(monkeypatch, overrides, gpus, placed):
    monkeypatch.setattr(connect, "connect", lambda config: contextlib.nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": float(gpus)})
    monkeypatch.setattr(connect, "parallel_map", lambda function, items, *more: iter([("task", *more)]))
    found = connect.run_on_accelerator(load_config(None, overrides), lambda _: "here", None)
    assert found == (("task", 1, {"num_cpus": 1, "num_gpus": 1}) if placed else "here")


def test_what_a_user_causes_is_told_as_it_is_from_a_task_too(monkeypatch):
    class Task:
        remote = options = lambda self, *_, **__: self

    def task(error):
        def failing(_):
            raise error

        monkeypatch.setattr(connect, "connect", lambda config: contextlib.nullcontext())
        monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 1.0})
        monkeypatch.setattr(ray, "remote", lambda function: Task())
        monkeypatch.setattr(ray, "get", failing)
        connect.run_on_accelerator(load_config(None, ["ray.address=here"]), print, None)

    def raised(cause):
        return ray.exceptions.RayTaskError("f", "a page of traceback", cause).as_instanceof_cause()

    with pytest.raises(ConfigError) as caught:
        task(raised(ConfigError("no labels")))
    assert str(caught.value) == "no labels"
    with pytest.raises(ray.exceptions.RayTaskError, match="a page of traceback"):
        task(raised(ValueError("got 3")))
    with pytest.raises(PipelineError, match="a task failed: its process was killed or crashed"):
        task(ray.exceptions.WorkerCrashedError())


@pytest.fixture
def opened(tmp_path):
    """The run of 0.1 with 60 images; opens it under other keys."""
    shutil.copytree(OLD, tmp_path / "run-0.1")

    def under(*overrides):
        named = [f"storage={tmp_path}", "name=run-0.1", "sample.batch_size=25"]
        return open_run(load_config(OLD / "config.yaml", [*named, *overrides]))

    return under


def pixels(run):
    names = [name for name in sorted(run.manifest("samples").outputs) if name.endswith(".parquet")]
    return torch.cat([torch.tensor(decode_shard(run.folder.read(name), (1, 8, 8))[0]) for name in names])


def test_images_are_drawn_on_one_kind_of_device_by_any_number_of_workers(opened, monkeypatch):
    alone = opened("train.device=cpu")
    assert sample.run(alone).info["device"] == "cpu"
    seen = []

    def on_fake_gpus(function, jobs, workers, resources):
        seen.append(([job["device"] for job in jobs], workers, resources))
        return map(function, [job | {"device": "cpu"} for job in jobs])

    monkeypatch.setattr(draw, "connect", lambda config: contextlib.nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})
    monkeypatch.setattr(draw, "parallel_map", on_fake_gpus)
    monkeypatch.setattr(draw, "device_name", lambda _: "Fake GPU")
    for overrides in (["sample.num_workers=4"], ["ray.address=here"]):
        drawn = opened(*overrides)
        assert sample.run(drawn, force=True).info["device"] == "Fake GPU"
        assert torch.equal(pixels(drawn), pixels(alone))
        assert drawn.folder.read("samples/grid.png") == alone.folder.read("samples/grid.png")
    assert seen == [
        (["cuda"] * 3, 4, {"num_cpus": 1, "num_gpus": 0.5}),
        (["cuda"] * 3, 1, {"num_cpus": 1, "num_gpus": 1}),
    ]


def test_a_reference_is_made_where_the_gpu_is_and_kept_on_the_cpu(opened, monkeypatch):
    alone = make_reference(opened("train.device=cpu"), "validation", "test")
    used, placed = [], []

    def on_fake_gpu(function, items, workers, resources):
        placed.append(resources)
        return map(function, items)

    monkeypatch.setattr(figures, "process_device", lambda config: torch.device("cuda"))
    monkeypatch.setattr(Extractor, "to", lambda extractor, where: used.append(where.type) or extractor)
    monkeypatch.setattr(connect, "connect", lambda config: contextlib.nullcontext())
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"GPU": 2.0})
    monkeypatch.setattr(connect, "parallel_map", on_fake_gpu)
    for overrides in ([], ["ray.address=here"]):
        reference = make_reference(opened(*overrides), "validation", "test")
        for split in ("validation", "test"):
            assert torch.equal(reference.features[split], alone.features[split])
    assert used == ["cuda", "cpu"] * 2
    assert placed == [{"num_cpus": 1, "num_gpus": 1}]


def test_one_worker_takes_the_device_of_this_process_and_another_device_is_no_reason_to_draw_again(
    opened, monkeypatch, capsys
):
    used = []
    monkeypatch.setattr(draw, "process_device", lambda config: torch.device("cuda"))
    monkeypatch.setattr(draw, "load_model", lambda run: LDCVAE.from_pretrained(OLD / "model"))
    monkeypatch.setattr(LDCVAE, "to", lambda model, where: used.append(where.type) or model)
    monkeypatch.setattr(draw, "device_name", lambda where: f"Fake {where.type}")
    assert sample.run(opened()).info["device"] == "Fake cuda"
    assert used == ["cuda"]
    monkeypatch.undo()
    assert sample.run(opened("train.device=cpu", "sample.num_workers=3")).info["device"] == "Fake cuda"
    assert "samples: up to date" in capsys.readouterr().out


def test_large_images_are_decoded_in_parts(monkeypatch):
    model = LDCVAE.from_pretrained(OLD / "model")
    whole, sizes, decode = draw.sample_batch(model, 0, 0, 60), [], LDCVAE.decode
    monkeypatch.setattr("ldcvae.batches._NUMBERS", 64 * 7)
    monkeypatch.setattr(LDCVAE, "decode", lambda model, part: sizes.append(len(part)) or decode(model, part))
    parts = draw.sample_batch(model, 0, 0, 60)
    assert sizes == [7] * 8 + [4]
    assert (parts.int() - whole.int()).abs().max() <= 1
    assert (parts != whole).float().mean() < 0.01


def test_a_model_is_kept_at_one_temperature(monkeypatch):
    monkeypatch.setattr(draw, "load_model", lambda run: torch.nn.Linear(1, 1))
    config = load_config(None, [])
    first, again, hot = (
        draw._model(SimpleNamespace(folder=Folder("/tmp"), config=one), "digest", torch.device("cpu"))
        for one in (config, config, override(config, {"sample.temperature": 1.5}))
    )
    assert first is again
    assert hot is not first
