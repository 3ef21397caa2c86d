"""Whether a device gives what a CPU gives: gradients of every phase, directions, options of speed, resuming, NCCL.

Run by `benchmarks/gpu.py`. Random numbers of a GPU are others than those of a CPU, so both get the same ones.
"""

import copy
import os
import socket
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from bare import advance
from torch import Tensor, nn

from ldcvae import LDCVAE, AutoencoderSettings, DecoderSettings, LDCVAEConfig, SamplerSettings
from ldcvae.directions.fields import Step
from ldcvae.directions.stein import amortised_loss
from ldcvae.objective import elbo_step, svgd_step
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.phase import Cast
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World
from ldcvae.variants import DIRECTIONS

__all__ = ["checks"]

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when CUDA starts; resuming bit for bit needs it

SHAPE, DIM, BATCH = (3, 16, 16), 8, 32
FLOAT32, BFLOAT16 = 1e-3, 6e-2  # relative error of a gradient as one vector: TF32 is off, bfloat16 has 8 bits
CPU = torch.device("cpu")


def _model(device: torch.device) -> LDCVAE:
    torch.manual_seed(0)
    config = LDCVAEConfig(SHAPE, latent_dim=DIM, network="conv", width=16, depth=1, base_components=4)
    return LDCVAE(config).to(device)


def _pixels() -> Tensor:
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(2 * BATCH, 3, 4, 4, generator=generator)
    return (nn.functional.interpolate(coarse, SHAPE[1:]) * 255).to(torch.uint8)


def _gradients(network: nn.Module) -> Tensor:
    """All gradients as one vector, on the CPU."""
    found = [weight.grad.flatten() for weight in network.parameters() if weight.grad is not None]
    return torch.cat([part.detach().cpu().double() for part in found])


def _apart(one: Tensor, other: Tensor) -> float:
    """Length of the difference over the length of the reference."""
    return float((one - other).norm() / other.norm())


def _autoencoder(device: torch.device, step: Callable, particles: int, bf16: bool = False, **how: bool) -> Tensor:
    """Gradients of a step of phase 1 on given noise."""
    model = _model(device).train()
    encoder: nn.Module = Cast(model.encoder, bf16)
    decoder: nn.Module = Cast(model.decoder, bf16)
    images = (_pixels()[:BATCH].float() / 255).to(device)
    if how.get("channels_last"):
        model.to(memory_format=torch.channels_last)
        images = images.contiguous(memory_format=torch.channels_last)
    if how.get("compiled"):
        encoder.compile(dynamic=False)
        decoder.compile(dynamic=False)
    if how.get("ddp"):
        encoder, decoder = (nn.parallel.DistributedDataParallel(network) for network in (encoder, decoder))
    noise = torch.randn(BATCH, particles, DIM, generator=torch.Generator().manual_seed(2)).to(device)
    step(encoder, decoder, images, noise, inverse_temperature=40.0)
    return _gradients(nn.ModuleList([model.encoder, model.decoder]))


def _decoder(device: torch.device, bf16: bool = False) -> Tensor:
    """Gradients of a step of phase `decoder` on given latents: the decoder's, then the discriminator's."""
    model, pixels = _model(device), _pixels()
    settings = AutoencoderSettings(batch_size=BATCH, bf16=bf16, compile=False)
    phase = DecoderPhase(
        model, pixels, encode_split(model.eval(), pixels, World(device=device)), pixels[:8],
        DecoderSettings(epochs=1), World(device=device), 0, autoencoder=settings, sampler=SamplerSettings(),
    )  # fmt: skip
    latents = torch.randn(BATCH, DIM, generator=torch.Generator().manual_seed(3)).to(device)
    phase._latents = lambda where: latents  # type: ignore[method-assign]
    phase._losses()
    assert phase.discriminator is not None
    return _gradients(nn.ModuleList([model.decoder, phase.discriminator]))


def _direction(device: torch.device, name: str) -> Tensor:
    """A direction at given particles, and the sampler net's gradients along it."""
    generator = torch.Generator().manual_seed(4)
    base, targets = (torch.randn(256, DIM, generator=generator).to(device) for _ in range(2))
    model = _model(device)
    own = model.sampler(base)
    widths = [torch.tensor(width, device=device) for width in (0.3, 0.8)]
    settings = SamplerSettings(direction=name, particles=256)
    phi = DIRECTIONS.find(name).field(Step(own.detach(), 1.0 + targets, widths, 0.3, settings))
    amortised_loss(own, phi).backward()
    return torch.cat([phi.detach().cpu().double().flatten(), _gradients(model.sampler)])


def _trained(device: torch.device, phase_of: Callable[[LDCVAE], Any], breaks: int | None) -> Tensor:
    """Weights after six steps of a phase; broken off after so many, the rest by another phase from its state."""

    model = _model(device)
    phase = phase_of(model)
    if breaks is not None:
        advance(phase, breaks)
        kept = copy.deepcopy({"model": model.state_dict(), "phase": phase.state()})
        model = _model(device)
        model.load_state_dict(kept["model"])
        phase = phase_of(model)
        phase.load(kept["phase"])
        model.load_state_dict(kept["model"])  # whitening and base too, which a new phase has fitted again
        if isinstance(phase, SamplerPhase):
            phase.unit.copy_(kept["phase"]["unit"])
    advance(phase, 6 - phase.step)
    return torch.cat([weight.detach().cpu().flatten() for weight in model.parameters()])


def _resumed(device: torch.device, kind: str) -> float:
    """The greatest difference of any weight between six steps and three and three; 0: bit for bit."""
    pixels, world = _pixels(), World(device=device)
    settings = AutoencoderSettings(batch_size=BATCH, epochs=3, compile=False)

    def make(model: LDCVAE) -> Any:
        if kind == "autoencoder":
            return AutoencoderPhase(model.train(), pixels, pixels[:8], settings, world, 0)
        encodings = encode_split(model.eval(), pixels, world)
        if kind == "sampler":
            small = SamplerSettings(direction="drift", bandwidths=(0.3,), particles=64, base_components=4, steps=6)
            return SamplerPhase(model, encodings, encodings, small, world, 0)
        return DecoderPhase(
            model, pixels, encodings, pixels[:8], DecoderSettings(epochs=3), world, 0,
            autoencoder=settings, sampler=SamplerSettings(),
        )  # fmt: skip

    return float((_trained(device, make, None) - _trained(device, make, 3)).abs().max())


def _distributed(device: torch.device) -> float:
    """Gradients through NCCL (gloo on a CPU) with one rank, against those without."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    dist.init_process_group("nccl" if device.type == "cuda" else "gloo", rank=0, world_size=1)
    try:
        return _apart(_autoencoder(device, svgd_step, 4, ddp=True), _autoencoder(device, svgd_step, 4))
    finally:
        dist.destroy_process_group()


def checks(device: torch.device) -> list[dict[str, Any]]:
    """Rows with `check`, `error`, `allowed` and `passed`; what cannot be run fails with its reason."""
    cuda = device.type == "cuda"
    # Whoever goes on in this process finds them as they were: they change what CPUs compute as well.
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    strict = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn.deterministic
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    steps = {"elbo": (elbo_step, 1), "svgd": (svgd_step, 4)}
    tests: dict[str, tuple[Callable[[], float], float]] = {}
    for name, step in steps.items():
        tests[f"autoencoder, {name}: float32"] = (
            lambda step=step: _apart(_autoencoder(device, *step), _autoencoder(CPU, *step)), FLOAT32
        )  # fmt: skip
        tests[f"autoencoder, {name}: bfloat16"] = (
            lambda step=step: _apart(_autoencoder(device, *step, bf16=True), _autoencoder(CPU, *step)), BFLOAT16
        )  # fmt: skip
    tests["decoder: float32"] = lambda: _apart(_decoder(device), _decoder(CPU)), FLOAT32
    tests["decoder: bfloat16"] = lambda: _apart(_decoder(device, bf16=True), _decoder(CPU)), BFLOAT16
    for name in ("stein", "score_difference", "drift"):
        tests[f"sampler, {name}"] = lambda name=name: _apart(_direction(device, name), _direction(CPU, name)), FLOAT32
    for how in ("channels_last", "compiled") if cuda else ("channels_last",):  # compiling for CPUs takes a compiler
        tests[how] = (
            lambda how=how: _apart(
                _autoencoder(device, svgd_step, 4, **{how: True}), _autoencoder(device, svgd_step, 4)
            ),
            FLOAT32,
        )
    for kind in ("autoencoder", "decoder", "sampler"):
        tests[f"{kind}: resumed, bit for bit"] = lambda kind=kind: _resumed(device, kind), 0.0
    tests["NCCL, one rank" if cuda else "gloo, one rank"] = lambda: _distributed(device), FLOAT32

    rows = []
    for name, (work, allowed) in tests.items():
        exact = allowed == 0.0
        torch.use_deterministic_algorithms(exact, warn_only=True)
        torch.backends.cudnn.deterministic = exact
        try:
            error: float | str = work()
        except Exception as failure:  # the others are worth their minutes all the same
            error = f"{type(failure).__name__}: {' '.join(str(failure).split())[:150]}"
        passed = not isinstance(error, str) and error <= allowed
        rows.append({"check": name, "error": error, "allowed": allowed, "passed": passed})
    torch.use_deterministic_algorithms(strict[0], warn_only=strict[1])
    torch.backends.cudnn.deterministic = cudnn
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before
    return rows
