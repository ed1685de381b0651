"""The identity of a detection set: its annotations, and its images by name and size."""

from __future__ import annotations

import hashlib

from transfer.config.data import CocoData, VocData
from transfer.datasets.files import coco_images, image_files, image_root, index_file, split_names
from transfer.files import sha256_of


def content_digest(data: CocoData | VocData) -> str:
    """Return a digest of the content of a set that the check accepts, wherever it lies.

    Images count by name and size, so that 118,000 of them cost a second and not all their bytes.
    """
    digest = hashlib.sha256(
        data.model_dump_json(exclude={"annotations", "images", "root", "identity"}).encode()
    )
    annotations, root = [index_file(data)], image_root(data)
    if isinstance(data, CocoData):
        images = [root / name for _, name in coco_images(data.annotations.read_bytes())]
    else:
        names = split_names(data)
        annotations += [data.root / "Annotations" / f"{name}.xml" for name in names]
        images = [files[0] for files in image_files(root, names).values()]
    for path in annotations:
        digest.update(f"{sha256_of(path)}\n".encode())
    for path in images:
        digest.update(f"{path.name} {path.stat().st_size}\n".encode(errors="surrogateescape"))
    return digest.hexdigest()
