"""Public data sets: their archives with size and checksum, and where what is in them belongs.

Checksums and sizes are those that torchvision, TensorFlow Datasets and, for Tiny ImageNet, whose
authors publish none, many loaders compare with. Folders are below the one that data sets lie in, as
the recipes name it. Tested in tests/pipeline/commands/test_get_data.py.
"""

from __future__ import annotations

from dataclasses import dataclass

GB = 1_000_000_000
VOC = "https://thor.robots.ox.ac.uk/pascal/VOC"
COCO = "http://images.cocodataset.org"
CIFAR = "https://www.cs.toronto.edu/~kriz"
VOC_FILES = ("Annotations", "JPEGImages", "ImageSets/Main/trainval.txt")


@dataclass(frozen=True)
class Archive:
    """A file as it is published; `checksum` is `algorithm:hex`."""

    url: str
    num_bytes: int
    checksum: str

    @property
    def name(self) -> str:
        """Return the file's name, by which mirrors have it too."""
        return self.url.rpartition("/")[2]


@dataclass(frozen=True)
class Part:
    """A folder that is there whole or not at all, and the archives that it is unpacked from.

    `inside` is its path in them, `files` are some that it must hold. `num_bytes` is what it takes
    on a disk, rounded up; archives that hold more are refused.
    """

    folder: str
    inside: str
    num_bytes: int
    archives: tuple[Archive, ...]
    files: tuple[str, ...]


SETS: dict[str, tuple[Part, ...]] = {
    "voc2007": (
        Part(
            "VOC2007",
            "VOCdevkit/VOC2007",
            GB,
            (
                Archive(
                    f"{VOC}/voc2007/VOCtrainval_06-Nov-2007.tar",
                    460_032_000,
                    "sha256:7d8cd951101b0957ddfd7a530bdc8a94f06121cfc1e511bb5937e973020c7508",
                ),
                Archive(
                    f"{VOC}/voc2007/VOCtest_06-Nov-2007.tar",
                    451_020_800,
                    "sha256:6836888e2e01dca84577a849d339fa4f73e1e4f135d312430c4856b5609b4892",
                ),
            ),
            (*VOC_FILES, "ImageSets/Main/test.txt"),
        ),
    ),
    "voc2012": (
        Part(
            "VOC2012",
            "VOCdevkit/VOC2012",
            2_100_000_000,
            (
                Archive(
                    f"{VOC}/voc2012/VOCtrainval_11-May-2012.tar",
                    1_999_639_040,
                    "sha256:e14f763270cf193d0b5f74b169f44157a4b0c6efa708f4dd0ff78ee691763bcb",
                ),
            ),
            VOC_FILES,
        ),
    ),
    "coco2017": (
        Part(
            "coco/annotations",
            "annotations",
            850_000_000,
            (
                Archive(
                    f"{COCO}/annotations/annotations_trainval2017.zip",
                    252_907_541,
                    "sha256:113a836d90195ee1f884e704da6304dfaaecff1f023f49b6ca93c4aaae470268",
                ),
            ),
            ("instances_train2017.json", "instances_val2017.json"),
        ),
        Part(
            "coco/val2017",
            "val2017",
            850_000_000,
            (
                Archive(
                    f"{COCO}/zips/val2017.zip",
                    815_585_330,
                    "sha256:4f7e2ccb2866ec5041993c9cf2a952bbed69647b115d0f74da7ce8f4bef82f05",
                ),
            ),
            (),
        ),
        Part(
            "coco/train2017",
            "train2017",
            20 * GB,
            (
                Archive(
                    f"{COCO}/zips/train2017.zip",
                    19_336_861_798,
                    "sha256:69a8bb58ea5f8f99d24875f21416de2e9ded3178e903f1f7603e283b9e06d929",
                ),
            ),
            (),
        ),
    ),
    "cifar10": (
        Part(
            "cifar-10-batches-py",
            "cifar-10-batches-py",
            190_000_000,
            (
                Archive(
                    f"{CIFAR}/cifar-10-python.tar.gz",
                    170_498_071,
                    "md5:c58f30108f718f92721af3b95e74349a",
                ),
            ),
            (*(f"data_batch_{number}" for number in range(1, 6)), "test_batch"),
        ),
    ),
    "cifar100": (
        Part(
            "cifar-100-python",
            "cifar-100-python",
            190_000_000,
            (
                Archive(
                    f"{CIFAR}/cifar-100-python.tar.gz",
                    169_001_437,
                    "md5:eb9058c3a382ffc7106e4002c42a8d85",
                ),
            ),
            ("train", "test"),
        ),
    ),
    "stl10": (
        Part(
            "stl10_binary",
            "stl10_binary",
            3_150_000_000,
            (
                Archive(
                    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz",
                    2_640_397_119,
                    "sha256:f31fd99273a1acb8609c8db427cebb1de3f71de77758cdc0e22956e1289b9866",
                ),
            ),
            ("train_X.bin", "train_y.bin", "test_X.bin", "test_y.bin", "unlabeled_X.bin"),
        ),
    ),
    "tiny-imagenet": (
        Part(
            "tiny-imagenet-200",
            "tiny-imagenet-200",
            550_000_000,
            (
                Archive(
                    "http://cs231n.stanford.edu/tiny-imagenet-200.zip",
                    248_100_043,
                    "md5:90528d7ca1a48142e341f4ef8d21d0de",
                ),
            ),
            ("train", "val/images", "val/val_annotations.txt"),
        ),
    ),
}
