"""The command line that all stages share: `python -m pipeline.<stage> [--config F] [--force] [key=value …]`."""

import argparse
import importlib
import logging
import os
import sys
import textwrap
import warnings
from collections.abc import Sequence

from pipeline.config.load import describe_keys, load_config
from pipeline.config.errors import ConfigError, PipelineError
from ldcvae.training.heap import keep_freed_memory

__all__ = ["main"]


def _keys() -> str:
    lines = ["keys (key=value, values are YAML; [type] default):"]
    section = ""
    for name, kind, default, description in describe_keys():
        if name.rpartition(".")[0] != section:
            section = name.rpartition(".")[0]
            lines.append("")
        lines.append(f"  {name}={default}  [{kind}]")
        lines += textwrap.wrap(description, 92, initial_indent="      ", subsequent_indent="      ")
    return "\n".join(lines)


def _parser(stage: str, doc: str) -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f"python -m pipeline.{stage}",
        description=doc,
        epilog=_keys(),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="YAML file; without it the defaults, those of configs/digits.yaml"
    )
    parser.add_argument("--force", action="store_true", help="run even if inputs and config are unchanged")
    parser.add_argument("overrides", nargs="*", metavar="key=value", help="dotted overrides, e.g. train.epochs=20")
    return parser


def main(stage: str, arguments: Sequence[str] | None = None) -> None:
    """Parse the command line, run one stage, exit with 0 (done), 1 (failure) or 2 (bad usage or config).

    Args:
        stage: module name under `pipeline`, whose docstring is the help and whose `run(config, force)` is called.
            It is imported by that name: functions of `__main__` could not be found by Ray's workers.
        arguments: command line; None for `sys.argv`.
    """
    module = importlib.import_module(f"pipeline.{stage}")
    options = _parser(stage, module.__doc__ or "").parse_intermixed_args(arguments)
    keep_freed_memory()
    warnings.filterwarnings("ignore", category=FutureWarning)
    logging.captureWarnings(True)
    logging.getLogger("py.warnings").setLevel(logging.ERROR)
    try:
        config = load_config(options.config, options.overrides)
        module.run(config, options.force)
    except ConfigError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except PipelineError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("\ninterrupted: the same command goes on from the last checkpoint", file=sys.stderr)
        sys.exit(130)
    except BrokenPipeError:  # `… | head` closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
