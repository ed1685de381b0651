"""Checks of a detection set before hours are spent on it: annotations, counts, images."""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Collection, Iterator, Mapping
from typing import Literal, NamedTuple

from transfer.config.data import KNOWN_DATASETS, MAX_DETECTIONS, CocoData, VocData
from transfer.datasets.coco import check_coco
from transfer.datasets.findings import (
    Finding,
    Findings,
    Needs,
    class_findings,
    crowd_findings,
    tally_findings,
)
from transfer.datasets.images import (
    check_images,
    common_findings,
    repeated_findings,
    shared_findings,
)
from transfer.datasets.voc import check_voc
from transfer.files import number_of

logger = logging.getLogger(__name__)
Decode = Literal["auto", "all", "none"]
DECODE_LIMIT = 2_000

# Images and objects. VOC's are those of its own statistics, without the difficult ones; COCO's are
# the entries of its annotation files, crowds included (cocodataset/cocoapi, issue 117).
KNOWN_COUNTS = {
    "voc_2007_trainval": (5_011, 12_608),
    "voc_2007_train": (2_501, 6_301),
    "voc_2007_val": (2_510, 6_307),
    "voc_2007_test": (4_952, 12_032),
    "voc_2012_trainval": (11_540, 27_450),
    "voc_2012_train": (5_717, 13_609),
    "voc_2012_val": (5_823, 13_841),
    "coco_2017_train": (118_287, 860_001),
    "coco_2017_val": (5_000, 36_781),
}


class SetReport(NamedTuple):
    """Results of a check: `faults` stop a run, `notes` name what training leaves out or clips."""

    num_images: int
    num_objects: int
    num_decoded: int
    faults: list[str]
    notes: list[str]

    def summary(self) -> str:
        """Return one line of counts and the verdict."""
        verdict = "NOT sound" if self.faults else "sound"
        return (
            f"{number_of(self.num_images, 'image')} ({self.num_decoded:,} decoded), "
            f"{number_of(self.num_objects, 'object')}: {verdict}"
        )


def check_sets(
    sets: Mapping[str, tuple[CocoData | VocData, Needs]],
    decode: Decode = "auto",
    names: Collection[str] | None = None,
) -> Iterator[tuple[str, SetReport]]:
    """Yield the report of each set: annotations, ids, boxes, masks, images, counts, copies.

    Every image is opened and its size compared; `auto` decodes them in sets of up to 2,000 images
    and in those that AP is measured on, which else are decoded first when training is over. The
    sets of a task are compared with one another. At most ten lines of a kind are kept, and one that
    says how many more there are.

    With `names` only their reports are made; what they share with other sets is in them.
    """
    chosen = sets.keys() if names is None else dict.fromkeys(names)
    examined: dict[str, Findings] = {}

    def examine(name: str) -> Findings:
        if name not in examined:
            examined[name] = _examined(name, *sets[name], decode if name in chosen else "none")
        return examined[name]

    for name in chosen:
        findings = examine(name)
        for train in dict.fromkeys(sets[name][1].train_sets):
            trained = [examine(other) for other in dict.fromkeys(train) if other in sets]
            findings.add(common_findings(findings, trained))
            if trained and len(trained) == len(set(train)):
                findings.add(class_findings(findings, trained))
        others, tests = _partners(name, sets, chosen)
        for other in others:
            findings.add(shared_findings(findings, examine(other)))
        for test in tests:
            findings.add(common_findings(examine(test), [findings]))
        yield (
            name,
            SetReport(
                num_images=findings.num_images,
                num_objects=findings.num_objects,
                num_decoded=findings.num_decoded,
                faults=findings.report(notes=False),
                notes=findings.report(notes=True),
            ),
        )


def _partners(
    name: str, sets: Mapping[str, tuple[CocoData | VocData, Needs]], chosen: Collection[str]
) -> tuple[list[str], list[str]]:
    """Return the sets that a training set's report compares it with: of training, and tests.

    Two that both have a report are compared in the second one's, or in the test's.
    """
    others: dict[str, None] = {}
    tests: dict[str, None] = {}
    for test, (_, needs) in sets.items():
        for train in (train for train in needs.train_sets if name in train):
            before = train[: train.index(name)]
            unseen = [other for other in train if other not in chosen and other != name]
            others |= dict.fromkeys(other for other in (*before, *unseen) if other in sets)
            tests |= {} if test in chosen else {test: None}
    return list(others), list(tests)


def print_reports(
    sets: Mapping[str, tuple[CocoData | VocData, Needs]], decode: Decode, names: Collection[str]
) -> bool:
    """Print the reports of `check_sets`, faults to standard error; return whether all are sound.

    A line that several sets have, such as the parts of one set, is printed once.
    """
    printed: dict[str, str] = {}
    is_sound = True
    for name, report in check_sets(sets, decode, names):
        before = [printed[line] for line in report.faults if line in printed]
        again = f", as {before[0]}" if before else ""
        print(f"{name}: {report.summary()}{again}", flush=True)
        for line in (line for line in report.notes if line not in printed):
            print(f"{name}: note: {line}")
        for line in (line for line in report.faults if line not in printed):
            print(f"{name}: {line}", file=sys.stderr)
        printed |= {line: name for line in report.notes + report.faults if line not in printed}
        is_sound = is_sound and not report.faults
    return is_sound


def task_faults(sets: Mapping[str, tuple[CocoData | VocData, Needs]]) -> list[str]:
    """Return the faults of the sets of a task, one a line; their notes are logged."""
    faults: list[str] = []
    for _, report in check_sets(sets):
        for line in report.notes:
            logger.warning("%s", line)
        faults += report.faults
    return faults


def _examined(name: str, data: CocoData | VocData, needs: Needs, decode: Decode) -> Findings:
    """Return the findings of one set by itself."""
    whole = whole_of(name)
    named = name, whole in KNOWN_COUNTS
    findings = Findings(needs, data.index_file, data.image_root, *named)
    if isinstance(data, CocoData):
        findings.add(check_coco(data, findings))
        max_counted: float = MAX_DETECTIONS
    else:
        findings.add(check_voc(data, findings))
        max_counted = math.inf
    if whole in KNOWN_COUNTS and findings.num_images:
        findings.add(_count_findings(whole, findings))
    is_auto = needs.evaluated or len(findings.jobs) <= DECODE_LIMIT
    findings.add(check_images(findings, decode=decode == "all" or (decode == "auto" and is_auto)))
    findings.add_of_size()
    findings.is_read = not findings.report(notes=False)
    if findings.is_read:
        findings.add(tally_findings(findings))
        findings.add(crowd_findings(findings, max_counted))
    findings.add(repeated_findings(findings))
    return findings


def whole_of(name: str) -> str:
    """Return the name of the set that a known part is a part of; any other name as it is."""
    data = KNOWN_DATASETS.get(name)
    if not isinstance(data, CocoData) or data.fraction is None:
        return name
    whole = data.model_copy(update={"fraction": None, "subset_seed": 0})
    return next(other for other, known in KNOWN_DATASETS.items() if known == whole)


def _count_findings(name: str, findings: Findings) -> Iterator[Finding]:
    """Yield where a set that everybody has is another; images must agree."""
    (images, objects), (num_images, num_objects) = KNOWN_COUNTS[name], findings.published
    if num_images != images:
        line = f"{findings.place}: {number_of(num_images, 'image')}, but {name} has {images:,}"
        yield "image counts", f"{line}; download it again, or name a set of your own anew"
    elif num_objects != objects:
        line = (
            f"{number_of(num_objects, 'object')} to count, but {name} as published has {objects:,}"
        )
        yield "object counts", f"{findings.place}: {line}; AP will not compare with others'"
