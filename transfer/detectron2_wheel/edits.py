"""Edits of detectron2 v0.6, to run without its C++ part on today's Python, numpy and Pillow.

Data only; `wheel` applies it. File names are those of the installed package.
"""

import re
from typing import NamedTuple


class Edit(NamedTuple):
    """Replace the `places` (how many) of `file` that match `old` by `new`."""

    file: str
    old: str
    new: str
    why: str
    places: int = 1
    regex: bool = False

    def apply(self, text: str) -> str:
        """Return the edited text.

        Raises:
            ValueError: the file holds `old` more or less often than `places` says.
        """
        pattern = self.old if self.regex else re.escape(self.old)
        new = self.new if self.regex else self.new.replace("\\", r"\\")
        text, places = re.subn(pattern, new, text)
        if places != self.places:
            raise ValueError(
                f"{self.file}: {self.old!r} matches {places} times, wanted {self.places}; "
                "this is not the v0.6 the edits were written for"
            )
        return text


def _numpy_alias(file: str, count: int) -> Edit:
    why = "numpy dropped its aliases of built-in types"
    return Edit(file, r"\bnp\.(bool|int|float|str)\b", r"\1", why, count, regex=True)


def _scheduler_base(file: str, count: int) -> Edit:
    why = "_LRScheduler is the old name of LRScheduler, and no longer its base"
    return Edit(file, r"\b_LRScheduler\b", "LRScheduler", why, count, regex=True)


def _without_cpp(file: str) -> Edit:
    why = "the C++ part is missed when it is used, not on import"
    old = "from detectron2 import _C"
    return Edit(file, old, "from detectron2.without_cpp import _C", why)


EDITS: tuple[Edit, ...] = (
    _numpy_alias("detectron2/data/build.py", 2),
    _numpy_alias("detectron2/data/datasets/pascal_voc.py", 1),
    _numpy_alias("detectron2/evaluation/pascal_voc_evaluation.py", 2),
    _numpy_alias("detectron2/evaluation/sem_seg_evaluation.py", 7),
    _numpy_alias("detectron2/structures/masks.py", 3),
    _numpy_alias("detectron2/utils/video_visualizer.py", 1),
    _numpy_alias("detectron2/utils/visualizer.py", 3),
    Edit(
        "detectron2/layers/mask_ops.py",
        "np.array(mask, copy=False)",
        "np.asarray(mask)",
        "numpy 2 raises when copy=False cannot be kept",
    ),
    Edit(
        "detectron2/data/transforms/transform.py",
        "Image.LINEAR",
        "Image.BILINEAR",
        "Pillow 10 dropped this name of BILINEAR",
    ),
    Edit(
        "detectron2/data/common.py",
        "self._rng.sample(self._fallback_candidates, k=1)",
        "self._rng.sample(list(self._fallback_candidates), k=1)",
        "random.sample takes no sets since Python 3.11",
    ),
    _scheduler_base("detectron2/engine/hooks.py", 2),
    _scheduler_base("detectron2/solver/build.py", 1),
    _scheduler_base("detectron2/solver/lr_scheduler.py", 4),
    Edit(
        "detectron2/modeling/anchor_generator.py",
        "torch.meshgrid(shifts_y, shifts_x)",
        'torch.meshgrid(shifts_y, shifts_x, indexing="ij")',
        "torch warns when the (same) default is not named",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        "import pkg_resources\n",
        "from importlib.resources import files\n",
        "setuptools drops pkg_resources",
    ),
    Edit(
        "detectron2/model_zoo/model_zoo.py",
        "pkg_resources.resource_filename(\n"
        '        "detectron2.model_zoo", os.path.join("configs", config_path)\n'
        "    )",
        'str(files("detectron2.model_zoo").joinpath("configs", config_path))',
        "setuptools drops pkg_resources",
    ),
    Edit(
        "detectron2/export/__init__.py",
        "from .api import *\n",
        "try:\n    from .api import *\nexcept ImportError:  # caffe2 is gone\n    pass\n",
        "the export to caffe2 needs caffe2, which torch dropped",
    ),
    _without_cpp("detectron2/evaluation/fast_eval_api.py"),
    _without_cpp("detectron2/layers/deform_conv.py"),
    _without_cpp("detectron2/layers/roi_align_rotated.py"),
    _without_cpp("detectron2/layers/rotated_boxes.py"),
    Edit(
        "detectron2/layers/nms.py",
        "return torch.ops.detectron2.nms_rotated(boxes, scores, iou_threshold)",
        "from detectron2.without_cpp import _C\n\n"
        "    return _C.nms_rotated(boxes, scores, iou_threshold)",
        "the C++ part is missed when it is used, not on import",
    ),
)

WITHOUT_CPP = '''"""Stands in for detectron2._C, which this build of detectron2 does not have."""


class _Missing:
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        raise NotImplementedError(
            f"{name} is in the C++ part of detectron2, which this pure-Python build leaves out; "
            "install a compiled detectron2 (conda-forge, or pip from its git repository), or do "
            "without rotated boxes, deformable convolution on CUDA and the fast COCO evaluator "
            "(COCOEvaluator(..., use_fast_impl=False))"
        )


_C = _Missing()
'''

ADDED: dict[str, str] = {"detectron2/without_cpp.py": WITHOUT_CPP}

# Packages that an import or a training run of Faster/Mask R-CNN really reaches, with the lowest
# versions that these edits allow.
REQUIRES: dict[str, str] = {
    "torch": "2.0",
    "torchvision": "0.15",
    "numpy": "1.24",
    "pillow": "9.1",
    "pycocotools": "2.0.2",
    "fvcore": "0.1.5",
    "iopath": "0.1.7",
    "yacs": "0.1.8",
    "omegaconf": "2.1",
    "cloudpickle": "1.2",
    "tabulate": "0.8",
    "termcolor": "1.1",
    "pyyaml": "5.1",
    "tensorboard": "2.5",
}
# extra -> packages that only the part of that name imports
EXTRAS: dict[str, tuple[str, ...]] = {
    "lazyconfig": ("hydra-core>=1.1",),
    "visualizer": ("matplotlib>=3.4", "opencv-python-headless>=4.5"),
}
