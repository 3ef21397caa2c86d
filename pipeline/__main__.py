"""LDC-VAE on Ray: stages that train, tune, sample and judge, all with one command line.

Every stage is `python -m pipeline.<stage> [--config FILE] [key=value …]`, on a laptop, in a Ray job and on a cluster.
Stages meet only through files under `<storage>/<name>/`; a stage whose inputs are unchanged is skipped.
"""

import argparse
import importlib
import logging
import os
import re
import signal
import sys
import textwrap
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, NoReturn

from ldcvae import __version__
from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.load import describe_keys, load_config
from pipeline.config.plugins import load_plugins
from pipeline.remote.hardware import hardware_checks
from pipeline.store.lease import held
from pipeline.store.run import open_run

__all__ = ["SECTIONS", "main"]

SECTIONS = {
    "run": ("data", "model", "train", "decoder", "sampler", "sample", "evaluate", "report", "ray"),
    "prepare": ("data", "ray"),
    "train": ("model", "train", "decoder", "sampler", "ray"),
    "sample": ("sample", "train.device", "ray"),
    "evaluate": ("evaluate", "train.device", "train.memory_mb", "ray"),
    "report": ("report",),
    "tune": ("tune", "data", "model", "train", "decoder", "sampler", "evaluate", "ray"),
    "compare": ("compare", "data", "model", "train", "decoder", "sampler", "evaluate", "ray"),
    "verify": (),
}
"""Stage -> sections, or single keys, of the configuration that it reads; every stage reads name, storage and seed."""

_BEGINS_ANEW = "\n--force begins anew each time: without it the same command goes on"
_ONLY_READ = {"verify"}  # stages that write nothing: no lock, which read-only storage would refuse, and no --force


def _keys(sections: Sequence[str] | None) -> str:
    """The keys of some sections, or of all, with types, defaults and meanings."""
    lines = ["keys (key=value, values are YAML; [type] default):"]
    section = ""
    for name, kind, default, description in describe_keys():
        if sections is not None and "." in name and not {name, name.partition(".")[0]} & set(sections):
            continue
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        lines.append(f"  {name}={default}  [{kind}]")
        lines += textwrap.wrap(description, 92, initial_indent="      ", subsequent_indent="      ")
    if sections is not None:
        lines += ["", "--help-all lists the keys of the other stages too."]
    return "\n".join(lines)


class _Parser(argparse.ArgumentParser):
    """Says how keys are given to who writes them as options."""

    def error(self, message: str) -> NoReturn:
        if option := re.match(r"unrecognized arguments: --([A-Za-z][\w.-]*)", message):
            written = option[1].replace("-", "_")
            known = [name for name, *_ in describe_keys()]
            meant = next((name for name in known if written in (name, name.rpartition(".")[2])), "train.epochs")
            message += f"; keys of the configuration are given as key=value, e.g. {meant}=…"
        super().error(message)


class _Help(argparse.Action):
    """--help and --help-all: the keys are described when they are asked for."""

    def __init__(self, sections: Sequence[str] | None = None, **named: Any):
        super().__init__(nargs=0, default=argparse.SUPPRESS, **named)
        self.sections = sections

    def __call__(self, parser: argparse.ArgumentParser, *_: Any) -> None:
        parser.epilog = _keys(self.sections)
        parser.print_help()
        parser.exit()


def _doc(stage: str) -> str:
    return importlib.import_module(f"pipeline.{stage}").__doc__ or ""


def _plugin_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument(
        "--plugin",
        metavar="MODULE",
        action="append",
        default=[],
        help="import a module that registers variants of your own, on every worker too (docs/plugins.md); repeatable",
    )
    return parser


def _parser(stage: str) -> argparse.ArgumentParser:
    called = os.path.basename(sys.argv[0])
    parser = _Parser(
        prog=called if called.startswith("ldcvae-") else f"python -m pipeline.{stage}",
        description=_doc(stage),
        formatter_class=argparse.RawDescriptionHelpFormatter,
        parents=[_plugin_parser()],
        add_help=False,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file or URL; without it the defaults, those of configs/digits.yaml"
    )
    if stage == "compare":
        parser.add_argument(
            "--force",
            nargs="*",
            metavar="CELL",
            help="make page and table anew from the cells that are kept; with names, globs or hashes of cells: "
            "delete these, saying what they have cost, and compute them anew, e.g. --force 'gmm*' vae/seed0; "
            "'*' for all (docs/compare.md)",
        )
        parser.add_argument("--retry-failed", action="store_true", help="try cells again that failed for good")
    elif stage not in _ONLY_READ:
        parser.add_argument("--force", action="store_true", help="run even if inputs and config are unchanged")
    parser.add_argument("--version", action="version", version=f"ldcvae {__version__}")
    parser.add_argument(
        "-h", "--help", action=_Help, sections=SECTIONS[stage], help="this text, with the keys that the stage reads"
    )
    parser.add_argument("--help-all", action=_Help, help="the same with all keys")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. train.epochs=20")
    return parser


def _forced(options: argparse.Namespace) -> dict[str, Any]:
    """Arguments of a stage's `run` beside the run itself."""
    if not isinstance(options.force, list | None):
        return {"force": options.force}
    cells = [word for word in options.force or [] if "=" not in word]
    return {"force": options.force is not None, "cells": cells, "retry_failed": options.retry_failed}


@contextmanager
def _heeded_interrupts() -> Iterator[None]:
    """Ctrl+C again where Python swallows one: what an import calls when a lock goes, or `__del__`, cannot raise."""
    before = sys.unraisablehook

    def again(unraisable: Any) -> None:
        if not issubclass(unraisable.exc_type, KeyboardInterrupt):
            before(unraisable)
            return
        thread = threading.main_thread().ident
        # Within this hook it would be swallowed, too.
        later = threading.Timer(0.05, signal.pthread_kill, (thread, signal.SIGINT))
        later.daemon = True
        later.start()

    sys.unraisablehook = again
    try:
        yield
    finally:
        sys.unraisablehook = before


@_heeded_interrupts()
def main(stage: str, arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run one stage, exit with 0 (done), 1 (failure) or 2 (bad usage or config).

    Args:
        stage: module name under `pipeline`, whose docstring is the help and whose `run(run, force)` is called,
            of the comparison with `cells` and `retry_failed` too.
            It is imported by that name: functions of `__main__` could not be found by Ray's workers.
        arguments: command line; None for `sys.argv`.
    """
    forced = False
    try:
        # First of all: help and schema name their variants.
        load_plugins(_plugin_parser().parse_known_args(arguments)[0].plugin)
        options = _parser(stage).parse_intermixed_args(arguments)
        if isinstance(getattr(options, "force", None), list):  # --force takes what follows it, the overrides too
            options.overrides += [word for word in options.force if "=" in word]
        config = load_config(options.config, options.overrides, hardware_checks(stage))
        work: Callable[..., Any] = importlib.import_module(f"pipeline.{stage}").run
        _quiet()
        run = open_run(config, tuple(options.plugin))
        if stage in _ONLY_READ:
            work(run)
            return
        own = _forced(options)
        forced = own["force"]
        with held(run.folder, stage):
            work(run, **own)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PipelineError as error:
        print(f"error: {error}{_BEGINS_ANEW if forced else ''}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        again = "the same command goes on from the last checkpoint"
        print(f"\ninterrupted: {again}{_BEGINS_ANEW if forced else ''}", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `… | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def _quiet() -> None:
    from ldcvae.training.heap import keep_freed_memory

    keep_freed_memory()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)


def _overview() -> argparse.ArgumentParser:
    width = max(map(len, SECTIONS))
    stages = [f"  {stage:{width}}  {_doc(stage).splitlines()[0]}" for stage in SECTIONS]
    parser = argparse.ArgumentParser(
        prog="python -m pipeline",
        description=__doc__,
        epilog="\n".join(["stages:", *stages, "", "`python -m pipeline.<stage> --help` lists what a stage reads."]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ldcvae {__version__}")
    parser.add_argument(
        "stage", choices=SECTIONS, nargs="?", help="the stage to run, with its own arguments after it"
    )
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def _any_stage(arguments: Sequence[str] | None = None) -> None:
    parser = _overview()
    options = parser.parse_args(arguments)
    if options.stage is None:
        parser.print_help()
    else:
        main(options.stage, options.arguments)


# What the console scripts ldcvae-run, ldcvae-tune, … call.
run, prepare, train, sample, evaluate, report, tune, compare, verify = (partial(main, stage) for stage in SECTIONS)

if __name__ == "__main__":
    _any_stage()
