"""One command for a GPU: are its results those of a CPU, and how fast is it beside what it could be.

Needs torch, numpy, scikit-learn, safetensors and this repository, no Ray and nothing to install; under eight minutes.
Writes one JSON and prints two tables, of checks and of speeds. Without a GPU it does the same on the CPU, where
nothing is learnt but that it runs. What is compiled is measured in a process of its own, since a kernel that fails
takes its process's GPU with it.

    python benchmarks/gpu.py [--json gpu.json] [--seconds 4] [--tiny]
"""

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from bare import advance, bare_direction, bare_step, matmul_flops, parameters, timed
from gpu_checks import checks

from ldcvae import LDCVAE, AutoencoderSettings, DecoderSettings, LDCVAEConfig, SamplerSettings
from ldcvae.directions.fields import Step
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.world import World
from ldcvae.variants import DIRECTIONS

# Shapes and networks of configs/{fashion_mnist,cifar10,celeba64}.yaml, on images of noise.
NETWORKS = {
    "28x28 grey, conv 32": ((1, 28, 28), {"network": "conv", "width": 32, "depth": 1, "latent_dim": 64}, 1024),
    "32x32 colour, resnet 64": ((3, 32, 32), {"network": "resnet", "width": 64, "depth": 2, "latent_dim": 128}, 512),
    "64x64 colour, resnet 64": ((3, 64, 64), {"network": "resnet", "width": 64, "depth": 2, "latent_dim": 64}, 256),
}
TINY = {"8x8 grey, conv 8": ((1, 8, 8), {"network": "conv", "width": 8, "depth": 1, "latent_dim": 4}, 32)}
PARTICLES = ((1024, 64), (16_384, 64), (65_536, 64), (4096, 1024))  # n, d of a sampler step
TINY_PARTICLES = ((64, 8),)


def phase_settings(batch: int, compiled: bool) -> AutoencoderSettings:
    """Of phase 1."""
    return AutoencoderSettings(objective="elbo", particles=1, epochs=1_000_000, batch_size=batch, compile=compiled)


def compiled_rate(name: str, seconds: float, limit: float = 120.0) -> float | str:
    """Images a second of phase 1, compiled, in a process of its own; or how that failed."""
    command = [sys.executable, __file__, "--compiled", name, "--seconds", str(seconds)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit)
    except subprocess.TimeoutExpired:
        return f"not done in {limit:.0f} s"
    if done.returncode == 0:
        return float(done.stdout.strip().splitlines()[-1])
    said = [line for line in done.stderr.splitlines() if "Error" in line or "error" in line]
    return f"failed: {(said or ['without a word'])[-1].strip()[:100]}"


def compiled_here(name: str, seconds: float) -> float:
    """What `compiled_rate` measures, in this process."""
    shape, network, batch = (NETWORKS | TINY)[name]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    pixels = torch.randint(0, 256, (4 * batch, *shape), dtype=torch.uint8)
    model = LDCVAE(LDCVAEConfig(shape, base_components=10, **network)).to(device)
    phase = AutoencoderPhase(model, pixels, pixels[:batch], phase_settings(batch, True), World(device=device), 0)
    return batch / timed(lambda: advance(phase), device, seconds)


def peak_mib(device: torch.device) -> float | None:
    """Of what torch has allocated on the GPU since the last reset."""
    if device.type != "cuda":
        return None
    found = torch.cuda.max_memory_allocated() / 2**20
    torch.cuda.reset_peak_memory_stats()
    return found


def bare_rate(plain: LDCVAE, pixels: torch.Tensor, batch: int, device: torch.device, seconds: float) -> float:
    """Images a second of the loop that people would write; nothing of it stays in memory."""
    plain = plain.to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(parameters(plain), lr=1e-3, weight_decay=0.0, fused=True)
    on_device = pixels.to(device)

    def bare() -> None:
        chosen = on_device[torch.randint(len(on_device), (batch,), device=device)]
        images = chosen.float().div_(255).contiguous(memory_format=torch.channels_last)
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
            bare_step(plain, optimizer, images, 40.0)

    return batch / timed(bare, device, seconds)


def speeds_of_network(
    name: str, shape: tuple[int, int, int], network: dict[str, Any], batch: int, device: torch.device, seconds: float
) -> dict[str, Any]:
    """Images a second of both phases over images, of the bare loop, and of sampling."""
    pixels = torch.randint(0, 256, (4 * batch, *shape), dtype=torch.uint8)
    world = World(device=device)
    settings = phase_settings(batch, compiled=False)
    found: dict[str, Any] = {"network": name, "batch": batch}

    def model() -> LDCVAE:
        torch.manual_seed(0)
        return LDCVAE(LDCVAEConfig(shape, base_components=10, **network)).to(device)

    peak_mib(device)
    phase = AutoencoderPhase(model(), pixels, pixels[:batch], settings, world, 0)
    found["autoencoder_images_per_s"] = batch / timed(lambda: advance(phase), device, seconds)
    found["autoencoder_peak_mib"] = peak_mib(device)
    found["compiled_images_per_s"] = compiled_rate(name, seconds) if device.type == "cuda" else None
    found["bare_images_per_s"] = bare_rate(model(), pixels, batch, device, seconds)
    encodings = encode_split(phase.model.eval(), pixels, world)
    peak_mib(device)
    sharpen = DecoderPhase(
        phase.model, pixels, encodings, pixels[:batch], DecoderSettings(epochs=1_000_000), world, 0,
        autoencoder=settings, sampler=SamplerSettings(),
    )  # fmt: skip

    found["decoder_images_per_s"] = batch / timed(lambda: advance(sharpen), device, seconds)
    found["decoder_peak_mib"] = peak_mib(device)
    generator = torch.Generator(device).manual_seed(0)
    made = phase.model.eval()
    found["latents_per_s"] = 8 * batch / timed(lambda: made.sample_latents(8 * batch, generator), device, seconds / 2)
    found["sampled_images_per_s"] = batch / timed(lambda: made.sample(batch, generator), device, seconds / 2)
    return found


def speeds_of_direction(name: str, n: int, dim: int, device: torch.device, seconds: float) -> dict[str, Any]:
    """A direction at n particles beside bare products of its size: distances to particles and targets, and sums."""
    generator = torch.Generator(device).manual_seed(0)
    particles, targets = (torch.randn(n, dim, generator=generator, device=device) for _ in range(2))
    widths = [torch.full((), width * dim**0.5, device=device) for width in (0.3, 0.8)]
    step = Step(particles, targets, widths, 0.3, SamplerSettings(direction=name, particles=max(4, n)))
    field = DIRECTIONS.find(name).field
    peak_mib(device)
    took = timed(lambda: field(step), device, seconds, warm=1)
    peak = peak_mib(device)
    bare = timed(lambda: bare_direction(particles, targets, widths, 2**26), device, seconds, warm=1)
    return {"direction": name, "n": n, "d": dim, "ms": 1e3 * took, "bare_ms": 1e3 * bare, "ratio": took / bare,
            "peak_mib": peak}  # fmt: skip


def table(rows: list[dict[str, Any]]) -> str:
    """Rows of equal keys as Markdown."""

    def cell(value: Any) -> str:
        if value is None:
            return "–"
        if not isinstance(value, float):
            return str(value)
        return f"{value:,.4g}" if abs(value) < 1000 else f"{value:,.0f}"

    lines = [" | ".join(rows[0]), "|".join("---" for _ in rows[0])]
    lines += [" | ".join(cell(value) for value in row.values()) for row in rows]
    return "\n".join(f"| {line} |" for line in lines)


def measure(seconds: float, tiny: bool) -> dict[str, Any]:
    """Everything: machine, checks, speeds."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    cuda = device.type == "cuda"
    started = time.perf_counter()
    print(
        f"torch {torch.__version__}, {torch.cuda.get_device_name() if cuda else 'CPU: nothing here is a GPU figure'}"
    )
    found: dict[str, Any] = {
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else "cpu",
        "seconds_each": seconds,
    }
    found["checks"] = checks(device)
    print("\n" + table(found["checks"]), flush=True)
    side = 256 if tiny or not cuda else 8192
    found["matmul_tflops"] = {
        str(kind).removeprefix("torch."): matmul_flops(device, kind, side, seconds / 4) / 1e12
        for kind in (torch.float32, torch.bfloat16)
    }
    print("\nmatrix products, TFLOP/s: " + json.dumps(found["matmul_tflops"]))
    networks = TINY if tiny else NETWORKS
    found["networks"] = [speeds_of_network(name, *what, device, seconds) for name, what in networks.items()]
    print("\n" + table(found["networks"]), flush=True)
    sizes = TINY_PARTICLES if tiny else PARTICLES
    names = ("stein", "score_difference", "drift")
    found["directions"] = [speeds_of_direction(name, *size, device, seconds / 2) for size in sizes for name in names]
    print("\n" + table(found["directions"]))
    found["seconds"] = round(time.perf_counter() - started, 1)
    return found


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, default=Path(tempfile.gettempdir()) / "gpu.json", help="where to write")
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement")
    parser.add_argument("--tiny", action="store_true", help="sizes for a test of this script")
    parser.add_argument("--compiled", choices=[*NETWORKS, *TINY], help="measure this network compiled, and stop")
    options = parser.parse_args(arguments)
    if options.compiled:
        print(compiled_here(options.compiled, options.seconds))
        return 0
    found = measure(options.seconds, options.tiny)
    options.json.write_text(json.dumps(found, indent=1) + "\n")
    failed = [check["check"] for check in found["checks"] if not check["passed"]]
    print(
        f"\n{found['seconds']} s, written to {options.json}; "
        + (f"FAILED: {failed}" if failed else "all checks passed")
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
