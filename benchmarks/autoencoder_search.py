"""Which autoencoder generates best: dimension, lambda and decoder phase by grid, each judged on validation images.

Encodings and sampler do not depend on phase `decoder`, so that every autoencoder gets one sampler, and every decoder
trained on from it is judged by the same latents: of the sampler's base, of the net, and of the encoder's posteriors.
What is done is kept and not done again; several processes may work on different grids in one folder.

    OMP_NUM_THREADS=1 python benchmarks/autoencoder_search.py --config configs/fashion_mnist.yaml \\
        --set model.latent_dim=16,32,64 train.inverse_temperature=160 --decoder decoder.adversarial=0.5,4
    python benchmarks/autoencoder_search.py --table
"""

import argparse
import itertools
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import pipeline.prepare
from ldcvae import LDCVAE, Encodings
from ldcvae.training.autoencoder import AutoencoderPhase
from ldcvae.training.decoder import DecoderPhase
from ldcvae.training.encode import encode_split
from ldcvae.training.heap import keep_freed_memory
from ldcvae.training.sampler import SamplerPhase
from ldcvae.training.world import World, keyed_generator
from pipeline.config.load import load_config, override
from pipeline.config.sections import Config
from pipeline.judge.extractors import build_extractor
from pipeline.judge.figures import Judge, decoded
from pipeline.store.data.splits import split_images
from pipeline.store.folder import fingerprint
from pipeline.store.model import build_model
from pipeline.store.run import Run, open_run

FIGURES = ("fd", "precision", "recall", "coverage")
WORLD = World(device=torch.device("cuda" if torch.cuda.is_available() else "cpu"))


def grid(pairs: list[str]) -> Iterator[list[str]]:
    """Every combination of `key=a,b,c`, as overrides `key=a`; a value with brackets is one value."""
    keys = [pair.partition("=")[0] for pair in pairs]
    values = [[v] if "[" in v else v.split(",") for v in (pair.partition("=")[2] for pair in pairs)]
    for combination in itertools.product(*values):
        yield [f"{key}={value}" for key, value in zip(keys, combination, strict=True)]


def told(record: dict[str, Any]) -> None:
    """A validation, on stderr."""
    words = " ".join(f"{key} {value:.4g}" for key, value in record.items() if isinstance(value, float))
    print(f"{record['phase']} {record['step']}: {words}", file=sys.stderr, flush=True)


def autoencoder(run: Run, folder: Path, images: dict[str, Tensor]) -> tuple[LDCVAE, dict[str, Any], Path]:
    """Phases 1 and 2 of a configuration, trained or as kept."""
    config = run.config
    parts = {"model": config.model, "train": config.train, "sampler": config.sampler}
    made_of = {name: part.model_dump(mode="json") for name, part in parts.items()} | {"seed": config.seed}
    where = folder / f"ae-{fingerprint(made_of)[:12]}"
    record = where / "record.json"
    if record.exists():
        return loaded(where), json.loads(record.read_text()), where
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = build_model(config, run.shape).to(WORLD.device)
    started = time.perf_counter()
    first = AutoencoderPhase(model.train(), images["train"], images["validation"], config.train, WORLD, config.seed)
    for _ in first.epochs():
        told(first.history[-1])
    first.adopt_average()
    seconds = {"autoencoder": time.perf_counter() - started}
    started = time.perf_counter()
    train, held = (encode_split(model.eval(), images[split], WORLD) for split in ("train", "validation"))
    second = SamplerPhase(model, train, held, config.sampler, WORLD, config.seed)
    for _ in second.blocks(config.sampler.checkpoint_steps):
        told(second.history[-1])
    second.adopt_average()
    seconds["sampler"] = time.perf_counter() - started
    model.save_pretrained(where)
    kept = {"seed": config.seed, "seconds": seconds, "history": [*first.history[-1:], *second.history]}
    record.write_text(json.dumps(kept))
    return model, kept, where


def loaded(where: Path) -> LDCVAE:
    """A model that was saved, on the device."""
    return LDCVAE.from_pretrained(where).to(WORLD.device)


def judges_of(run: Run, real: Tensor) -> dict[str, Judge]:
    """By the classifier of the data, and by convolutions that have learnt nothing."""
    found = {}
    for name in ("classifier", "random"):
        extractor = build_extractor(open_run(override(run.config, {"evaluate.extractor": name})))
        found[name] = Judge(extractor, extractor(real), run.config.evaluate.neighbours, WORLD.device)
    return found


def judged(
    model: LDCVAE, encodings: dict[str, Encodings], real: Tensor, count: int, seed: int, judges: dict[str, Judge]
) -> dict[str, Any]:
    """The figures of base, net and posteriors by each judge, `count` images a row, and of reconstructions."""
    draws = {"base": lambda noise: model.whitening.unwhiten(model.draw_base(count, noise))}
    draws |= {"net": lambda noise: model.sample_latents(count, noise)}
    draws |= {name: lambda noise, one=one: one.draw(count, noise) for name, one in encodings.items()}
    found: dict[str, Any] = {}
    for name, judge in judges.items():
        found[name] = {"reconstruction": judge.reconstruction(model, real)}
        for row, draw in draws.items():
            with torch.no_grad():
                latents = draw(keyed_generator(WORLD.device, seed, "search", row))
            features = judge.extractor.of(decoded(model, latents))
            found[name][row] = judge.figures(features)
    return found


def search(arguments: argparse.Namespace) -> None:
    folder = Path(arguments.folder)
    keep_freed_memory()
    judges: dict[str, Judge] = {}
    images: dict[str, Tensor] = {}
    for chosen in grid(arguments.set):
        run = opened(arguments, chosen)
        if not images:
            pipeline.prepare.run(opened(arguments, []))  # one split, and one judge, for all seeds
            images = {split: split_images(run, split) for split in ("train", "validation")}  # type: ignore[misc]
        _, kept, where = autoencoder(run, folder, images)
        if not judges:  # after the first autoencoder: another process may have made the classifier by then
            judges = judges_of(opened(arguments, []), images["validation"])
        for more in [[], *grid(arguments.decoder)] if arguments.decoder else [[]]:
            decoder(opened(arguments, [*chosen, *more]), chosen, more, where, kept, images, judges)


def opened(arguments: argparse.Namespace, overrides: list[str]) -> Run:
    """The run with these overrides; all of a folder share its data."""
    return open_run(load_config(arguments.config, [f"storage={arguments.folder}", "name=data", *overrides]))


def decoder(
    run: Run,
    chosen: list[str],
    more: list[str],
    where: Path,
    kept: dict[str, Any],
    images: dict[str, Tensor],
    judges: dict[str, Judge],
) -> None:
    """One decoder, trained and judged, unless it was already."""
    config: Config = run.config
    key = fingerprint({"decoder": config.decoder.model_dump(mode="json")})[:12] if more else "none"
    record = where / f"decoder-{key}.json"
    if record.exists():
        return
    model, seconds = loaded(where), dict(kept["seconds"])
    encodings = encode_split(model, images["train"], WORLD)  # phase `decoder` does not change them
    if more:
        started = time.perf_counter()
        settings = {"autoencoder": config.train, "sampler": config.sampler}
        phase = DecoderPhase(
            model, images["train"], encodings, images["validation"], config.decoder, WORLD, config.seed, **settings
        )
        for _ in phase.epochs():
            told(phase.history[-1])
        phase.adopt_average()
        seconds["decoder"] = time.perf_counter() - started
        model.eval()
        model.save_pretrained(where / f"decoder-{key}")
    real = images["validation"]
    figures = judged(model, {"bound": encodings}, real, len(real), config.seed, judges)
    result = {"overrides": [*chosen, *more], "seconds": seconds, "figures": figures}
    record.write_text(json.dumps(result))
    print(line(result), flush=True)


def line(result: dict[str, Any]) -> str:
    """A row of the table."""
    cells = []
    for name, found in result["figures"].items():
        rec = found["reconstruction"]
        cells.append(f"{name}: mse {rec['mse']:.5f} rec {rec['fd']:.3f}")
        for row in ("bound", "base", "net"):
            figures = found[row]
            rest = "/".join(f"{figures[figure]:.3f}"[1:] for figure in FIGURES[1:])
            cells.append(f"{row} {figures['fd']:.3f} ({rest})")
    seconds = " ".join(f"{name} {value:.0f}s" for name, value in result["seconds"].items())
    return f"{' '.join(result['overrides']) or 'as configured'} | {' | '.join(cells)} | {seconds}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config")
    parser.add_argument("--folder", default="runs/search")
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=A,B", help="of model, train, sampler")
    parser.add_argument("--decoder", nargs="*", default=[], metavar="KEY=A,B", help="of section decoder")
    parser.add_argument("--table", action="store_true", help="print what is done and stop")
    arguments = parser.parse_args()
    if arguments.table:
        for record in sorted(Path(arguments.folder).glob("ae-*/decoder-*.json")):
            print(line(json.loads(record.read_text())))
        return
    search(arguments)


if __name__ == "__main__":
    sys.exit(main())
