"""The trained model on storage: `model/config.json` and `model/model.safetensors`, all that sampling needs."""

import tempfile
from pathlib import Path

from ldcvae.model import LDCVAE, LDCVAEConfig
from pipeline.schema import Config
from pipeline.stage import read_manifest
from pipeline.storage import Folder

__all__ = ["MODEL_FILES", "build_model", "load_model", "write_model"]

MODEL_FILES = ("model/config.json", "model/model.safetensors")


def build_model(config: Config, image_shape: tuple[int, int, int]) -> LDCVAE:
    """An untrained model as the config describes it.

    Raises:
        ValueError: if the network cannot take images of this shape.

    Example:
        >>> build_model(Config(), (1, 8, 8)).config.network
        'auto'
    """
    model, sampler = config.model, config.sampler
    return LDCVAE(
        LDCVAEConfig(
            image_shape=image_shape,
            latent_dim=model.latent_dim,
            network=model.network,
            width=model.width,
            depth=model.depth,
            likelihood=model.likelihood,
            inverse_temperature=config.train.inverse_temperature,
            sampler_width=sampler.width,
            sampler_depth=sampler.depth,
            base_components=sampler.base_components if sampler.base == "gmm" else 0,
        )
    )


def write_model(run: Folder, model: LDCVAE) -> list[str]:
    """Write the model; returns the files' paths under the run's folder."""
    with tempfile.TemporaryDirectory() as temporary:
        model.save_pretrained(temporary)
        for name in MODEL_FILES:
            run.write(name, (Path(temporary) / Path(name).name).read_bytes())
    return list(MODEL_FILES)


def load_model(run: Folder) -> LDCVAE:
    """The run's model on the CPU, in eval mode, its files' hashes checked.

    Raises:
        PipelineError: if `pipeline.train` has not finished or a file is damaged.
    """
    manifest = read_manifest(run, "train", "pipeline.train")
    with tempfile.TemporaryDirectory() as temporary:
        for name in MODEL_FILES:
            content = run.read_verified(name, manifest.outputs[name]["sha256"])
            (Path(temporary) / Path(name).name).write_bytes(content)
        return LDCVAE.from_pretrained(temporary)
