"""Registries of variants: a network, a direction, a generator is one frozen record, in one place.

Schema, labels, pages and cache keys read the records, so that a variant is added by registering one. Records name
their code by `lazy` references: looking at what there is (`--help`, a check of a configuration) imports no torch.
"""

import difflib
import importlib
from collections.abc import Callable, Iterator, Mapping
from typing import Any, Generic, Protocol, TypeVar

__all__ = ["OneOf", "Registry", "UnknownVariantError", "lazy"]


class _Named(Protocol):
    @property
    def name(self) -> str: ...


Record = TypeVar("Record", bound=_Named)


class UnknownVariantError(ValueError):
    """A name that no record has; the message lists those that are known."""


class Registry(Mapping[str, Record], Generic[Record]):
    """Records by name, in the order in which they were registered.

    Args:
        kind: what a record is, for error messages.

    Example:
        >>> from typing import NamedTuple
        >>> class Fruit(NamedTuple):
        ...     name: str
        >>> fruits = Registry("fruit")
        >>> _ = fruits.register(Fruit("apple"))
        >>> fruits.find("aple")
        Traceback (most recent call last):
        ldcvae.registry.UnknownVariantError: unknown fruit 'aple': did you mean apple?
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._records: dict[str, Record] = {}

    def register(self, record: Record) -> Record:
        """Add a record; returns it.

        Raises:
            ValueError: if its name is taken by another record, or is no lower-case identifier.
        """
        name = record.name
        if not name.isidentifier() or name != name.lower():
            raise ValueError(f"{self.kind} {name!r}: a name is a lower-case identifier, as it becomes a key")
        if self._records.get(name, record) != record:
            raise ValueError(f"{self.kind} {name!r} is registered already; choose another name")
        self._records[name] = record
        return record

    def find(self, name: str) -> Record:
        """The record of a name.

        Raises:
            UnknownVariantError: naming the nearest known name, or all.
        """
        if name in self._records:
            return self._records[name]
        near = difflib.get_close_matches(str(name), self._records, n=1, cutoff=0.6)
        known = f"did you mean {near[0]}?" if near else f"choose {', '.join(self._records)}"
        raise UnknownVariantError(f"unknown {self.kind} {name!r}: {known}")

    def __getitem__(self, name: str) -> Record:
        return self._records[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._records)

    def __len__(self) -> int:
        return len(self._records)


class OneOf:
    """Marks a setting whose value is the name of a registered variant, by `Annotated[str, OneOf(registry)]`.

    Args:
        registry: of the variants, looked up when a value is checked: plugins register later.
        more: names that are allowed beside them.
    """

    def __init__(self, registry: Registry[Any], *more: str):
        self.registry, self.more = registry, more

    @property
    def names(self) -> list[str]:
        """All that is allowed now."""
        return [*self.more, *self.registry]

    def check(self, value: Any) -> None:
        """Nothing for an allowed name.

        Raises:
            ValueError: naming what is allowed.
        """
        if value not in self.names:
            near = difflib.get_close_matches(str(value), self.names, n=1, cutoff=0.6)
            hint = f"; did you mean {near[0]}?" if near else ""
            raise ValueError(f"must be one of {', '.join(self.names)}{hint}")


class lazy:  # reads as a function
    """A function that is imported when it is first called.

    Args:
        target: `module:name`.

    Example:
        >>> lazy("math:hypot")(3.0, 4.0)
        5.0
    """

    def __init__(self, target: str):
        self.target = target
        self._found: Callable[..., Any] | None = None

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        """What the function returns."""
        if self._found is None:
            module, _, name = self.target.partition(":")
            self._found = getattr(importlib.import_module(module), name)
        return self._found(*arguments, **named)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, lazy) and other.target == self.target

    def __hash__(self) -> int:
        return hash(self.target)

    def __reduce__(self) -> tuple[type, tuple[str]]:
        return lazy, (self.target,)
