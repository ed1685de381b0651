"""Checks of image files: there, readable, of the annotated size, upright, in one set and once."""

from __future__ import annotations

import os
import stat
import warnings
from collections import defaultdict
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import chain, islice
from pathlib import Path, PurePosixPath
from typing import NamedTuple

from PIL import Image

from transfer.config.data import IMAGE_SUFFIXES
from transfer.datasets.findings import ARCHIVES, Finding, Findings, ImageFile, ImageJob
from transfer.files import few, near_path, number_of, sha256_of, share_of

FORMATS = ("JPEG", "PNG", "BMP", "GIF", "TIFF", "WEBP", "PPM", "JPEG2000")
ORIENTATION, SIDEWAYS = 0x0112, (5, 6, 7, 8)  # of EXIF
TURNS = {  # what detectron2 does to an image before it looks at boxes and masks
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "mirrored along its diagonal",
    6: "turned by 90 degrees clockwise",
    7: "mirrored along its other diagonal",
    8: "turned by 90 degrees counterclockwise",
}
FRAME = "so boxes and masks must be in the turned frame"
OTHER_SIZE = "images of another size"
MAX_WALKED = 500_000  # files that are looked through for missing images
BATCH = 64
TAIL = 4096  # bytes


class OpenedImage(NamedTuple):
    """An image file as it was opened; `status` is None where there is none."""

    status: os.stat_result | None
    is_decoded: bool
    orientation: int | None  # of its EXIF tag
    findings: list[Finding]


def check_images(findings: Findings, *, decode: bool) -> Iterator[Finding]:
    """Open every image, and decode it if asked to; in as many threads as there are cores.

    Pillow decodes outside the interpreter's lock, so threads work side by side. What was decoded is
    counted, and the status of the files kept, in `findings`.
    """
    jobs = findings.jobs

    def opened(start: int) -> list[OpenedImage]:
        return [opened_image(job, decode=decode) for job in jobs[start : start + BATCH]]

    Image.init()  # before the threads: it registers what FORMATS names
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    missing: list[ImageJob] = []
    turned: dict[int, list[str]] = {}
    with warnings.catch_warnings(), ThreadPoolExecutor(cores) as threads:
        warnings.simplefilter("ignore")  # of large images and odd EXIF blocks
        images = chain.from_iterable(threads.map(opened, range(0, len(jobs), BATCH)))
        for job, image in zip(jobs, images, strict=True):
            yield from image.findings
            if any(kind == OTHER_SIZE for kind, _ in image.findings):
                findings.other_size.add(job.path)
            findings.num_decoded += image.is_decoded
            if image.orientation in TURNS:
                turned.setdefault(image.orientation, []).append(job.path.name)
            if image.status is not None:
                of_file = image.status.st_dev, image.status.st_ino, image.status.st_size
                findings.files.append(ImageFile(job.path, *of_file))
            elif not image.findings:
                missing.append(job)
    if missing:
        yield "missing images", missing_line(missing, findings)
    if turned:
        num_turned = sum(map(len, turned.values()))
        share = share_of(num_turned, len(jobs), "image", "carries", "carry")
        kinds = [f"{len(turned[key]):,} of orientation {key}, {TURNS[key]} ({few(turned[key], 1)})"
                 for key in sorted(turned)]  # fmt: skip
        line = f"{share} an EXIF orientation tag, by which detectron2 turns: {'; '.join(kinds)}"
        yield "orientation tags", f"{findings.place}: {line}, {FRAME}"
    yield from _passed_over(findings)


def opened_image(job: ImageJob, *, decode: bool) -> OpenedImage:
    """Return how an image differs from what its annotation says of it."""
    path, annotation = job.path, job.annotation
    findings: list[Finding] = []
    status, is_decoded, orientation = None, False, None
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            line = f"{path}: not a file; {annotation} points at it"
            return OpenedImage(status, False, None, [("unreadable images", line)])
        with Image.open(path, formats=FORMATS) as image:
            with suppress(Exception):  # as detectron2: a broken block turns nothing
                orientation = image.getexif().get(ORIENTATION)
            findings += _header_findings(job, image, orientation)
            if decode:
                image.load()
                is_decoded = True
    except (FileNotFoundError, NotADirectoryError):
        return OpenedImage(None, False, None, [])
    except Exception as error:  # noqa: BLE001  (decoders trip over damage in many ways)
        line = f"{path}: not a readable image ({str(error) or type(error).__name__})"
        line += f"; {annotation} points at it"
        if path.name.startswith("."):
            line += "; a system's files begin with a dot: take it out"
        findings.append(("unreadable images", line))
    return OpenedImage(status, is_decoded, orientation, findings)


def _passed_over(findings: Findings) -> Iterator[Finding]:
    """Yield how many files beside the images are none: hidden, or without an image's suffix."""
    listed = {str(job.path) for job in findings.jobs} | {str(findings.place)}
    others = [
        os.path.relpath(entry.path, findings.image_root)
        for folder in sorted({job.path.parent for job in findings.jobs})
        if folder.is_dir()
        for entry in os.scandir(folder)
        if entry.path not in listed and not (entry.is_dir() and entry.name[0] != ".")
        if entry.name[0] == "." or Path(entry.name).suffix.lower() not in IMAGE_SUFFIXES
    ]
    if others:
        line = f"{number_of(len(others), 'file')} passed over ({few(sorted(others))}): hidden, or "
        line += "without the suffix of an image"
        yield "files passed over", f"{findings.image_root}: {line}"


def _header_findings(
    job: ImageJob, image: Image.Image, orientation: int | None
) -> Iterator[Finding]:
    path, size, annotation = job
    seen = image.size[::-1] if orientation in SIDEWAYS else image.size
    if seen != size:
        exif = f" as its EXIF orientation {orientation} shows it" if seen != image.size else ""
        line = f"{path}: size {seen}{exif}, but {annotation} says {size} (width, height)"
        turn = f"; it is {TURNS[orientation]}, {FRAME}" if exif and orientation else ""
        yield OTHER_SIZE, line + turn
    if image.mode.startswith(("I", "F")):
        line = f"{path}: mode {image.mode}; a detector reads 8 bits a channel, convert the image"
        yield "images of other depth", line
    frames = getattr(image, "n_frames", 1)
    if frames > 1 and image.format != "MPO":  # cameras put a preview beside the picture in an MPO
        yield "animated images", f"{path}: {frames} frames; wanted a single image"


def missing_line(missing: list[ImageJob], findings: Findings) -> str:
    """Return one line for all images that are not there, with what seems to be the reason."""
    (path, _, annotation), root = missing[0], findings.image_root
    line = f"{path}: no such image; {annotation} points at it"
    if len(missing) > 1:
        line += f" ({len(missing):,} of {len(findings.jobs):,} images are missing)"
    if not root.is_dir():
        line += f"; {root} is no folder"
        if hint := near_path(root):
            return line + hint
    names = [os.path.relpath(job.path, root) for job in missing]
    elsewhere, archives = _elsewhere(names, root), _archives(root)
    if archives and not any(place.is_relative_to(root) for place in elsewhere.values()):
        return f"{line}; {few(archives)} is there: unpack it"  # names beside are another set's
    if elsewhere:
        name, place = next(iter(elsewhere.items()))
        is_fixed = root.parent / "ImageSets" in findings.place.parents  # VOC's layout
        remedy = _remedy(name, place, root, is_fixed)
        return f"{line}; {len(elsewhere):,} exist elsewhere: {remedy}"
    others = [
        path.name
        for path in _files(root)
        if path.suffix.lower() in IMAGE_SUFFIXES and path.name[0] != "."
    ]
    return f"{line}; {root} holds {few(others)}" if others and len(missing) > 1 else line


def _elsewhere(names: list[str], root: Path) -> dict[str, Path]:
    """Return where files of these names' last parts lie, below `root` or else the folder above.

    The same last part is best, then one that differs in case, then another image suffix.
    """
    stems: dict[str, list[str]] = {}
    for name in names:
        stems.setdefault(_last(name).stem.casefold(), []).append(name)
    places: dict[str, tuple[bool, bool, Path]] = {}
    for base in (root, root.parent):
        walked = islice(((folder, file) for folder, _, files in os.walk(base) for file in files),
                        MAX_WALKED)  # fmt: skip
        for folder, file in walked:
            stem, dot, suffix = file.casefold().rpartition(".")
            if stem in stems and dot + suffix in IMAGE_SUFFIXES:
                for name in stems[stem]:
                    last = _last(name).name
                    rank = last != file, last.casefold() != file.casefold(), Path(folder, file)
                    places[name] = min(rank, places.get(name, rank))
        if places:
            break
    return {name: places[name][2] for name in names if name in places}


def _last(name: str) -> PurePosixPath:
    """Return the last part of a name, whichever way its separators lean."""
    return PurePosixPath(PurePosixPath(name.replace("\\", "/")).name)


def _remedy(name: str, place: Path, root: Path, is_fixed: bool) -> str:
    """Return what to change where the image `name` below `root` is at `place`."""
    fact = f"'{name}' is {place}"
    straight = PurePosixPath(name.replace("\\", "/"))
    folder = Path(*place.parts[: -len(straight.parts)])
    if is_fixed:
        return f"{fact}; move the images into {root}"
    if place == folder / straight and folder != root:
        return f"{fact}; set images: {folder}"
    if place.is_relative_to(root):
        return f"{fact}; write file_name as '{place.relative_to(root)}'"
    return f"{fact}; set images: {place.parent} and write file_name as '{place.name}'"


def _archives(root: Path) -> list[str]:
    """Return archives in the folder of images, and those of its name beside it."""
    inside = [path for path in _files(root) if path.name.lower().endswith(ARCHIVES)]
    beside = [
        path
        for path in _files(root.parent)
        if path.name.lower().endswith(ARCHIVES) and path.name.startswith(root.name)
    ]
    return [str(path) for path in inside + beside]


def _files(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []


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
