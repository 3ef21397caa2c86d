"""Load, check and write configurations: a YAML file plus dotted overrides, validated as a whole.

Example:
    >>> load_config(overrides=["sampler.particles=512"]).sampler.particles
    512
    >>> load_config(overrides=["sampler.particle=512", "train.epochs=-1"])
    Traceback (most recent call last):
    pipeline.config.errors.ConfigError: 2 mistakes in the configuration:
      train.epochs: Input should be greater than or equal to 1, got -1
      sampler.particle: unknown key; did you mean sampler.particles?
"""

import difflib
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError
from typing_extensions import Doc

from ldcvae.registry import OneOf
from pipeline.config.errors import ConfigError
from pipeline.config.sections import Config
from pipeline.config.together import CHECKS, Check, url_mistake

__all__ = ["Config", "describe_keys", "dump_yaml", "load_config", "nearest_key", "override", "parse_config"]


def load_config(path: str | Path | None = None, overrides: Sequence[str] = (), more: Sequence[Check] = ()) -> Config:
    """Read a YAML file (or the defaults), apply `key=value` overrides and validate.

    Args:
        path: YAML file or its URL, as of a run's `config.yaml` on S3; None for the defaults.
        overrides: dotted assignments such as `train.epochs=20`; values are YAML.
        more: checks of the configuration as a whole beside `CHECKS`, e.g. against this machine.

    Raises:
        ConfigError: with every mistake, each with its dotted key, the value and what is allowed.
    """
    content: Any = {}
    if path is not None:
        if mistake := url_mistake(str(path)):
            raise ConfigError(f"--config: {mistake}")
        try:
            content = yaml.load(_read(str(path)), _Loader) or {}  # noqa: S506  # a SafeLoader
        except FileNotFoundError:
            raise ConfigError(f"config file {path} does not exist{_near_file(Path(path))}") from None
        except (OSError, ValueError, yaml.YAMLError) as error:
            raise ConfigError(f"config file {path} is not readable YAML: {error}") from None
        if not isinstance(content, dict):
            raise ConfigError(f"config file {path} must hold keys and values, not {type(content).__name__}")
    for item in overrides:
        key, equals, text = item.partition("=")
        if not equals or not key:
            file = f"; did you mean --config {item}?" if item.endswith((".yaml", ".yml")) else ""
            raise ConfigError(f"override {item!r} is not of the form key=value, e.g. train.epochs=20{file}")
        try:
            value = yaml.load(text, _Loader)  # noqa: S506  # a SafeLoader
        except (ValueError, yaml.YAMLError) as error:
            quotes = "; in a shell, quote the whole argument: '…'" if text[:1] in ("{", "[") else ""
            raise ConfigError(f"override {item!r}: the value is not YAML: {error}{quotes}") from None
        _assign(content, key, value)
    return parse_config(content, (*CHECKS, *more))


def _read(path: str) -> str:
    if "://" not in path:
        return _find(Path(path)).read_text("utf-8")
    import fsspec  # which a file on this machine need not wait for

    try:
        with fsspec.open(path, "rt", encoding="utf-8") as file:
            return str(file.read())
    except (OSError, ValueError):
        raise
    except Exception as error:  # clients of object stores have exceptions of their own
        raise ConfigError(f"config file {path} cannot be read: {error}") from None


def _find(path: Path) -> Path:
    """The file itself, or that of its name which was installed with the package, as configs/digits.yaml is."""
    if path.exists() or path.parent != Path("configs"):
        return path
    return next((file for file in _installed() if file.name == path.name), path)


def _installed() -> list[Path]:
    """The configurations that came with the package: beside it (pip install --target) or under the environment."""
    roots = (Path(__file__).parents[2], Path(sys.prefix))
    return [file for root in roots for file in sorted((root / "share/ldcvae/configs").glob("*.yaml"))]


def _near_file(path: Path) -> str:
    """A file that was meant, perhaps."""
    folder = path.parent if path.parent != Path() else Path("configs")
    known = {file.stem: folder / file.name for file in folder.glob("*.yaml")}
    if folder == Path("configs"):
        known = {file.stem: folder / file.name for file in _installed()} | known
    near = difflib.get_close_matches(path.stem, known, n=1)
    return f"; did you mean {known[near[0]]}?" if near else ""


class _Loader(yaml.SafeLoader):
    """Safe YAML in which 1e-3 is a number, a date is a text, keys are texts, and none stands twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """A mapping, unless a key stands twice in it."""
        # Not <<: what is merged may stand there too, and yields.
        keys = [self.construct_object(key, deep=True) for key, _ in node.value if not key.tag.endswith(":merge")]
        for index, key in enumerate(keys):
            if not isinstance(key, str):
                reason = f"a key must be text, and YAML reads this one as {key!r}: put it in quotes"
                raise yaml.constructor.ConstructorError(None, None, reason, node.start_mark)
            if key in keys[:index]:
                raise yaml.constructor.ConstructorError(None, None, f"{key} stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if not tag.endswith((":timestamp", ":float"))]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    # With a point, or an exponent, or both: 08 is a text, as for the integers, which are octal with a 0 before them.
    re.compile(
        r"[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)?$|[-+]?\d[\d_]*[eE][-+]?\d+$"
        r"|[-+]?\.(inf|Inf|INF)$|\.(nan|NaN|NAN)$"
    ),
    list("-+0123456789."),
)


def _assign(content: dict[str, Any], key: str, value: Any) -> None:
    """Set a dotted key; a mapping is merged into one that is there, however deep."""
    section: Any = content
    *sections, last = key.split(".")
    for name in sections:
        if section.get(name) is None:  # as it is below a heading without keys
            section[name] = {}
        section = section[name]
        if not isinstance(section, dict):
            raise ConfigError(f"override {key}: {name} holds {section!r}, which has no keys")
    _merge(section, last, value)


def _merge(section: dict[Any, Any], key: Any, value: Any) -> None:
    if isinstance(value, dict) and isinstance(section.get(key), dict):
        for name, item in value.items():
            _merge(section[key], name, item)
    else:
        section[key] = value


def parse_config(content: dict[str, Any], checks: Sequence[Check] = ()) -> Config:
    """Validate a nested dictionary.

    Args:
        content: keys and values.
        checks: of the configuration as a whole; none for one that was checked before, in another process or as the
            base of a search, whose trials have no use for all of it.

    Raises:
        ConfigError: as `load_config`.
    """
    # Resolved, it would write secrets into the run's config; unresolved, a folder would be called that.
    try:
        found = dict.fromkeys(_interpolations(content), "${…} is not resolved here; write the value itself")
    except RecursionError:
        raise ConfigError("the configuration holds itself, by a YAML alias within what it names") from None
    wrong = {key.partition(".")[0] for key in found}
    try:
        config = Config.model_validate(content)
    except ValidationError as error:
        for item in error.errors():  # one for each member of a union
            key, _, message = _explain(item).partition(": ")
            found[key] = f"{found[key]}; or {message}" if key in found else message
        wrong |= {str(item["loc"][0]) for item in error.errors()}
        config = Config.model_validate({name: value for name, value in content.items() if name not in wrong})
    mistakes = [f"{key}: {message}" for key, message in found.items()]
    for check in checks:
        if wrong.isdisjoint(check.reads):  # else it would judge defaults that stand for what is wrong
            mistakes += check.mistakes(config)
    if not mistakes:
        return config
    plural = "mistake" if len(mistakes) == 1 else "mistakes"
    raise ConfigError("\n  ".join([f"{len(mistakes)} {plural} in the configuration:", *mistakes]))


def _interpolations(content: Any, key: str = "") -> Iterator[str]:
    """Dotted keys of values that hold ${…}, as other programs' configurations do."""
    if isinstance(content, dict):
        for name, value in content.items():
            yield from _interpolations(value, f"{key}.{name}" if key else str(name))
    elif isinstance(content, list):
        for value in content:
            yield from _interpolations(value, key)
    elif isinstance(content, str) and "${" in content:
        yield key


def nearest_key(key: str, known: Sequence[str], sections: Sequence[str] = ()) -> str:
    """What to tell a user who wrote an unknown key.

    Example:
        >>> nearest_key("train.epoch", ["train.epochs", "train.ema"])
        'did you mean train.epochs?'
    """
    # A section is no answer to a key within it.
    near = difflib.get_close_matches(key, [*known, *(sections if "." not in key else ())], n=1, cutoff=0.6)
    section, _, last = key.rpartition(".")
    if not near:  # the right name in the wrong section
        near = [name for name in known if name.rpartition(".")[2] == last][:1]
    here = [name for name in known if section and name.rpartition(".")[0] == section]
    # At the top: sections as well as plain keys.
    return f"did you mean {near[0]}?" if near else f"known here: {', '.join(here or sections or known)}"


def override(config: Config, values: Mapping[str, Any]) -> Config:
    """The configuration with some keys changed, validated as a whole like typed overrides.

    Args:
        config: to start from; stays as it is.
        values: dotted key -> value.

    Raises:
        ConfigError: as `load_config`.

    Example:
        >>> override(Config(), {"sampler.particles": 64}).sampler.particles
        64
    """
    content = config.model_dump(mode="json")
    for key, value in values.items():
        section = content
        *sections, last = key.split(".")
        for name in sections:
            section = section.setdefault(name, {}) if isinstance(section, dict) else {}
        section[last] = value  # in place of what is there, a mapping too
    return parse_config(content)


def _explain(item: Any) -> str:
    location = [str(part) for part in item["loc"]]
    key = ".".join(location)
    if item["type"] == "extra_forbidden":
        known = [name for name, *_ in describe_keys()]
        sections = sorted({name.partition(".")[0] for name in known})
        return f"{key}: unknown key; {nearest_key(key, known, sections)}"
    message = item["msg"].removeprefix("Value error, ")
    if item["type"] == "value_error" and isinstance(item["input"], dict) and not message.startswith("must "):
        return f"{key}.{message}"  # a section's own check names its field
    # A union member's tag (literal['auto'], bool) is pydantic's, not part of the key.
    key = ".".join(part for part in location if "[" not in part and part not in ("bool", "int", "float"))
    if item["type"] in ("list_type", "tuple_type") and isinstance(item["input"], str | int | float):
        message = f"must be a list, e.g. [{item['input']}]"
    elif item["type"] in ("model_type", "model_attributes_type"):
        first = next((name for name, *_ in describe_keys() if name.startswith(f"{key}.")), key)
        message = f"is a section, whose keys are given one by one, e.g. {first}"
    return f"{key}: {message}, got {item['input']!r}"


def dump_yaml(config: Config) -> str:
    """The resolved configuration as YAML that `load_config` reads back to an equal one.

    Example:
        >>> dump_yaml(Config()).splitlines()[0]
        'name: digits'
    """
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, width=100)


def describe_keys(model: type[BaseModel] = Config, prefix: str = "") -> Iterator[tuple[str, str, str, str]]:
    """Every key as (dotted name, type, default, description), for `--help` and error messages.

    Example:
        >>> next(describe_keys())
        ('name', 'str', 'digits', 'folder of the run')
    """
    for name, field in model.model_fields.items():
        annotation = field.annotation
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            yield from describe_keys(annotation, f"{prefix}{name}.")
        else:
            value = list(field.default) if isinstance(field.default, tuple) else field.default  # as YAML writes it
            default = "null" if value is None else str(value)
            # Fields that a section inherits from a dataclass of settings have a Doc, which pydantic does not read.
            documented = "".join(rule.documentation for rule in field.metadata if isinstance(rule, Doc))
            yield f"{prefix}{name}", _type_name(annotation, field.metadata), default, field.description or documented


def _type_name(annotation: Any, rules: Sequence[Any] = ()) -> str:
    origin, arguments = get_origin(annotation), get_args(annotation)
    if names := [rule.names for rule in rules if isinstance(rule, OneOf)]:
        return "|".join(names[0])
    if origin is Annotated:
        return _type_name(arguments[0], arguments[1:])
    if origin is Literal:
        return "|".join(str(value) for value in arguments)
    if origin is dict:
        return f"{{{_type_name(arguments[0])}: {_type_name(arguments[1])}, ...}}"
    if origin in (list, tuple):
        return f"[{_type_name(arguments[0])}, ...]"
    if arguments:
        return "|".join("null" if part is type(None) else _type_name(part) for part in arguments)
    return getattr(annotation, "__name__", str(annotation))


def read_keys(config: Config, keys: tuple[str, ...]) -> dict[str, object]:
    """Dotted keys of a configuration and their values, as JSON has them.

    Example:
        >>> read_keys(Config(), ("sampler.steps", "compare.euler_steps"))
        {'sampler.steps': 1250, 'compare.euler_steps': 50}
    """
    content = config.model_dump(mode="json")
    return {key: content[section][name] for key in keys for section, _, name in [key.partition(".")]}
