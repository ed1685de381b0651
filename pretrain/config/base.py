"""The frozen base of config sections, and types and marks of fields. Imports no torch.

Fields marked with `left_out(why)` cannot change the result and stay out of a run's signature; those
marked with `IDENTITY_IF_GIVEN` came later and are part of it only where they differ from their
default.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator

IDENTITY_IF_GIVEN: dict[str, Any] = {"identity": "if given"}
Fraction = Annotated[float, Field(ge=0, le=1)]
NonNegative = Annotated[float, Field(ge=0)]
Range = tuple[NonNegative, NonNegative]
Side = Annotated[int, Field(ge=1, le=8192)]
Architecture = Literal["resnet18", "resnet34", "resnet50", "resnet101"]
Float32 = Literal["float32", "tf32"]


def left_out(why: str) -> dict[str, Any]:
    """Return the mark of a field that is no part of a stage's identity, with the reason."""
    return {"identity": False, "why": why}


class Section(BaseModel):
    """A frozen part of a config that refuses unknown keys, and yes and no where a number goes."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)

    @field_validator("*", mode="before")
    @classmethod
    def _no_bool_for_a_number(cls, value: Any, info: ValidationInfo) -> Any:
        kind = cls.model_fields[str(info.field_name)].annotation
        if isinstance(value, bool) and bool not in (kind, *get_args(kind)):
            raise ValueError("wanted no true or false here")
        return value


def range_faults(name: str, limits: Range, highest: float = math.inf) -> list[str]:
    """Return what is wrong with a range to draw from, which has to lie above 0."""
    low, high = limits
    if 0 < low <= high <= highest:
        return []
    return [f"{name}: {low:g} to {high:g}, wanted two numbers above 0 in rising order"]


def identity(section: BaseModel) -> dict[str, Any]:
    """Return a section without what cannot change a result, as JSON."""
    whole = section.model_dump(mode="json")
    content: dict[str, Any] = {}

    def plain(value: Any, dumped: Any) -> Any:
        if isinstance(value, BaseModel):
            return identity(value)
        if isinstance(value, tuple):
            return [plain(*pair) for pair in zip(value, dumped, strict=True)]
        return dumped

    for name, field in type(section).model_fields.items():
        value, extra = getattr(section, name), field.json_schema_extra
        mark = extra.get("identity") if isinstance(extra, dict) else None
        if mark is not False and not (mark == "if given" and value == field.default):
            content[name] = plain(value, whole[name])
    return content
