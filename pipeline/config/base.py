"""What all sections of the schema are made of: fixed keys, and types whose values are registered."""

from collections.abc import Collection
from typing import Annotated, Any, ClassVar

from pydantic import AfterValidator, BaseModel, ConfigDict, ValidationInfo, field_validator, model_validator

from ldcvae.registry import OneOf, Registry

__all__ = ["Section", "one_of"]


class Section(BaseModel):
    """Part of a configuration: fixed keys, immutable, finite numbers.

    Fields may be inherited from a dataclass of settings. Where fields are fine one by one but do not fit together, a
    method `conflict` says why, the field's name first.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    later: ClassVar[frozenset[str]] = frozenset()
    """Keys that 0.1 had not. At their defaults they mean what it did: they are left out of fingerprints then."""

    @property
    def later_unused(self) -> set[str]:
        """The keys of `later` that are at their defaults."""
        return {key for key in self.later if getattr(self, key) == type(self).model_fields[key].default}

    def kept_under(self, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The section's part of a fingerprint, as JSON has it; without the keys of `exclude`."""
        return self.model_dump(mode="json", exclude=self.later_unused | set(exclude))

    @field_validator("*")
    @classmethod
    def _is_registered(cls, value: Any, info: ValidationInfo) -> Any:
        for rule in cls.model_fields[info.field_name or ""].metadata:
            if isinstance(rule, OneOf):
                rule.check(value)
        return value

    @model_validator(mode="after")
    def _fits_together(self) -> "Section":
        conflict = getattr(self, "conflict", None)
        if conflict is not None and (reason := conflict()):
            raise ValueError(reason)
        return self


def one_of(registry: Registry[Any], *more: str) -> Any:
    """The type of a registered name, for the items of a list or the keys of a mapping."""
    rule = OneOf(registry, *more)

    def check(value: str) -> str:
        rule.check(value)
        return value

    return Annotated[str, rule, AfterValidator(check)]
