"""Variants from outside the tree: modules that register records when they are imported.

They are code, so they are taken from the command line only (`--plugin module`), never from storage.
"""

import importlib
import os
import sys
from collections.abc import Sequence

from pipeline.config.errors import ConfigError

__all__ = ["load_plugins"]


def load_plugins(modules: Sequence[str]) -> None:
    """Import modules by name; a second time does nothing.

    Raises:
        ConfigError: naming a module that cannot be imported, and why.

    Example:
        >>> load_plugins(["math"])
        >>> load_plugins(["no_such_module"])
        Traceback (most recent call last):
        pipeline.config.errors.ConfigError: --plugin no_such_module: ModuleNotFoundError: No module named ...
    """
    if modules and os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())  # `python -m` looks there, the installed commands do not
    for name in modules:
        try:
            importlib.import_module(name)
        except Exception as error:  # whatever a user's module raises
            written = ", without .py," if name.endswith(".py") else ""
            raise ConfigError(
                f"--plugin {name}: {type(error).__name__}: {error}; it is imported by name{written} so it must be "
                "installed, or lie in the folder that the command is started in, on every machine of a cluster"
            ) from error
