"""Files of weights that a configuration names: what they hold decides what is computed, not where they lie."""

from typing import Any

from pipeline.config.errors import ConfigError, PipelineError
from pipeline.config.sections import Config
from pipeline.store.folder import Folder, sha256

__all__ = ["FILES", "decoder_parts", "judge_parts", "read_file"]

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


def decoder_parts(config: Config, even_without: bool = False) -> dict[str, Any]:
    """The part of a fingerprint that is about phase `decoder`; empty where there is none.

    Args:
        config: of a run.
        even_without: the section even where it has no epochs, as a search over them needs it.

    Raises:
        ConfigError: if the file of the perceptual loss cannot be read.

    Example:
        >>> decoder_parts(Config()), "decoder" in decoder_parts(Config(), even_without=True)
        ({}, True)
    """
    if not (config.decoder.epochs or even_without):
        return {}
    parts: dict[str, Any] = {"decoder": config.decoder.kept_under(FILES)}
    if (file := config.decoder.features_file) is not None:
        parts["perceptual_weights"] = sha256(read_file(file, "decoder.perceptual_weights"))
    return parts
