"""The library's `fit` and the pipeline's one worker: the same phases, the same seeds, the same weights."""

import pytest
import torch
from processes import here
from processes import run as command

from ldcvae import LDCVAE, AutoencoderSettings, SamplerSettings, fit
from pipeline.config.load import load_config
from pipeline.store.data.shards import load_split
from pipeline.store.run import open_run


@pytest.mark.slow
def test_fit_ends_in_the_weights_of_the_pipelines_worker(tmp_path):
    shape = ["train.epochs=3", "sampler.steps=40", "sampler.particles=64", "sampler.checkpoint_steps=20"]
    plain = ["model.width=128", "model.depth=2", "model.latent_dim=8", "train.batch_size=64", "sampler.width=256"]
    whole = ["sampler.depth=3", "sampler.base_components=10", "train.particles=4", "train.inverse_temperature=40"]
    here("prepare", tmp_path, *shape, *plain, *whole)
    # One CPU, as here: how a sum is split over threads changes its last bits.
    command("train", tmp_path, *shape, *plain, *whole, "ray.num_cpus=1")
    run = open_run(load_config(overrides=[f"storage={tmp_path}", "name=tiny"]))
    trained = LDCVAE.from_pretrained(run.folder.path("model"))
    images, held_out = (load_split(run, split).pixels for split in ("train", "validation"))
    fitted = fit(
        images,
        validation=held_out,
        autoencoder=AutoencoderSettings(epochs=3),
        sampler=SamplerSettings(steps=40, particles=64, checkpoint_steps=20),
        progress=False,
    )
    assert fitted.config == trained.config
    for name, weight in trained.state_dict().items():
        assert torch.equal(weight, fitted.state_dict()[name]), name
