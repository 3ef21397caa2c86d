"""What a folder of `save_pretrained` must hold, and what is said of one that does not."""

import contextlib
import io
import json
import os
from collections.abc import Iterator

from safetensors import SafetensorError

__all__ = ["FILES", "read_from"]

FILES = ("model.safetensors", "config.json")


@contextlib.contextmanager
def read_from(source: str) -> Iterator[None]:
    """For the duration of a block that loads a model: its errors name the file, and the hub's mixin prints nothing.

    Args:
        source: a folder, or "hub:USER/MODEL".

    Raises:
        FileNotFoundError: if a folder lacks one of the files.
        ValueError: if one is damaged, or the weights do not fit the networks.

    Example:
        >>> with read_from("no/such/folder"):
        ...     pass
        Traceback (most recent call last):
        FileNotFoundError: no/such/folder holds no model.safetensors: give the folder that save_pretrained wrote ...
    """
    for name in FILES:
        if not source.startswith("hub:") and not os.path.isfile(os.path.join(source, name)):
            remedy = "give the folder that save_pretrained wrote (a run's model/), or hub:USER/MODEL to download"
            raise FileNotFoundError(f"{source} holds no {name}: {remedy}")
    with contextlib.redirect_stdout(io.StringIO()):  # that it loads from a local directory
        try:
            yield
        except (TypeError, json.JSONDecodeError) as error:
            raise ValueError(f"config.json of {source} is damaged: {error}") from None
        except SafetensorError as error:
            raise ValueError(f"model.safetensors of {source} is damaged: {error}") from None
        except RuntimeError as error:
            raise ValueError(f"the weights of {source} do not fit the networks: {error}") from None
