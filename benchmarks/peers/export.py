"""Write a run's images and the specification of its networks for the peers' environment.

Runs in the project's environment, on a run that `pipeline.prepare` has made:

    python benchmarks/peers/export.py FOLDER [--config F] [--seeds 0,1,2] [--keep last] [--set vamp=50] [key=value …]

The settings of the peers (penalty weights, pseudo-inputs, mixture components), the seeds and the number of epochs are
those of the run's `compare/results.json`, if `pipeline.compare` has written one; `--set` and `--seeds` go before it.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from exchange import find, write_images, write_json

from ldcvae.networks import choose_network
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import load_config
from pipeline.config.sections import Config
from pipeline.store.data.shards import SPLITS, load_split
from pipeline.store.run import Run, open_run

__all__ = ["compared", "make_spec", "parse"]

# wae_mmd: weight of MMD² relative to the reconstruction loss; rae_l2: of |z|²/2; vamp: pseudo-inputs.
SETTINGS = {"wae_mmd": 10.0, "rae_l2": 1.0, "vamp": 100}
DECAY = 1e-6  # RAE-L2's weight of the decoder's squared weights, as in ldcvae.rivals.objectives
SEEDS = [0, 1, 2]


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def parse(doc: str | None, arguments: Sequence[str] | None = None, *, exporting: bool = True) -> argparse.Namespace:
    """The command line that export.py and judge.py share."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="where the files for the other environment are")
    parser.add_argument("--config", metavar="FILE", help="the run's YAML file")
    if exporting:
        parser.add_argument("--seeds", type=_numbers, metavar="0,1,2", help="of the training runs")
        keep = "judged weights: of the best validation loss, pythae's choice, or the last, as in this project"
        parser.add_argument("--keep", choices=("best", "last"), default="best", help=keep)
        parser.add_argument(
            "--set", action="append", default=[], metavar="NAME=VALUE", help=", ".join([*SETTINGS, "gmm"])
        )
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="as the pipeline's own commands take them")
    return parser.parse_intermixed_args(arguments)


def compared(run: Run) -> dict[str, Any] | None:
    """What `pipeline.compare` has found in this run; None if it has not."""
    return run.folder.read_json("compare/results.json") if run.folder.exists("compare/results.json") else None


def _chosen(wanted: Sequence[str]) -> dict[str, float]:
    chosen = {}
    for item in wanted:
        name, _, value = item.partition("=")
        if name not in (*SETTINGS, "gmm"):
            raise ConfigError(f"--set {item}: unknown name, choose {', '.join([*SETTINGS, 'gmm'])}")
        try:
            chosen[name] = float(value)
        except ValueError:
            raise ConfigError(f"--set {item}: {value!r} is not a number") from None
    return chosen


def make_spec(
    config: Config,
    data: Mapping[str, Any],
    results: Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    chosen: Mapping[str, float] | None = None,
    keep: str = "best",
) -> dict[str, Any]:
    """Everything that the peers are built and trained with.

    Args:
        config: the run's.
        data: `info` of the data set's manifest, with its `digest`.
        results: content of `compare/results.json`, whose settings are taken over.
        seeds: of the training runs; None for those of the results.
        chosen: settings that go before those of the results.
        keep: best or last epoch's weights.

    Raises:
        ConfigError: if the peers cannot be trained in the same way.
    """
    model, train, chosen = config.model, config.train, chosen or {}
    if model.likelihood != "gaussian":
        raise ConfigError("model.likelihood: the peers are compared with squared error only")
    if train.weight_decay:
        raise ConfigError("train.weight_decay: must be 0, since pythae's RAE-L2 uses the optimizer's for its penalty")
    results = results or {"autoencoders": [], "budget": {}, "seeds": SEEDS}
    settings = {}
    for name, default in SETTINGS.items():
        ours = (find(results["autoencoders"], "name", name) or {}).get("setting")
        settings[name] = type(default)(chosen.get(name, default if ours is None else ours))
    shape = tuple(data["shape"])
    return {
        "schema": 1,
        "name": config.name,
        "data": data["digest"],
        "shape": list(shape),
        "network": choose_network(model.network, shape),
        "latent_dim": model.latent_dim,
        "width": model.width,
        "depth": model.depth,
        "inverse_temperature": train.inverse_temperature,
        "epochs": results["budget"].get("epochs", train.epochs),
        "batch_size": results["budget"].get("batch_size", train.batch_size),
        "learning_rate": train.learning_rate,
        "seeds": list(seeds if seeds is not None else results["seeds"]),
        "num_images": results.get("num_images", config.evaluate.num_images),
        "split": results.get("split", config.evaluate.split),
        "settings": settings,
        "decay": DECAY,
        "keep": keep,
        "components": int(chosen.get("gmm", config.evaluate.gmm_components)),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    options = parse(__doc__, arguments)
    try:
        run = open_run(load_config(options.config, options.overrides))
        data = run.data.info | {"digest": run.data.digest}
        spec = make_spec(run.config, data, compared(run), options.seeds, _chosen(options.set), options.keep)
        images = {split: load_split(run, split).pixels.numpy() for split in SPLITS}
    except (ConfigError, PipelineError) as error:
        sys.exit(f"error: {error}")
    write_images(options.folder / "images.npz", **images)
    write_json(options.folder / "spec.json", spec)
    counts = ", ".join(f"{len(pixels):,} {split}" for split, pixels in images.items())
    print(f"{options.folder}: {counts} images; {spec['network']} networks, settings {spec['settings']}")


if __name__ == "__main__":
    main()
