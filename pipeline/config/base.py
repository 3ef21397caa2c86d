"""What all sections of the schema are made of: types with bounds, and a section that knows its keys."""

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["Auto", "Count", "Fraction", "Positive", "Section"]

Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
# YAML reads on/off/yes/no as booleans; "auto" is what is right for the device.
Auto = bool | Literal["auto"]


class Section(BaseModel):
    """Part of a configuration: fixed keys, immutable, finite numbers."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)
