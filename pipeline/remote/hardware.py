"""What hardware there is, on this machine and on the cluster's nodes, and what of a configuration fits on it."""

import json
import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

from ldcvae.variants import GENERATORS, Generator
from pipeline.config.errors import ConfigError
from pipeline.config.sections import Config
from pipeline.config.together import Check, submitted
from pipeline.config.variants import EXTRACTORS, FeatureExtractor

__all__ = [
    "Placement",
    "grows",
    "hardware_checks",
    "has_gpus",
    "in_job",
    "is_local",
    "missing",
    "on_shares",
    "place_workers",
    "require_room",
    "room",
    "use_cuda",
]

_MOST_THREADS = 16  # of one worker


def in_job() -> bool:
    """Whether this process uses a cluster that is named by its environment, as the entrypoint of a Ray job does."""
    return submitted() or "RAY_ADDRESS" in os.environ


def is_local(config: Config) -> bool:
    """Whether the run's Ray is a local one of its own, whose hardware is this machine's."""
    return config.ray.address is None and not in_job()


def _device(config: Config) -> Iterator[str]:
    if config.train.device == "cuda" and is_local(config):
        if config.ray.num_gpus == 0:
            yield "train.device: cuda does not go together with ray.num_gpus=0; use auto or cpu, or give Ray a GPU"
            return
        import torch  # only here: nothing else waits for it

        if not torch.cuda.is_available():
            yield (
                "train.device: cuda, but torch finds no usable GPU on this machine; use auto or cpu, or join a "
                "cluster with ray.address"
            )


def _workers(config: Config) -> Iterator[str]:
    wanted, settings = config.train.least_workers, config.ray
    if not is_local(config):
        return
    # More than Ray may count, in a container say: then `place_workers` refuses, once Ray has started.
    cpus = settings.num_cpus or os.cpu_count() or 1
    if wanted > cpus:
        where = "ray.num_cpus is" if settings.num_cpus else "this machine has"
        yield (
            f"train.num_workers: {wanted} workers need as many CPUs, {where} {cpus}; lower it, or join a larger "
            "cluster with ray.address"
        )


def missing(variant: FeatureExtractor | Generator) -> tuple[str, str] | None:
    """The package that a variant needs and this machine has not, and how to get it."""
    return variant.needs if variant.needs is not None and find_spec(variant.needs[0]) is None else None


def _judging(config: Config) -> Iterator[str]:
    """What judging needs and is not here: better said before hours of training than after them."""
    settings = config.evaluate
    wanted: list[tuple[str, FeatureExtractor | Generator | None]] = [
        ("extractor", EXTRACTORS.get(settings.extractor)),
        ("second_extractor", EXTRACTORS.get(settings.second_extractor)),
    ]
    wanted += [(f"generators.{name}", GENERATORS[name]) for name in settings.generators]
    for key, variant in wanted:
        if variant is not None and (lacking := missing(variant)) is not None:
            package, remedy = lacking
            yield f"evaluate.{key}: {variant.name} needs {package}, which is not installed: {remedy}"
    for key in ("extractor_file", "inception_weights"):
        path = getattr(settings, key)
        if path is not None and "://" not in path and not os.path.exists(path):
            yield f"evaluate.{key}: {path} does not exist"


def hardware_checks(stage: str) -> tuple[Check, ...]:
    """What the command line checks of this machine before a stage, beside what every configuration has to fulfil."""
    device, workers = Check(("train", "ray"), _device), Check(("train", "ray"), _workers)
    judging = Check(("evaluate",), _judging)
    stages = {
        "run": (device, workers, judging),
        "train": (device, workers),
        "evaluate": (judging,),
        "tune": (device, workers, judging),
        "compare": (device, judging),
    }
    return stages.get(stage, ())


def has_gpus() -> bool:
    """Whether the connected cluster has GPUs."""
    import ray

    return ray.cluster_resources().get("GPU", 0) > 0


def use_cuda(device: str) -> bool:
    """Whether `device` (auto, cpu, cuda) means CUDA on the connected cluster."""
    return device == "cuda" or (device == "auto" and has_gpus())


def _nodes() -> list[dict[str, float]]:
    """The resources of every living node of the connected cluster."""
    import ray

    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def grows() -> bool:
    """Whether a launcher that adds nodes by demand (`ray up`, KubeRay) has started nodes of this cluster."""
    import ray

    return any(node["Alive"] and "ray.io/node-group" in node.get("Labels", {}) for node in ray.nodes())


def on_shares(config: Config, gpus: float | None) -> Config:
    """The configuration of a trial or a cell that is given so much of a GPU: without any it computes on the CPU.

    A task that asks Ray for no GPU still sees them all, and as many tasks as there are CPUs would share the first.

    Example:
        >>> on_shares(Config(), 0.0).train.device, on_shares(Config(), None).train.device
        ('cpu', 'auto')
    """
    if gpus != 0 or config.train.device != "auto":
        return config
    return config.model_copy(update={"train": config.train.model_copy(update={"device": "cpu"})})


def room(bundle: Mapping[str, float], nodes: Sequence[Mapping[str, float]]) -> int:
    """How often `bundle` fits on the nodes; each time it lies on one of them, and a part of a GPU on one GPU.

    Example:
        >>> room({"CPU": 3}, [{"CPU": 4.0}] * 4), room({"CPU": 8}, [{"CPU": 4.0}] * 4)
        (4, 0)
        >>> room({"CPU": 1, "GPU": 0.4}, [{"CPU": 8.0, "GPU": 2.0}])
        4
    """

    def fits(have: float, count: float) -> int:
        return int(have) * int(1 / count + 1e-9) if count < 1 else int(have // count)

    return sum(min(fits(node.get(what, 0.0), count) for what, count in bundle.items() if count) for node in nodes)


def _count(number: float, what: str) -> str:
    return f"{number:g} {what}" + ("" if number == 1 else "s")


def _have(nodes: Sequence[Mapping[str, float]]) -> str:
    """The nodes in words.

    Example:
        >>> _have([{"CPU": 2.0}, {"CPU": 2.0}, {"CPU": 8.0, "GPU": 1.0}, {}])
        '2 nodes of 2 CPUs and 0 GPUs, 1 node of 8 CPUs and 1 GPU'
    """
    kinds = Counter((int(node.get("CPU", 0)), int(node.get("GPU", 0))) for node in nodes)
    found = [
        f"{_count(number, 'node')} of {_count(cpus, 'CPU')} and {_count(gpus, 'GPU')}"
        for (cpus, gpus), number in sorted(kinds.items())
        if cpus or gpus
    ]
    return ", ".join(found) or "no node with CPUs or GPUs"


def require_room(
    config: Config, key: str, wanted: int, what: str, bundle: Mapping[str, float], remedy: str = "lower it"
) -> int:
    """How often a bundle fits on the connected cluster; fewer than `wanted` only where nodes can still come.

    Args:
        config: tells whether Ray is a local one.
        key: that asks for the bundles, for the message.
        wanted: how many bundles are needed.
        what: what takes one of them, e.g. "worker".
        bundle: resources, of one node.
        remedy: what to do about the key.

    Raises:
        ConfigError: if there is too little room and no more will come: on this machine, and on a cluster that has
            nodes and no launcher that would add others.
    """
    nodes = _nodes()
    fits = room(bundle, nodes)
    empty = not any(node.get("CPU") or node.get("GPU") for node in nodes)
    if fits < wanted and (is_local(config) or not (empty or grows())):
        each = " each" if wanted > 1 else ""
        words = " and ".join(_count(count, kind) for kind, count in bundle.items() if count)
        raise ConfigError(
            f"{key}: no room for {_count(wanted, what)} of {words}{each}; Ray has {_have(nodes)}; {remedy}, or join "
            "a larger cluster with ray.address"
        )
    return fits


def _asked_threads() -> int | None:
    """The threads of OMP_NUM_THREADS where the user has set it: more would wait for each other, spinning."""
    environment: Mapping[str, str] = os.environ
    if submitted():  # whose entrypoint is given a 1 by Ray; what the user says is in the job's runtime environment
        job = json.loads(os.environ["RAY_JOB_CONFIG_JSON_ENV_VAR"])
        environment = (job.get("runtime_env") or {}).get("env_vars") or {}
    first = environment.get("OMP_NUM_THREADS", "").partition(",")[0].strip()  # further ones are of nested regions
    return int(first) if first.isdecimal() and int(first) else None


@dataclass(frozen=True)
class Placement:
    """How training is laid out on the connected cluster.

    Attributes:
        cuda: whether workers have a GPU each.
        resources: of one worker, as Ray takes them.
        threads: CPU threads of one worker, by its CPUs and at most OMP_NUM_THREADS.
        fits: how many workers the cluster has room for now.
    """

    cuda: bool
    resources: dict[str, float]
    threads: int
    fits: int


def place_workers(config: Config) -> Placement:
    """Resources of the training workers: as many CPUs as leave room on the nodes for all of them.

    Raises:
        ConfigError: if the fewest workers cannot be placed, with what there is.
    """
    settings, nodes = config.train, _nodes()
    cuda = use_cuda(settings.device)
    least: dict[str, float] = {"CPU": 1.0} | ({"GPU": 1.0} if cuda else {})
    key, remedy = "train.num_workers", "lower it"
    if cuda and not has_gpus():
        key, remedy = "train.device", "use auto or cpu"
    fits = require_room(config, key, settings.least_workers, "worker", least, remedy)
    threads = 1
    if most := min(settings.most_workers, fits):
        sizes = range(_MOST_THREADS, 0, -1)
        threads = next(size for size in sizes if room(least | {"CPU": size}, nodes) >= most)
    resources = least if cuda else {"CPU": float(threads)}
    return Placement(cuda, resources, min(threads, _asked_threads() or threads), fits)
