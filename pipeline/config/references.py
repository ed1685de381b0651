"""Published tables that stand beside results: their schema, the built-in file, a user's own files.

A table is of one data set, one detector and one schedule; `pipeline.report.published` decides which
tasks it stands beside.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictInt, model_validator

from pipeline.config.kinds import load_config
from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import validated
from pipeline.stages.files import unknown

BUILT_IN = Path(__file__).with_name("references.yaml")
Text = Annotated[str, Field(min_length=1, max_length=200)]
Percent = Annotated[float, Field(ge=0, le=100, strict=True)]
Count = Annotated[StrictInt, Field(ge=1)]
Aps = tuple[Percent | None, Percent | None, Percent | None]  # AP50, AP, AP75
Inferred = Literal["data", "detector", "schedule", "epochs", "views", "search"]


class Part(BaseModel):
    """A frozen part of the file that refuses unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, defer_build=True)


class PublishedEntry(Part):
    """Which backbone a line is of, and who says so; `inferred` names what the source does not say.

    `source` is a key of the file's `sources`; `protocol` is said where it is not the table's.
    """

    backbone: Text
    epochs: Count | None = None
    views: Count | Literal["multi-crop"] | None = None
    source: Text
    protocol: Text | None = None
    inferred: tuple[Inferred, ...] = ()

    @property
    def label(self) -> str:
        """The backbone with its pretraining: `CW-RGP, 200 epochs, 4 views`."""
        epochs = f"{self.epochs} epochs" if self.epochs else ""
        views = f"{self.views} views" if isinstance(self.views, int) else self.views
        return ", ".join(filter(None, [self.backbone, epochs, views]))


class DetectionEntry(PublishedEntry):
    """A line of a detection table, in percent.

    `search` tells whether the fine-tuning learning rate was searched for each backbone; without it
    the source does not say.
    """

    search: StrictBool | None = None
    box: Aps
    box_std: Aps | None = None
    mask: Aps | None = None
    mask_std: Aps | None = None

    @model_validator(mode="after")
    def _spreads_have_means(self) -> Self:
        pairs = (("box", self.box, self.box_std), ("mask", self.mask, self.mask_std))
        for name, means, stds in pairs:
            if means is not None and all(value is None for value in means):
                raise ValueError(f"{name}: give at least one of AP50, AP, AP75")
            for mean, std in zip(means or (None,) * 3, stds or (), strict=False):
                if std is not None and mean is None:
                    raise ValueError(f"{name}_std: a deviation without its mean in {name}")
        return self


class ProbeEntry(PublishedEntry):
    """A line of a probe table, top-1 in percent.

    `linear` is of a classifier on features that were computed once, `augmented_linear` of one that
    was trained on random crops, `knn` of the majority of the 5 nearest by Euclidean distance.
    """

    linear: Percent | None = None
    augmented_linear: Percent | None = None
    knn: Percent | None = None

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.linear is None and self.augmented_linear is None and self.knn is None:
            raise ValueError("give at least one of linear, augmented_linear, knn")
        return self


class DetectionTable(Part):
    """Lines of one data set, one detector and one schedule; a task names it in `reference:`."""

    name: Text
    data: Text
    detector: Text
    schedule: Text
    protocol: Text
    inferred: tuple[Inferred, ...] = ()
    rows: tuple[DetectionEntry, ...]


class ProbeTable(Part):
    """Lines of one set of labelled images and one architecture."""

    data: Text
    arch: Text
    protocol: Text
    rows: tuple[ProbeEntry, ...]


class References(Part):
    """A file of published tables; in what `load_references` returns, sources are texts."""

    sources: dict[str, Text] = {}
    detection: tuple[DetectionTable, ...] = ()
    probes: tuple[ProbeTable, ...] = ()

    @property
    def names(self) -> list[str]:
        """The names a task may give in `reference:`."""
        return list(dict.fromkeys(table.name for table in self.detection))

    @model_validator(mode="after")
    def _tables_are_whole(self) -> Self:
        empty = [table.name for table in self.detection if not table.rows]
        empty += [f"{table.data}, {table.arch}" for table in self.probes if not table.rows]
        if empty:
            raise ValueError(f"rows: none in {'; '.join(empty)}")
        used = {row.source for table in self.detection for row in table.rows}
        used |= {row.source for table in self.probes for row in table.rows}
        if unlisted := sorted(used - self.sources.keys()):
            known = ", ".join(self.sources) or "none"
            raise ValueError(f"sources: not listed: {', '.join(unlisted)}; listed: {known}")
        return self


def references_of(config: PipelineConfig, where: Path) -> References:
    """Return the tables that can stand beside tasks and probes of the config in the file `where`.

    Raises:
        ValueError: one line for every fault in its files, and for every table that is not there.
    """
    references = load_references([where.parent / path for path in config.references])
    names = references.names
    faults = [
        f"{where}: tasks: {task.name}: reference: {unknown('table', task.reference, names)}"
        for task in config.tasks
        if task.reference is not None and task.reference not in names
    ]
    if faults:
        raise ValueError("\n".join(faults))
    return references


def _read(path: Path) -> References:
    return validated(References, load_config(path, "file of published rows"), str(path))


@cache
def _built_in() -> References:
    """Return the tables of the built-in file, which a plan and its report both ask for."""
    return _read(BUILT_IN)


def load_references(paths: Sequence[Path] = ()) -> References:
    """Return the built-in tables and those of the files, every row's source as its text.

    A table of a name that is there already adds its rows to it.

    Raises:
        ValueError: one line for every fault in any of the files.
    """
    detection: dict[str, DetectionTable] = {}
    probes: list[ProbeTable] = []
    faults: list[str] = []
    for path in (BUILT_IN, *paths):
        try:
            given = _built_in() if path == BUILT_IN else _read(path)
        except ValueError as error:
            faults += str(error).splitlines()
            continue
        for table in given.detection:
            before = detection.get(table.name)
            faults += [f"{path}: {fault}" for fault in _contradictions(before, table)]
            lines = tuple(
                row.model_copy(
                    update={
                        "source": given.sources[row.source],
                        "inferred": tuple(dict.fromkeys(table.inferred + row.inferred)),
                        "protocol": row.protocol or table.protocol,
                    }
                )
                for row in table.rows
            )
            lines = (*before.rows, *lines) if before else lines
            detection[table.name] = table.model_copy(update={"rows": lines})
        for probe in given.probes:
            results = tuple(
                row.model_copy(
                    update={
                        "source": given.sources[row.source],
                        "protocol": row.protocol or probe.protocol,
                    }
                )
                for row in probe.rows
            )
            probes.append(probe.model_copy(update={"rows": results}))
    if faults:
        raise ValueError("\n".join(faults))
    return References.model_construct(detection=tuple(detection.values()), probes=tuple(probes))


def _contradictions(before: DetectionTable | None, table: DetectionTable) -> list[str]:
    """Return how a table differs from the one of its name, whose rows it would join."""
    if before is None:
        return []
    return [
        f"table {table.name}: {key} is {getattr(table, key)}, wanted {getattr(before, key)} as in "
        "the table of this name; give it another name"
        for key in ("data", "detector", "schedule")
        if getattr(before, key) != getattr(table, key)
    ]
