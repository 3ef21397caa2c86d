"""Cells of a comparison: each training and each generator, kept on storage under the hash of all it depends on.

A cell is `compare/cells/<hash>/` with its files and `record.json`, written last. So a comparison that was killed goes
on with what is missing, and a row that is added costs one row.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import torch
from safetensors.torch import load, save

from ldcvae.encodings import Encodings
from ldcvae.model import LDCVAE
from ldcvae.training.world import seeded_weights
from ldcvae.variants import AUTOENCODERS, BASE_KEYS, GENERATORS
from pipeline.config.errors import PipelineError
from pipeline.config.load import read_keys
from pipeline.config.sections import Config, TrainConfig
from pipeline.remote.failures import kind_of_record
from pipeline.store.folder import Folder, fingerprint, sha256
from pipeline.store.model import build_model
from pipeline.store.run import Run
from pipeline.store.schema import Record, parse_as
from pipeline.store.weights import decoder_parts

__all__ = [
    "AUTOENCODER_FORMAT",
    "DECODER",
    "DECODER_FORMAT",
    "GENERATOR_FORMAT",
    "Cell",
    "StoredAutoencoder",
    "again",
    "autoencoder_cell",
    "decoder_cell",
    "generator_cell",
    "raised_formats",
    "read_autoencoder",
    "read_record",
    "temperatures_of",
]

# Of what the kinds of cells compute and keep; CONTRIBUTING.md says when to raise them. A generator's cell stands
# on an autoencoder's: raising the first number makes all cells anew.
AUTOENCODER_FORMAT = 3
DECODER_FORMAT = 8
GENERATOR_FORMAT = 10

DECODER = "+decoder"
"""What the name of an autoencoder ends with whose decoder has had phase `decoder`."""

_FILES = ("model.safetensors", "encodings.safetensors")

# Keys of `train` that no figure of a cell depends on, or only LDC-VAE's; a cell is trained by one process.
_OPERATIONAL = TrainConfig.operational | {"objective", "consistency", "consistency_floor", "memory_mb"}


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        key: hash of everything it depends on.
        job: what the process that computes it is told.
    """

    key: str
    job: dict[str, Any]

    @property
    def name(self) -> str:
        """What `--force` calls it.

        Example:
            >>> Cell("0a", {"name": "beta_vae", "setting": 4.0, "seed": 0}).name
            'beta_vae@4/seed0'
            >>> Cell("0b", {"name": "gmm", "setting": None, "seed": 0, "parent": "0a", "on": "beta_vae@4"}).name
            'beta_vae@4/seed0/gmm'
            >>> Cell("0c", {"name": "vae", "setting": None, "seed": 0, "parent": "0a", "decoder": True}).name
            'vae+decoder/seed0'
        """
        own, seed = _label(self.job), f"seed{self.job['seed']}"
        return f"{self.job['on']}/{seed}/{own}" if "on" in self.job else f"{own}/{seed}"

    @property
    def folder(self) -> str:
        """Its folder under the run's."""
        return f"compare/cells/{self.key}"

    @property
    def record(self) -> str:
        """The file that makes it whole."""
        return f"{self.folder}/record.json"


def _label(job: dict[str, Any]) -> str:
    name, setting, end = job["name"], job["setting"], DECODER if job.get("decoder") else ""
    return f"{name}{'' if setting is None else f'@{int(setting) if setting == int(setting) else setting!r}'}{end}"


def again(key: str) -> str:
    """What to do about a damaged cell."""
    return f"`python -m pipeline.compare --force {key}` with the same config computes the cell anew"


def _key(format: int, content: dict[str, Any]) -> str:
    return fingerprint({"format": format, **content})[:20]


def raised_formats() -> dict[str, int]:
    """The numbers that are no longer what they were when there was one for both: what a comparison depends on.

    Example:
        >>> set(raised_formats()) <= {"autoencoder", "decoder", "generator"}
        True
    """
    numbers = {"autoencoder": AUTOENCODER_FORMAT, "decoder": DECODER_FORMAT, "generator": GENERATOR_FORMAT}
    return {kind: number for kind, number in numbers.items() if number > 2}


def autoencoder_cell(config: Config, data: str, features: str, name: str, setting: float | None, seed: int) -> Cell:
    """The cell of an autoencoder.

    Args:
        config: the run's configuration.
        data: digest of the data set.
        features: hash of the extractor.
        name: key of `compare.autoencoders`.
        setting: of its knob, or None.
        seed: of weights, order and noise.
    """
    content: dict[str, Any] = {
        "autoencoder": name,
        "setting": setting,
        "seed": seed,
        "data": data,
        "features": features,
        "model": config.model.kept_under(),
        "train": config.train.kept_under(_OPERATIONAL),
    }
    if AUTOENCODERS[name].gibbs and config.train.consistency:
        content["consistency"] = [config.train.consistency, config.train.consistency_floor]
    return Cell(_key(AUTOENCODER_FORMAT, content), {"name": name, "setting": setting, "seed": seed})


def decoder_cell(config: Config, parent: Cell) -> Cell:
    """The cell of an autoencoder whose decoder is trained on by phase `decoder`; `parent` is the one without."""
    content: dict[str, Any] = {"parent": parent.key} | decoder_parts(config)
    if config.decoder.fits_base:
        content["reads"] = _read(config, ("sampler.base", *BASE_KEYS))
    return Cell(_key(DECODER_FORMAT, content), parent.job | {"parent": parent.key, "decoder": True})


def _read(config: Config, keys: Iterable[str]) -> dict[str, object]:
    """What dotted keys are, without those at their defaults that earlier cells did not know."""

    def came_later(key: str) -> bool:
        section, _, name = key.partition(".")
        return name in getattr(config, section).later_unused

    return read_keys(config, tuple(key for key in keys if not came_later(key)))


def temperatures_of(config: Config, name: str) -> list[float]:
    """The temperatures that validation images choose a generator's from, in order.

    Example:
        >>> config = Config.model_validate({"compare": {"temperatures": [1.2, 1]}})
        >>> temperatures_of(config, "gmm"), temperatures_of(config, "langevin")
        ([1.0, 1.2], [1.0])
    """
    return sorted(set(config.compare.temperatures)) if GENERATORS[name].tempered else [1.0]


def generator_cell(config: Config, parent: Cell, name: str, setting: float | None, second: str = "") -> Cell:
    """The cell of a generator on the autoencoder of `parent`, with its seed.

    Args:
        config: the run's configuration.
        parent: cell of the autoencoder.
        name: key of `compare.generators`.
        setting: of its knob, or None.
        second: hash of the second extractor, where there is one.
    """
    judged = {"num_images", "draws", "neighbours"}
    content: dict[str, Any] = {
        "generator": name,
        "setting": setting,
        "parent": parent.key,
        "judged": config.evaluate.model_dump(mode="json", include=judged),
        "selection_images": config.compare.selection_images,
        "reads": _read(config, GENERATORS[name].reads),
    }
    if second:
        content["second"] = second
    if (temperatures := temperatures_of(config, name)) != [1.0]:
        content["temperatures"] = temperatures
    job = {
        "name": name,
        "setting": setting,
        "seed": parent.job["seed"],
        "parent": parent.key,
        "on": _label(parent.job),
    }
    return Cell(_key(GENERATOR_FORMAT, content), job)


@dataclass(frozen=True)
class StoredAutoencoder:
    """A trained autoencoder cell.

    Attributes:
        model: with trained encoder, decoder and the whitening of its encodings.
        encodings: split -> encodings of its images; of deterministic encoders with next to no variance.
        prior: means and log variances of a learnt prior's components, or None for N(0, I).
    """

    model: LDCVAE
    encodings: dict[str, Encodings]
    prior: Encodings | None

    def to(self, device: torch.device) -> "StoredAutoencoder":
        """The same on another device."""

        def moved(part: Encodings) -> Encodings:
            return Encodings(part.mean.to(device), part.log_variance.to(device))

        encodings = {split: moved(part) for split, part in self.encodings.items()}
        prior = moved(self.prior) if self.prior is not None else None
        return StoredAutoencoder(self.model.to(device), encodings, prior)

    def write(self, folder: Folder, cell: Cell) -> dict[str, str]:
        """Write its files; name -> sha256."""
        tensors = {
            f"{split}.{name}": getattr(part, name).cpu().contiguous()
            for split, part in (self.encodings | ({"prior": self.prior} if self.prior is not None else {})).items()
            for name in ("mean", "log_variance")
        }
        # Without the sampler net: it is each generator's own, and may be of another size then.
        weights = {
            name: tensor.cpu().contiguous()
            for name, tensor in self.model.state_dict().items()
            if not name.startswith(("sampler.", "base_"))
        }
        files = dict(zip(_FILES, (save(weights), save(tensors)), strict=True))
        for name, content in files.items():
            folder.write(f"{cell.folder}/{name}", content)
        return {name: sha256(content) for name, content in files.items()}


def read_record(folder: Folder, name: str) -> dict[str, Any]:
    """What a finished cell has found; of a failure, of an older version too, `kind` is "transient" or "final".

    Raises:
        PipelineError: if it is no such record.
    """
    remedy = again(PurePosixPath(name).parent.name)
    record: dict[str, Any] = parse_as(Record, folder.read(name), f"{folder.url}/{name}", remedy)
    if "failure" not in record and (record.get("figures") or {}).get("fd") is None:
        raise PipelineError(f"{folder.url}/{name} is damaged: neither figures nor a failure; {remedy}")
    if "failure" in record:
        record["kind"] = kind_of_record(record)
    return record


def read_autoencoder(run: Run, cell: Cell, shape: tuple[int, int, int]) -> StoredAutoencoder:
    """The finished autoencoder that a generator's cell stands on, on the CPU, with an untrained sampler net.

    Raises:
        PipelineError: if a file is missing or damaged.
    """
    parent = cell.job["parent"]
    folder = f"compare/cells/{parent}"
    record = read_record(run.folder, f"{folder}/record.json")
    hashes = record.get("files", {})
    if missing := [name for name in _FILES if name not in hashes]:
        raise PipelineError(f"{run.folder.url}/{folder}/record.json does not list {missing[0]}; {again(parent)}")
    try:
        weights, tensors = (load(run.folder.read_verified(f"{folder}/{name}", hashes[name])) for name in _FILES)
    except PipelineError as error:
        raise PipelineError(f"{error}: {again(parent)}") from error
    with seeded_weights(cell.job["seed"]):
        model = build_model(run.config, shape)
    model.load_state_dict(weights, strict=False)
    splits = {name.partition(".")[0] for name in tensors}
    parts = {split: Encodings(tensors[f"{split}.mean"], tensors[f"{split}.log_variance"]) for split in splits}
    prior = parts.pop("prior", None)
    return StoredAutoencoder(model.eval(), parts, prior)
