"""What a model is: `LDCVAEConfig`, saved beside its weights. Import it from `ldcvae`."""

from dataclasses import dataclass

from ldcvae.densities.covariances import KINDS

__all__ = ["UPSAMPLES", "LDCVAEConfig"]

UPSAMPLES = ("transposed", "nearest")
"""How a convolutional decoder doubles height and width; the first is what it does when nothing is said."""


@dataclass(frozen=True)
class LDCVAEConfig:
    """Everything that fixes the shapes and the meaning of the weights; saved as `config.json`.

    Attributes:
        image_shape: (C, H, W).
        latent_dim: d.
        network: name of a record in `ldcvae.variants.NETWORKS`, auto (by image size), or custom: given as modules.
        width: hidden units (mlp) or channels of the first level.
        depth: hidden layers (mlp, conv), residual blocks a level (resnet) or at the latents' size (spatial).
        likelihood: gaussian (squared error) or bernoulli (cross-entropy), summed over pixels.
        inverse_temperature: lambda of the Gibbs posterior `exp(-lambda l(x, z)) exp(-|z|²/2)`.
        sampler_width: hidden units of the sampler net.
        sampler_depth: its residual layers.
        base_components: components of the sampler's base mixture; 0 for N(0, I).
        temperature: of generation: factor of the base's standard deviation about its centres.
        base_centres: centres a component, which share its covariance (`ldcvae.densities.centres`).
        logits: network custom: whether the decoder gives logits; else images in [0, 1].
        base_kind: its covariances: full, low_rank or diagonal (`ldcvae.densities.covariances.base_fields`).
        base_rank: their rank beside the diagonal, of kind low_rank.
        upsample: how the decoder doubles height and width: transposed (convolutions) or nearest (neighbour, then a
            convolution), of networks that do.
        decoder_epochs: epochs of phase `decoder`; 0: the decoder is as phase 1 left it.
        adversarial: weight of the discriminator's loss in that phase; 0: none.
        functions: network custom: encoder and decoder are what `fit_sampler` takes as a pair, and nobody's weights
            are the model's.
    """

    image_shape: tuple[int, int, int]
    latent_dim: int = 16
    network: str = "auto"
    width: int = 32
    depth: int = 1
    likelihood: str = "gaussian"
    inverse_temperature: float = 40.0
    sampler_width: int = 256
    sampler_depth: int = 3
    base_components: int = 0
    logits: bool = True
    base_kind: str = "full"
    base_rank: int = 0
    upsample: str = "transposed"
    decoder_epochs: int = 0
    adversarial: float = 0.0
    functions: bool = False
    base_centres: int = 1
    temperature: float = 1.0

    @property
    def decoder_note(self) -> str:
        """How phase `decoder` trained the decoder, in words for a table of images; empty without it.

        Example:
            >>> LDCVAEConfig((1, 8, 8), decoder_epochs=8, adversarial=4.0).decoder_note
            'decoder trained adversarially, weight 4, 8 epochs'
        """
        if self.decoder_epochs == 0:
            return ""
        epochs = f"{self.decoder_epochs} epoch{'s' if self.decoder_epochs > 1 else ''}"
        if self.adversarial == 0:
            return f"decoder trained on without a discriminator, {epochs}"
        return f"decoder trained adversarially, weight {self.adversarial:g}, {epochs}"

    def __post_init__(self) -> None:
        object.__setattr__(self, "image_shape", tuple(self.image_shape))  # JSON has lists only
        if len(self.image_shape) != 3 or min(self.image_shape) < 1 or self.latent_dim < 1:
            shape, dim = self.image_shape, self.latent_dim
            raise ValueError(f"image_shape is (C, H, W) and latent_dim at least 1, got {shape} and {dim}")
        if self.likelihood not in ("gaussian", "bernoulli"):
            raise ValueError(f"unknown likelihood {self.likelihood!r}: choose gaussian or bernoulli")
        if self.upsample not in UPSAMPLES:
            raise ValueError(f"unknown upsample {self.upsample!r}: choose {', '.join(UPSAMPLES)}")
        if self.base_kind not in KINDS:
            raise ValueError(f"unknown base_kind {self.base_kind!r}: choose {', '.join(KINDS)}")
        if self.base_centres < 1 or (
            self.base_centres > 1 and (self.base_kind != "full" or self.base_components < 1)
        ):
            raise ValueError(
                f"base_centres is {self.base_centres}: it is 1, or more where the base has components with full "
                f"covariances; here it has {self.base_components}, {self.base_kind}"
            )
        if (self.base_rank > 0) != (self.base_kind == "low_rank"):
            raise ValueError(f"base_rank is {self.base_rank}: it is at least 1 for base_kind low_rank, else 0")
