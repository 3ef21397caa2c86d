"""What does not fit together in a configuration whose keys are fine one by one, told with all other mistakes.

Nothing here asks for a library or the hardware; `pipeline.remote.hardware` adds what needs the machine.
"""

import math
import os
import re
from collections.abc import Callable, Iterator
from typing import NamedTuple
from urllib.parse import parse_qsl

from fsspec import available_protocols

from pipeline.config.sections import Config
from pipeline.config.variants import SOURCES

__all__ = ["CHECKS", "Check", "equal_parts", "password_mistake", "submitted", "url_mistake"]

_CONTAINERS = ("abfs", "abfss", "wasb", "wasbs")
_SECRET = r"[?&][^=&]*(access_key|secret|token|signature|password)[^=&]*=|[?&]sig="


class Check(NamedTuple):
    """One look at a whole configuration.

    Attributes:
        reads: sections and plain keys that it looks at; it waits until all of them are right.
        mistakes: configuration -> what is wrong, each beginning with the dotted key.
    """

    reads: tuple[str, ...]
    mistakes: Callable[[Config], Iterator[str]]


def submitted() -> bool:
    """Whether this process was started by `ray job submit`."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def url_mistake(url: str) -> str:
    """Why files cannot lie at a path or URL; empty if they can. Never repeats a secret.

    Example:
        >>> url_mistake("s3:/bucket/runs")
        "'s3:/bucket/runs' would be a local folder; did you mean s3://bucket/runs?"
        >>> url_mistake("runs/s3:/bucket")
        ''
    """
    scheme, slashes, rest = url.partition("://")
    if not slashes:
        scheme, slash, rest = url.partition(":/")
    protocol = scheme.rpartition("::")[2].lower()
    if not slashes and not (slash and protocol in available_protocols()):
        return ""  # a path
    user = rest.partition("/")[0].rpartition("@")[0]
    # A container stands there in Azure's URLs: abfs://container@account.dfs.core.windows.net.
    secret = ":" in user if protocol in _CONTAINERS else bool(user) and protocol not in ("file", "local")
    if secret or re.search(_SECRET, rest, re.I):
        return (
            f"{protocol}://…: credentials in a URL end up in logs; take them from the environment, the instance role "
            "or the usual config files"
        )
    if not slashes:
        return f"{url!r} would be a local folder; did you mean {scheme.lower()}://{_absolute(scheme, rest)}?"
    if protocol == "memory":
        return f"{url!r}: memory:// lives in one process, but workers run in others; use a folder or an object store"
    return ""


def _absolute(scheme: str, rest: str) -> str:
    """What stands after the `://` that was meant: file:/data is file:///data."""
    return f"/{rest}" if scheme.lower() in ("file", "local") else rest


def _storage(config: Config) -> Iterator[str]:
    if mistake := url_mistake(config.storage):
        yield f"storage: {mistake}"
    elif submitted() and "://" not in config.storage and not config.storage.startswith(("/", "~")):
        yield (
            f"storage: {config.storage!r} is relative, and a Ray job runs in a temporary copy of the folder that was "
            "submitted, which goes with it; must be an absolute path or a URL that every node reaches"
        )


def _data(config: Config) -> Iterator[str]:
    data = config.data
    if data.path is not None and (mistake := url_mistake(data.path)):
        yield f"data.path: {mistake}"
    for key, value in (("name", data.name), ("path", data.path)):
        if value is not None and key not in SOURCES[data.source].reads:
            others = [name for name, source in SOURCES.items() if key in source.reads]
            yield f"data.{key}: source {data.source!r} reads none, got {value!r}; data.source={'|'.join(others)} does"
    validation, test = data.validation_fraction, data.test_fraction
    if validation + test >= 1:
        yield (
            f"data.validation_fraction: {validation:g} and data.test_fraction {test:g} add up to "
            f"{validation + test:g}; must be below 1 together"
        )


def equal_parts(config: Config) -> Iterator[str]:
    """Batches of which some number of workers that training may have cannot take equal parts, or some have none."""
    train, decoder = config.train, config.decoder
    workers = range(train.least_workers, train.most_workers + 1)
    sizes = [("train.batch_size", train.batch_size), ("sampler.particles", config.sampler.particles)]
    if decoder.epochs and decoder.batch_size is not None:
        sizes.append(("decoder.batch_size", decoder.batch_size))
    for key, value in sizes:
        if bad := [str(number) for number in workers if value % number]:
            yield (
                f"{key}: {value} does not divide over train.num_workers={train.num_workers}"
                + (f" ({', '.join(bad)} of them)" if len(workers) > 1 else "")
            )
    batch = decoder.batch_size or train.batch_size
    if decoder.epochs and decoder.adversarial and decoder.judged_of(batch) < train.most_workers:
        yield (
            f"decoder.judged: {decoder.judged:g} of a batch of {batch} are fewer images than train.num_workers="
            f"{train.num_workers}; must be at least {math.ceil(100 * train.most_workers / batch) / 100:g}"
        )


_SAID = re.compile(r"\$\w+")  # an environment variable, which stays one in the run's files
_PASSWORDS = re.compile(r"pass|pwd|secret|token", re.I)


def password_mistake(url: str) -> str:
    """Why a database may not be named so; empty if it may. Never repeats a secret.

    Example:
        >>> password_mistake("postgresql://me:$PGPASSWORD@host/optuna")
        ''
        >>> password_mistake("postgresql://me:secret@host/optuna").partition(";")[0]
        "a password in the configuration ends up in the run's files"
    """
    rest = url.partition("://")[2]
    given = [found[1]] if (found := re.match(r"[^:/@]*:([^@]*)@", rest)) else []
    given += [value for name, value in parse_qsl(rest.partition("?")[2]) if _PASSWORDS.search(name)]
    if any(not _SAID.fullmatch(password) for password in given):
        return (
            "a password in the configuration ends up in the run's files; write $NAME in its place and set that "
            "environment variable"
        )
    return ""


def _study(config: Config) -> Iterator[str]:
    if config.tune.study_url is not None and (mistake := password_mistake(config.tune.study_url)):
        yield f"tune.study_url: {mistake}"


def _weights(config: Config) -> Iterator[str]:
    for key, url in (
        ("evaluate.extractor_file", config.evaluate.extractor_file),
        ("evaluate.inception_weights", config.evaluate.inception_weights),
        ("decoder.perceptual_weights", config.decoder.perceptual_weights),
    ):
        if url is not None and (mistake := url_mistake(url)):
            yield f"{key}: {mistake}"


def _centres(config: Config) -> Iterator[str]:
    sampler, dim = config.sampler, config.model.latent_dim
    if sampler.base == "gmm" and sampler.base_centres > 1:
        from ldcvae.densities.covariances import choose_covariances  # which loads torch

        kind = choose_covariances(dim, sampler.base_components).kind
        if kind != "full":
            yield (
                f"sampler.base_centres: {sampler.base_centres} need full covariances, and "
                f"{sampler.base_components:,} components at d = {dim:,} have {kind.replace('_', '-')} ones; must be 1"
            )


CHECKS = (
    Check(("storage",), _storage),
    Check(("data",), _data),
    Check(("train", "decoder", "sampler"), equal_parts),
    Check(("model", "sampler"), _centres),
    Check(("tune",), _study),
    Check(("evaluate", "decoder"), _weights),
)
"""What is checked of every configuration that a user gives."""
