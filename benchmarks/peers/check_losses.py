"""Prove that pythae's losses, as pythae_models.py weights them, have the gradients of this project's objectives.

Runs in the peers' environment, with the project's folder on PYTHONPATH; takes a second and ends with an error if a
gradient differs. Small networks, one batch, the same weights and noise on both sides; gradients of all weights of
encoder and decoder are compared, and the losses where they are the same number.
"""

import copy
import sys
from typing import Any

import torch
from pythae.data.datasets import DatasetOutput
from pythae_models import build
from torch import Tensor, nn

from ldcvae.objective import elbo_step
from ldcvae.rivals.objectives import RegularisedObjective, VampObjective, WassersteinObjective

BATCH, SHAPE, DIM, LAMBDA, WEIGHT, DECAY, PSEUDO = 32, [1, 8, 8], 4, 40.0, 3.0, 1e-4, 5
SPEC: dict[str, Any] = {
    "network": "mlp", "shape": SHAPE, "latent_dim": DIM, "width": 16, "depth": 1, "inverse_temperature": LAMBDA,
    "settings": {"wae_mmd": WEIGHT, "rae_l2": WEIGHT, "vamp": PSEUDO},
}  # fmt: skip
TOLERANCE = 1e-4  # of the gradient's norm, in float32


def gradients(*networks: nn.Module) -> Tensor:
    """All gradients in one vector."""
    return torch.cat([weight.grad.flatten() for network in networks for weight in network.parameters()])


def ours(name: str, encoder: nn.Module, decoder: nn.Module, images: Tensor, noise: Tensor, pseudo: Tensor) -> Tensor:
    """This project's step on the same networks; returns the loss, leaves the gradients."""
    if name == "vae":
        return elbo_step(encoder, decoder, images, noise, inverse_temperature=LAMBDA)["loss"]
    if name == "wae_mmd":
        return WassersteinObjective(LAMBDA, WEIGHT)(encoder, decoder, images, noise)["loss"]
    if name == "rae_l2":
        return RegularisedObjective(LAMBDA, WEIGHT, decay=DECAY)(encoder, decoder, images, noise)["loss"]
    return VampObjective(LAMBDA, pseudo)(encoder, decoder, images, noise)["loss"]


def compare(name: str) -> tuple[float, float]:
    """Relative differences of the gradients and of the losses."""
    model = build(name, SPEC, seed=0).train()
    pseudo = torch.rand(PSEUDO, *SHAPE) * 0.8 + 0.1  # where neither side clips them
    if name == "vamp":
        with torch.no_grad():
            model.pseudo_inputs[0].weight.copy_(pseudo.flatten(1).T)
            model.pseudo_inputs[0].bias.zero_()
    encoder, decoder = copy.deepcopy(model.encoder.network), copy.deepcopy(model.decoder.network)
    images = torch.rand(BATCH, *SHAPE)
    torch.manual_seed(1)
    output = model(DatasetOutput(data=images))
    output.loss.backward()
    factor, loss = 1.0, output.loss.detach()
    if name == "rae_l2":  # the decoder's penalty is its optimizer's; the rest is this project's loss over lambda
        factor = LAMBDA
        for weight in model.decoder.parameters():
            weight.grad += 2.0 * DECAY * weight.detach()
            loss = loss + DECAY * weight.detach().square().sum()
    theirs = factor * gradients(model.encoder, model.decoder)
    torch.manual_seed(1)
    found = ours(name, encoder, decoder, images, torch.randn(BATCH, 1, DIM), pseudo)
    expected = gradients(encoder, decoder)
    return float((theirs - expected).norm() / expected.norm()), float((factor * loss - found).abs() / found.abs())


def main() -> None:
    failed = False
    for name in ("vae", "wae_mmd", "rae_l2", "vamp"):
        gradient, loss = compare(name)
        # VampPrior: pythae estimates the posterior's entropy by its draw, which changes the loss but no gradient.
        failed |= gradient > TOLERANCE or (loss > TOLERANCE and name != "vamp")
        print(f"{name:8} gradients differ by {gradient:.1e}, losses by {loss:.1e} (relative)")
    if failed:
        sys.exit("error: pythae's loss is not this project's; see README.md for the mapping")


if __name__ == "__main__":
    main()
