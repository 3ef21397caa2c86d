"""The search space: `tune.space` checked as a whole, as Optuna distributions, and back to overrides.

A key is searched under its dotted path. A list has no bounds, so the kernel bandwidths also have three derived keys:
`sampler.bandwidths.smallest`, `.largest` and `.count` make a ladder with equal ratios between its steps.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution

from pipeline.config.errors import ConfigError
from pipeline.config.load import describe_keys, nearest_key, override
from pipeline.config.sections import Config, TrainConfig
from pipeline.config.tune import Distribution
from pipeline.tune.internals import contains

__all__ = ["SearchSpace", "build_space", "ladder"]

SEARCHED_SECTIONS = ("model", "train", "decoder", "sampler")
_SEARCHED_KEYS = ("sample.temperature",)  # of other sections
_BANDWIDTHS = "sampler.bandwidths"
_LADDER = tuple(f"{_BANDWIDTHS}.{part}" for part in ("smallest", "largest", "count"))
_LADDER_DEFAULTS: dict[str, Any] = {  # what a ladder key is in a configuration that lists its bandwidths
    _LADDER[0]: min,
    _LADDER[1]: max,
    _LADDER[2]: len,
}
# Keys that say how training is carried out: no figure depends on them.
_OPERATIONAL = {f"train.{key}" for key in TrainConfig.operational} | {"train.memory_mb", "sampler.checkpoint_steps"}


def ladder(smallest: float, largest: float, count: int) -> list[float]:
    """Bandwidths from smallest to largest with equal ratios, to four digits; of one the geometric mean.

    Example:
        >>> ladder(0.1, 0.4, 3)
        [0.1, 0.2, 0.4]
    """
    shares = [0.5] if count == 1 else [step / (count - 1) for step in range(count)]
    return [float(f"{smallest * (largest / smallest) ** share:.4g}") for share in shares]


@dataclass(frozen=True)
class SearchSpace:
    """A checked space over a configuration.

    Attributes:
        base: the configuration whose keys are searched.
        distributions: searched path -> Optuna distribution; the values of a choice are JSON texts.
    """

    base: Config
    distributions: dict[str, BaseDistribution]

    @property
    def only_sampler(self) -> bool:
        """Whether all trials can share one autoencoder."""
        return all(path.startswith("sampler.") or path in _SEARCHED_KEYS for path in self.distributions)

    def overrides(self, params: Mapping[str, Any]) -> dict[str, Any]:
        """Optuna's parameters as overrides of configuration keys.

        Example:
            >>> space = build_space(Config())
            >>> space.overrides({"sampler.bandwidths.count": 2, "sampler.particles": 256})
            {'sampler.particles': 256, 'sampler.bandwidths': [0.13, 0.42]}
        """
        plain: dict[str, Any] = {}
        for path, value in params.items():
            if path not in _LADDER:
                choice = isinstance(self.distributions[path], CategoricalDistribution)
                plain[path] = json.loads(value) if choice else value
        if any(path in params for path in _LADDER):
            smallest, largest, count = (
                params.get(path, default(self.base.sampler.bandwidths)) for path, default in _LADDER_DEFAULTS.items()
            )
            plain[_BANDWIDTHS] = ladder(smallest, largest, count)
        return plain

    def params(self, config: Config) -> dict[str, Any]:
        """The searched keys' values in a configuration, as Optuna's parameters.

        A list of bandwidths that is no ladder is placed where its nearest ladder is.

        Raises:
            ValueError: naming a value that lies outside the space.
        """
        content = config.model_dump(mode="json")
        params: dict[str, Any] = {}
        for path, distribution in self.distributions.items():
            if path in _LADDER:
                assert isinstance(distribution, FloatDistribution | IntDistribution)
                value = _LADDER_DEFAULTS[path](config.sampler.bandwidths)
                params[path] = min(max(value, distribution.low), distribution.high)
                continue
            section, _, name = path.partition(".")
            value = content[section][name]
            if isinstance(distribution, CategoricalDistribution):
                value = json.dumps(value)
                if value not in distribution.choices:
                    raise ValueError(
                        f"{path} is {value}, not among the choices {', '.join(map(str, distribution.choices))}"
                    )
            elif not contains(distribution, value):
                raise ValueError(f"{path} is {value}, outside {_show(distribution)}")
            params[path] = value
        return params

    def point(self, values: Mapping[str, Any]) -> Config:
        """The configuration at a point of `tune.start_from`, which may use the ladder's keys.

        Raises:
            ConfigError: for unknown keys or values.
        """
        steps = {path: value for path, value in values.items() if path in _LADDER}
        rest = {path: value for path, value in values.items() if path not in _LADDER}
        return override(self.base, rest | self.overrides(steps))


def _show(distribution: Any) -> str:
    step = f" in steps of {distribution.step}" if (distribution.step or 1) != 1 else ""
    return f"{distribution.low:g}…{distribution.high:g}{step}"


def _shape_mistakes(spec: Distribution) -> list[str]:
    """What is wrong with a distribution, whatever its key."""
    if spec.type == "choice":
        if any(value is not None for value in (spec.low, spec.high, spec.step)):
            return ["type choice takes values, not low, high or step"]
        if not spec.values:
            return ["values is empty: type choice needs at least one value"]
        texts = [json.dumps(value) for value in spec.values]
        return ["values has duplicates"] if len(set(texts)) < len(texts) else []
    if spec.values is not None:
        return [f"type {spec.type} takes low and high, not values"]
    if spec.low is None or spec.high is None:
        return [f"type {spec.type} needs low and high"]
    mistakes = []
    if spec.low >= spec.high:
        mistakes.append(f"low must be below high, got {spec.low} and {spec.high}")
    if spec.type in ("loguniform", "logint") and spec.low <= 0:
        mistakes.append(f"low must be above 0 on a log scale, got {spec.low}")
    whole = spec.type in ("int", "logint")
    if whole and not (float(spec.low).is_integer() and float(spec.high).is_integer()):
        mistakes.append(f"type {spec.type} needs whole numbers, got {spec.low} and {spec.high}")
    if spec.step is not None and (spec.type != "int" or spec.step < 1):
        mistakes.append(f"step is for type int and at least 1, got {spec.step} with type {spec.type}")
    return mistakes


def _probes(spec: Distribution) -> list[Any]:
    """Values that must all be valid for the key: the ends, and one in between that is whole for types int only."""
    if spec.type == "choice":
        return list(spec.values or [])
    low, high = spec.low or 0, spec.high or 0
    return [int(low), int(high)] if spec.type in ("int", "logint") else [low, low + 0.3717 * (high - low), high]


def _key_mistakes(config: Config, path: str, spec: Distribution) -> list[str]:
    """What is wrong with a distribution for its key."""
    keys: list[dict[str, Any]]
    if path in _LADDER:
        if _BANDWIDTHS in config.tune.space:
            return [f"cannot be searched together with {_BANDWIDTHS} itself"]
        count = path == _LADDER[2]
        if count != (spec.type == "int"):
            return ["a number of bandwidths has type int" if count else "a bandwidth has type loguniform or uniform"]
        keys = [{_BANDWIDTHS: [1.0] * int(value) if count else [value]} for value in _probes(spec)]
    else:
        known = [
            key for key, *_ in describe_keys() if key.split(".")[0] in SEARCHED_SECTIONS or key in _SEARCHED_KEYS
        ]
        if path not in known:
            every = [key for key, *_ in describe_keys()]
            if path in every:
                return [f"only keys of {', '.join(SEARCHED_SECTIONS)} and {_SEARCHED_KEYS[0]} can be searched"]
            return [f"unknown key; {nearest_key(path, [*known, *_LADDER])}"]
        if path in _OPERATIONAL:
            return ["changes how training is carried out, not its result"]
        keys = [{path: value} for value in _probes(spec)]
    mistakes = []
    for values in keys:
        try:
            override(config, values)
        except ConfigError as error:
            mistakes += [re.sub(r"^[\w.]+: ", "", line.strip()) for line in str(error).splitlines()[1:]]
    workers = config.train.least_workers  # trials do not grow
    if path in ("sampler.particles", "train.batch_size", "decoder.batch_size") and not mistakes and workers > 1:
        sizes = _probes(spec) + ([spec.step or 1] if spec.type == "int" else [])
        if spec.type not in ("int", "choice") or any(size % workers for size in sizes):
            mistakes.append(
                f"must divide over train.num_workers={workers}: use type choice, or type int whose low, high and "
                "step do"
            )
    return list(dict.fromkeys(mistakes))


def _distribution(spec: Distribution) -> BaseDistribution:
    if spec.type == "choice":
        return CategoricalDistribution([json.dumps(value) for value in spec.values or []])
    low, high = spec.low or 0, spec.high or 0
    if spec.type in ("int", "logint"):
        return IntDistribution(int(low), int(high), log=spec.type == "logint", step=spec.step or 1)
    return FloatDistribution(float(low), float(high), log=spec.type == "loguniform")


def _ladder_mistakes(config: Config) -> list[str]:
    """The ladder's ends must not cross, wherever they are drawn."""
    smallest, largest = (config.tune.space.get(path) for path in _LADDER[:2])
    top = min(config.sampler.bandwidths) if smallest is None else smallest.high
    bottom = max(config.sampler.bandwidths) if largest is None else largest.low
    if (smallest or largest) and top is not None and bottom is not None and top >= bottom:
        return [f"tune.space.{_LADDER[0]}: reaches {top}, not below the least {_LADDER[1]}, {bottom}"]
    return []


def build_space(config: Config) -> SearchSpace:
    """Check `tune.space` and `tune.start_from`.

    Raises:
        ConfigError: with every mistake, each with its key, the value and what is allowed.

    Example:
        >>> build_space(Config()).distributions["sampler.particles"]
        IntDistribution(high=1024, log=True, low=128, step=1)
    """
    settings = config.tune
    mistakes = [] if settings.space else ["tune.space: is empty: name at least one key to search"]
    distributions = {}
    for path, spec in settings.space.items():
        wrong = _shape_mistakes(spec)
        # A key is checked even where its distribution is wrong, so that both mistakes are told at once.
        wrong += _key_mistakes(config, path, spec if not wrong else Distribution(type="choice", values=[]))
        mistakes += [f"tune.space.{path}: {mistake}" for mistake in wrong]
        if not wrong:
            distributions[path] = _distribution(spec)
    mistakes += _ladder_mistakes(config)
    idle = [path for path in settings.space if path.startswith("decoder.")]
    if idle and not config.decoder.epochs and "decoder.epochs" not in idle:
        mistakes.append(f"tune.space.{idle[0]}: changes nothing while decoder.epochs is 0")
    space = SearchSpace(config, distributions)
    try:
        space.params(config)
    except ValueError as error:
        mistakes.append(f"tune.space: the config's own values are the first trial, but {error}")
    searched = set(settings.space) | ({_BANDWIDTHS} if set(_LADDER) & set(settings.space) else set())
    for number, values in enumerate(settings.start_from):
        try:
            if outside := [path for path in values if path not in searched]:
                raise ConfigError(f"{', '.join(outside)}: not searched by tune.space")
            space.params(space.point(values))
        except (ConfigError, ValueError) as error:
            lines = str(error).splitlines()
            mistakes.append(f"tune.start_from.{number}: {'; '.join(line.strip() for line in lines[1:] or lines)}")
    if settings.num_samples <= len(settings.start_from):
        mistakes.append(
            f"tune.num_samples: {settings.num_samples} trials do not cover the config's own values and "
            f"{len(settings.start_from)} points of tune.start_from"
        )
    if settings.sampler == "cmaes" and len(settings.metrics) > 1:
        mistakes.append("tune.sampler: cmaes takes one metric; use tpe, gp, random or qmc for several")
    if len(set(settings.metrics)) < len(settings.metrics):
        mistakes.append(f"tune.metrics: has duplicates: {settings.metrics}")
    if mistakes:
        plural = "mistake" if len(mistakes) == 1 else "mistakes"
        raise ConfigError("\n  ".join([f"{len(mistakes)} {plural} in the search:", *mistakes]))
    return space
