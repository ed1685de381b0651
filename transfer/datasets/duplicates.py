"""Images that a set holds twice, and those that are both trained on and measured on."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from transfer.datasets.findings import Finding, Findings, ImageFile, few, share_of
from transfer.files import sha256_of

TAIL = 4096  # bytes


class Entry(NamedTuple):
    """An image file, and whether it is of the second of two sets."""

    is_second: bool
    file: ImageFile


Group = list[Entry]
Copy = tuple[ImageFile, ImageFile, bool]  # an image, the one it repeats, whether they are one file


def repeated(files: Sequence[ImageFile]) -> list[Copy]:
    """Return the images of a set that repeat one before them."""
    groups = _alike([Entry(False, file) for file in files], lambda group: len(group) > 1)
    return [(entry.file, group[0].file, is_one) for group, is_one in groups for entry in group[1:]]


def common(first: Iterable[ImageFile], second: Iterable[ImageFile]) -> list[Copy]:
    """Return the images of the second set that the first holds too."""

    def of_both(group: Group) -> bool:
        return not group[0].is_second and group[-1].is_second

    entries = [Entry(False, file) for file in first] + [Entry(True, file) for file in second]
    return [
        (entry.file, group[0].file, is_one)
        for group, is_one in _alike(entries, of_both)
        for entry in group
        if entry.is_second
    ]


def _alike(entries: list[Entry], is_asked: Callable[[Group], bool]) -> Iterator[tuple[Group, bool]]:
    """Yield the groups asked for of one file (True), and those of files of one content (False).

    Device and inode are those of the resolved path. They and the size cost nothing: opening the
    images has asked for them. The last 4 kB are read of files in such groups of one size: of
    118,000 images with sizes as COCO's some 55,000 among themselves, and 6,000 against 5,000 others
    (1.3 and 0.4 s of a processor). Whole files are read only where these agree too.
    """
    files = list(_split([entries], lambda entry: entry.file[1:3]))
    yield from ((group, True) for group in files if is_asked(group))
    groups: Iterable[Group] = [[group[0] for group in files]]
    keys: tuple[Callable[[Entry], Hashable], ...] = (
        lambda entry: entry.file.size,
        lambda entry: _digest(entry.file, TAIL),
        lambda entry: _digest(entry.file, entry.file.size),
    )
    for key in keys:
        groups = [group for group in _split(groups, key) if is_asked(group)]
    yield from ((group, False) for group in groups)


def _split(groups: Iterable[Group], key: Callable[[Entry], Hashable]) -> Iterator[Group]:
    """Yield the groups, each split by a key, in order."""
    for group in groups:
        parts: defaultdict[Hashable, Group] = defaultdict(list)
        for entry in group:
            parts[key(entry)].append(entry)
        yield from parts.values()


def _digest(file: ImageFile, num_bytes: int) -> Hashable:
    """Return the digest of a file's last bytes; of one that cannot be read, what no other has."""
    try:
        return sha256_of(file.path, min(num_bytes, file.size))
    except OSError:
        return file.path


def repeated_findings(findings: Findings) -> Iterator[Finding]:
    """Yield that a set holds images twice: AP counts them twice, training sees them twice."""
    copies = repeated(findings.files)
    if not copies:
        return
    share = share_of(len(copies), findings.num_images, "image", "is", "are")
    line = f"{findings.place}: {share} in it twice ({_named(copies)})"
    if not findings.needs.evaluated:
        yield "images twice in training", f"{line}; each is trained on as often"
    elif findings.is_published and not any(is_one for *_, is_one in copies):
        yield "copies in published sets", f"{line}; they are measured on as published"
    else:
        yield "images twice", f"{line}; AP counts each as often, keep one of each"


def common_findings(test: Findings, trained: Sequence[Findings]) -> Iterator[Finding]:
    """Yield that images of `test` are in the sets that a task trains on too."""
    copies = common((file for findings in trained for file in findings.files), test.files)
    if not copies:
        return
    sets = ", ".join(dict.fromkeys(findings.name for findings in trained))
    share = share_of(len(copies), test.num_images, "image", "is", "are")
    line = f"{test.place}: {share} trained on too, in {sets} ({_named(copies)})"
    published = all(findings.is_published for findings in (test, *trained))
    if published and not any(is_one for *_, is_one in copies):
        yield "copies in published sets", f"{line}; they are measured on as published"
    else:
        yield "images in TRAIN and TEST", f"{line}; take them out of one of the two"


def shared_findings(one: Findings, other: Findings) -> Iterator[Finding]:
    """Yield that two sets of one training have images in common, which may be on purpose."""
    if copies := common(other.files, one.files):
        share = share_of(len(copies), one.num_images, "image", "is", "are")
        line = f"{one.place}: {share} in {other.name} too ({_named(copies)})"
        yield "images in two training sets", f"{line}; each is trained on as often"


def _named(copies: Sequence[Copy]) -> str:
    """Return the first copies by name, and how many more there are."""
    relations = {True: "the same file as", False: "a copy of"}
    return few(
        [
            f"{_short(file.path)} is {relations[is_one]} {_short(other.path)}"
            if file.path != other.path
            else _short(file.path)
            for file, other, is_one in copies
        ]
    )


def _short(path: Path) -> str:
    """Return a file with the folder it is in."""
    return str(Path(*path.parts[-2:]))
