"""A run: its configuration, its folder, its plugins, and what its finished stages say of themselves."""

import json
import platform
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from importlib.metadata import version
from typing import Any

from pipeline.config.errors import ConfigError, MissingFileError, PipelineError
from pipeline.config.load import dump_yaml, parse_config
from pipeline.config.plugins import load_plugins
from pipeline.config.sections import Config
from pipeline.store.folder import Folder, fingerprint
from pipeline.store.manifest import Manifest, Output, at_format, parse_manifest, say
from pipeline.store.schema import INFO, parse_as
from pipeline.store.weights import FILES

__all__ = ["STAGES", "Run", "open_run"]

STAGES = {
    "data": "prepare",
    "train": "train",
    "samples": "sample",
    "evaluation": "evaluate",
    "report": "report",
    "tune": "tune",
    "compare": "compare",
}
"""Folder of a stage -> the module that writes it."""

# In every fingerprint since 0.1.0; another value would make all stages of all runs stale. Where a stage writes
# something else than before, its own `FORMAT` is raised.
_VERSION = "0.1.0"

# What a stage was made with that does not say: these keys came later, or are not kept at their defaults.
_BEFORE: dict[str, dict[str, Any]] = {
    "train": {"decoder.epochs": 0, "model.upsample": "transposed"},
    "evaluation": {"sample.temperature": 1.0},
}


@dataclass(frozen=True)
class Run:
    """One run, made once by the command line and handed down, to other processes too.

    Attributes:
        config: its configuration.
        folder: where everything of it lies.
        plugins: modules that a process imports before it reads the configuration.

    Example:
        >>> import tempfile
        >>> run = open_run(Config(storage=tempfile.mkdtemp(), name="cats"))
        >>> run.folder.url.endswith("/cats"), run.has("data")
        (True, False)
        >>> run.manifest("data")
        Traceback (most recent call last):
        pipeline.config.errors.PipelineError: ...
    """

    config: Config
    folder: Folder
    plugins: tuple[str, ...] = ()
    _manifests: dict[str, Manifest] = field(default_factory=dict, repr=False, compare=False)

    def __reduce__(self) -> tuple[Callable[..., "Run"], tuple[Any, ...]]:
        # As text, and the plugins first: the other process must know their variants to read the configuration.
        return _reopen, (self.plugins, self.config.model_dump(mode="json"), self.folder.url)

    def with_config(self, config: Config) -> "Run":
        """The same folder and plugins under another configuration."""
        return replace(self, config=config)

    def has(self, stage: str) -> bool:
        """Whether a stage has finished."""
        return self.folder.exists(f"{stage}/manifest.json")

    def manifest(self, stage: str) -> Manifest:
        """The manifest of a finished stage, read once.

        Raises:
            PipelineError: if the stage has not finished or its manifest is damaged, naming the command to run.
        """
        if stage not in self._manifests:
            if not self.has(stage):
                raise PipelineError(
                    f"{self.folder.url}/{stage}/manifest.json does not exist, so that stage has not finished: "
                    f"run `python -m pipeline.{STAGES[stage]}` with the same config first, or "
                    "`python -m pipeline.run` for all stages"
                )
            again = f"run `python -m pipeline.{STAGES[stage]} --force` with the same config"
            try:
                self._manifests[stage] = parse_manifest(self.folder.read_json(f"{stage}/manifest.json"))
            except (PipelineError, ValueError) as error:
                raise PipelineError(
                    f"{self.folder.url}/{stage}/manifest.json is damaged ({error}), so nothing in {stage}/ can be "
                    f"trusted: {again}"
                ) from None
            if stage in INFO:
                where = f"{self.folder.url}/{stage}/manifest.json: info"
                parse_as(INFO[stage], self._manifests[stage].info, where, again)
        return self._manifests[stage]

    def made(self, stage: str) -> Manifest:
        """The manifest of a finished stage that was made with this configuration.

        Raises:
            ConfigError: naming the keys in which the configurations differ, or the earlier stage that has been made
                anew since.
            PipelineError: as `manifest`.
        """
        manifest = self.manifest(stage)
        here = _flat(self.config.model_dump(mode="json"))
        sections = _mapping(manifest.info, "made_with")
        there = _BEFORE.get(stage, {}) | _later(sections) | _flat(sections)
        differing = [
            f"{key}: {value!r} there, {here[key]!r} here"
            for key, value in there.items()
            if key in here and here[key] != value
        ]
        if differing:
            remedy = (
                f"take that one (--config {self.folder.url}/config.yaml, or the same overrides), or make it anew "
                f"with `python -m pipeline.{STAGES[stage]}` or `python -m pipeline.run`"
            )
            what = f"{self.folder.url}/{stage} was made with another configuration:"
            raise ConfigError("\n  ".join([what, *differing, remedy]))
        for earlier, digest in _mapping(manifest.info, "made_from").items():
            if earlier in STAGES and self.has(earlier) and self.manifest(earlier).digest != digest:
                raise ConfigError(
                    f"{self.folder.url}/{stage} was made from another {earlier}/ than is there now: make it anew by "
                    f"`python -m pipeline.{STAGES[stage]}`, or by `python -m pipeline.run`, which makes all that "
                    "follows"
                )
        return manifest

    def output(self, stage: str, name: str) -> bytes:
        """Content of a file that a finished stage has written, refused unless it is what its manifest says.

        Raises:
            PipelineError: if it is missing, damaged or not the stage's.
        """
        manifest = self.manifest(stage)
        if name not in manifest.outputs:
            raise PipelineError(f"{self.folder.url}/{name} is not among the outputs of {stage}/manifest.json")
        try:
            return self.folder.read_verified(name, manifest.outputs[name]["sha256"])
        except MissingFileError as error:
            raise PipelineError(
                f"{error}, although {stage}/manifest.json lists it: run "
                f"`python -m pipeline.{STAGES[stage]} --force` with the same config"
            ) from None

    @property
    def data(self) -> Manifest:
        """The manifest of the data set."""
        return self.manifest("data")

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of the images."""
        channels, height, width = self.data.info["shape"]
        return channels, height, width

    def _current(self, stage: str, wanted: str) -> Manifest | None:
        """The manifest, if it matches the inputs and every output it names is there in its full size."""
        if not self.has(stage) or (manifest := self.manifest(stage)).fingerprint != wanted:
            return None
        found: dict[str, dict[str, Any]] = {}
        for top in {name.rpartition("/")[0].partition("/")[0] for name in manifest.outputs}:
            found |= self.folder.below(top)  # one request, or a few, where asking for each output is one each
        whole = all(
            name in found and found[name]["size"] == entry["bytes"] for name, entry in manifest.outputs.items()
        )
        return manifest if whole else None

    def stage(
        self,
        stage: str,
        depends_on: Mapping[str, Any],
        work: Callable[[str], tuple[Sequence[str | Output], dict[str, Any]]],
        force: bool = False,
        format: int = 1,
        check: Callable[[], None] | None = None,
    ) -> Manifest:
        """Do a stage's work unless it is already done for the same inputs; its manifest is written last.

        What is done already waits for no library, where `work` and `check` are `lazy` ones of another module.

        Args:
            stage: name of the stage's folder.
            depends_on: everything that decides the outputs: config sections, digests of earlier stages.
            work: `fingerprint -> (outputs, figures)`; an output that is only a path under the run's folder is read
                back for its hash.
            force: work even when the stage is current.
            format: number of the code that works, raised when it writes something else for the same `depends_on`.
            check: raises what makes the work impossible, while what an earlier one has left is still whole.

        Returns:
            The manifest, new or as it was.
        """
        wanted = fingerprint(at_format({"version": _VERSION, "stage": stage, **depends_on}, format))
        if not force and (current := self._current(stage, wanted)) is not None:
            say(f"{stage}: up to date, {self.folder.url}/{stage}")
            return current
        if check is not None:
            check()
        self.folder.write("config.yaml", dump_yaml(self.config).encode())
        # From here until the end the folder's content is in flux: without a manifest nobody takes it for whole.
        self._manifests.pop(stage, None)
        self.folder.remove(f"{stage}/manifest.json")
        started = time.perf_counter()
        written, info = work(wanted)
        known = [one if isinstance(one, Output) else Output.of(one, self.folder.read(one)) for one in written]
        outputs = {name: {"bytes": size, "sha256": digest} for name, size, digest in sorted(known)}
        seconds = round(time.perf_counter() - started, 2)
        finished = datetime.now(UTC).isoformat(timespec="seconds")
        # Without the seed: another one draws other images from the same model.
        sections = {name for name, value in depends_on.items() if isinstance(value, dict)} & set(Config.model_fields)
        made_with = {name: depends_on[name] for name in sorted(sections)}
        made_from = {name: depends_on[name] for name in STAGES if isinstance(depends_on.get(name), str)}
        info = info | {"made_with": json.loads(json.dumps(made_with)), "made_from": made_from}
        manifest = Manifest(stage, wanted, outputs, info, _versions(), finished, seconds)
        self.folder.write_json(f"{stage}/manifest.json", manifest._asdict())
        self._manifests[stage] = manifest
        say(f"{stage}: done in {seconds:.0f} s, {self.folder.url}/{stage}")
        return manifest


def _mapping(info: Mapping[str, Any], name: str) -> dict[str, Any]:
    """An entry of a manifest's `info` that says what it was made of; nothing where a version before had none."""
    found = info.get(name)
    return found if isinstance(found, dict) else {}


def _later(sections: Iterable[str]) -> dict[str, Any]:
    """The keys that a manifest's sections leave out at their defaults."""
    defaults = Config()
    known = {name: getattr(defaults, name) for name in sections if name in Config.model_fields}
    return {
        f"{name}.{key}": type(section).model_fields[key].default
        for name, section in known.items()
        for key in getattr(section, "later", frozenset()) - FILES
    }


def _flat(content: Mapping[str, Any]) -> dict[str, Any]:
    """Sections and their keys as dotted keys."""
    flat: dict[str, Any] = {}
    for name, value in content.items():
        flat |= {f"{name}.{key}": item for key, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def open_run(config: Config, plugins: tuple[str, ...] = ()) -> Run:
    """The run that a configuration names: `<storage>/<name>`.

    Raises:
        ConfigError: for a storage that cannot be used.
    """
    return Run(config, Folder(config.storage) / config.name, plugins)


def _reopen(plugins: tuple[str, ...], content: dict[str, Any], url: str) -> Run:
    load_plugins(plugins)
    return Run(parse_config(content), Folder(url), plugins)


def _versions() -> dict[str, str]:
    """Versions that a figure depends on."""
    names = ("ldcvae", "torch", "torchvision", "ray", "pyarrow", "numpy", "scikit-learn")
    return {"python": platform.python_version()} | {name: version(name) for name in names}
