"""Files of weights that a configuration names: what they hold decides what is computed, not where they lie."""

from typing import Any

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config
from pipeline.store.folder import Folder, sha256

__all__ = ["FILES", "decoder_parts", "judge_parts", "perceptual_content", "read_file"]

FILES = frozenset({"extractor_file", "inception_weights", "perceptual_weights"})
"""Keys that name such files, without their sections: fingerprints have hashes of the content instead."""


def read_file(url: str, key: str) -> bytes:
    """Content of a file that a key of the configuration names.

    Args:
        url: path or URL.
        key: for the error.

    Raises:
        ConfigError: naming the key, if it cannot be read.
    """
    folder, _, name = Folder(url).url.rpartition("/")
    try:
        return Folder(folder or "/").read(name)
    except PipelineError as error:
        raise ConfigError(f"{key}: {error}") from None


def judge_parts(config: Config) -> dict[str, Any]:
    """The part of a fingerprint that is about networks which images are judged by: key -> hash; empty without files.

    Raises:
        ConfigError: if a file cannot be read.

    Example:
        >>> judge_parts(Config())
        {}
    """
    used = {config.evaluate.extractor, config.evaluate.second_extractor}
    named = {
        "extractor_file": config.evaluate.extractor_file if "file" in used else None,
        "inception_weights": config.evaluate.inception_weights if "inception" in used else None,
    }
    return {key: sha256(read_file(url, f"evaluate.{key}")) for key, url in named.items() if url is not None}


def perceptual_content(config: Config) -> bytes | None:
    """The file `decoder.perceptual_weights`; None where phase `decoder` needs none.

    Raises:
        ConfigError: if it cannot be read.

    Example:
        >>> perceptual_content(Config()) is None
        True
    """
    file = config.decoder.features_file
    return None if file is None else read_file(file, "decoder.perceptual_weights")


def decoder_parts(config: Config) -> dict[str, Any]:
    """The part of a fingerprint that is about phase `decoder`.

    Raises:
        ConfigError: if the file of the perceptual loss cannot be read.

    Example:
        >>> list(decoder_parts(Config()))
        ['decoder']
    """
    parts: dict[str, Any] = {"decoder": config.decoder.kept_under(FILES)}
    if (weights := perceptual_content(config)) is not None:
        parts["perceptual_weights"] = sha256(weights)
    return parts
