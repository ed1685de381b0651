"""Settings of the stage `convert`. Torch-free.

Tested in tests/transfer/test_convert.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import Field, ValidationError, model_validator

from transfer.config.data import Section

IF_GIVEN: dict[str, Any] = {"identity": "if given"}


class StatedInput(Section):
    """How a checkpoint's network was fed, as its user states it, over what its family says.

    `mean` and `std` are of pixels from 0 to 255, one a channel in the `order`, as detectron2's
    MODEL.PIXEL_MEAN and PIXEL_STD. `stride_in_1x1` says where a bottleneck halves its map: in the
    first 1x1 convolution as in Caffe2's networks, or (False) in the 3x3 as in torchvision's.
    """

    order: Literal["RGB", "BGR"] | None = Field(default=None, json_schema_extra=IF_GIVEN)
    """of the colour channels"""
    mean: tuple[float, float, float] | None = Field(default=None, json_schema_extra=IF_GIVEN)
    """of pixels from 0 to 255, one a channel in this order"""
    std: tuple[float, float, float] | None = Field(default=None, json_schema_extra=IF_GIVEN)
    """of pixels from 0 to 255, one a channel in this order"""
    stride_in_1x1: bool | None = Field(default=None, strict=True, json_schema_extra=IF_GIVEN)
    """whether a bottleneck halves its map in the first 1x1 convolution (Caffe2's networks) and not
    in the 3x3 (torchvision's)"""

    @model_validator(mode="after")
    def _of_pixels(self) -> Self:
        if not self.model_dump(exclude_none=True):
            raise ValueError("states nothing; give order, mean, std or stride_in_1x1")
        if self.std is not None and min(self.std) <= 0:
            raise ValueError(f"std is {list(self.std)}, wanted three numbers above 0")
        of_unit = self.mean is not None and any(self.mean) and max(map(abs, self.mean)) <= 1
        if of_unit or (self.std is not None and max(self.std) < 1):
            raise ValueError(
                "mean and std look like those of pixels from 0 to 1; wanted those of pixels from "
                "0 to 255, 255 times as large"
            )
        return self


class ConvertConfig(Section):
    """How a checkpoint is read; what is left out is recognised from its content."""

    format: str | None = None
    """the checkpoint's family; recognised by its content unless given"""
    encoder: str | None = None
    """the encoder, or the prefix before its names, where the file holds several; the family's
    unless given"""
    input: StatedInput | None = Field(default=None, json_schema_extra=IF_GIVEN)
    """how the network was fed; as file and family say unless given"""


def stated_input(
    order: str | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    stride_in_1x1: bool | None,
) -> StatedInput | None:
    """Return how a network was fed as the command line states it, None where it states nothing.

    Raises:
        ValueError: the numbers cannot be meant.
    """
    values = {"order": order, "mean": mean, "std": std, "stride_in_1x1": stride_in_1x1}
    given = {key: value for key, value in values.items() if value is not None}
    try:
        return StatedInput.model_validate(given) if given else None
    except ValidationError as error:
        faults = (
            ": ".join(filter(None, (".".join(map(str, fault["loc"])),
                                    str(fault["msg"]).removeprefix("Value error, "))))
            for fault in error.errors()
        )  # fmt: skip
        raise ValueError("; ".join(faults)) from None


def check_places(source: Path, target: Path) -> None:
    """Raise ValueError where weights cannot be written to `target`, or would be over `source`."""
    if target.suffix != ".pkl":
        raise ValueError(f"{target}: wanted a name ending in .pkl; detectron2 reads by that name")
    for written in (target, target.with_suffix(".json")):
        if written.is_dir() or (source.exists() and written.exists() and source.samefile(written)):
            raise ValueError(f"{written}: is a folder or INPUT itself, wanted a file to write")
    for part in target.parents:
        if part.exists() and not part.is_dir():
            raise ValueError(f"{part}: is a file, wanted a folder to write OUTPUT into")
