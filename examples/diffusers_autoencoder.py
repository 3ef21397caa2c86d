"""A sampler net for an autoencoder of another library: diffusers' AutoencoderKL.

The autoencoder stays as it is; only its latents are learnt. Here it is tiny, with random weights: nothing is
downloaded; with `AutoencoderKL.from_pretrained(…)` and images of its kind the code is the same.

    python examples/diffusers_autoencoder.py
"""

import torch
from diffusers import AutoencoderKL
from sklearn.datasets import load_digits

from ldcvae import LDCVAE, SamplerSettings, fit_sampler


def adapt(vae: AutoencoderKL, side: int):
    """(encode, decode) as `fit_sampler` wants them: images in [0, 1], flat latents of `side` x `side` positions."""

    def encode(images):
        posterior = vae.encode(2 * images - 1).latent_dist
        return posterior.mean.flatten(1), posterior.logvar.flatten(1)

    def decode(latents):
        return (vae.decode(latents.unflatten(1, (-1, side, side))).sample / 2 + 0.5).clamp(0, 1)

    return encode, decode


def main(steps: int = 200) -> LDCVAE:
    """A model whose `sample` draws latents in one pass and decodes them with diffusers."""
    torch.manual_seed(0)
    vae = AutoencoderKL(
        in_channels=1,
        out_channels=1,
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(8, 16),
        latent_channels=2,
        norm_num_groups=8,
        sample_size=8,
    ).eval()
    images = torch.from_numpy(load_digits().images / 16).float()[:, None]
    # 32 latent dimensions: above 20 the sampler net follows the direction `drift` by itself.
    settings = SamplerSettings(bandwidths=(0.12, 0.3, 0.6), base_components=2, particles=256, steps=steps)
    return fit_sampler(adapt(vae, side=4), images, sampler=settings)


if __name__ == "__main__":
    model = main()
    print("images", tuple(model.sample(16).shape), "from", model.config.latent_dim, "latent dimensions in one pass")
