"""The families of published checkpoints, as a table.

A row says how a family is told from the others and which of its encoders is the one to take. To
add one, add a row: `encoders` tries them from top to bottom and takes the first that fits. A family
is named only by a mark of its own: a wrong name is a wrong result in a table of methods. Rows named
`unlisted` say which encoder to take where the form is known and the origin is not. `COPIES`
says which encoder is a slow copy of which other one: every project of the survey that keeps a
momentum, target or key copy evaluates the other one. Students and averages (EMA) stay out: which of
the two is meant differs between projects.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from transfer.files import did_you_mean

IMAGENET_INPUT: dict[str, Any] = {
    "format": "RGB",
    "pixel_mean": [123.675, 116.28, 103.53],
    "pixel_std": [58.395, 57.12, 57.375],
}
UNIT_INPUT: dict[str, Any] = {
    "format": "RGB",
    "pixel_mean": [0.0, 0.0, 0.0],
    "pixel_std": [255.0, 255.0, 255.0],
}
SWAV_INPUT: dict[str, Any] = IMAGENET_INPUT | {"pixel_std": [58.14, 57.12, 57.375]}
CAFFE2_INPUT: dict[str, Any] = {
    "format": "BGR",
    "pixel_mean": [103.53, 116.28, 123.675],
    "pixel_std": [1.0, 1.0, 1.0],
}
UNIT_NOTE = "trained on pixels in [0, 1] without mean and std"
LIGHTNING = "@pytorch-lightning_version"
LIGHTLY = "projection_head.layers|online_classifier.classification_head"
UNLISTED = "unlisted"


@dataclass(frozen=True)
class Family:
    """How to recognise files of one origin.

    `roles`: names of the encoder to take, without `module.`, `_orig_mod.`, `net.`; the
    first that is there wins.
    `keys`: last keys of the dict that holds it (`""` is the top level); None is any.
    `marks`: what must be there too: `@key` at the top of the file, else the first parts of a
    tensor's name, `|` between alternatives; a leading `!` means that it must not be there. Those
    that are no keys are the `CONDITIONS` of `encoders`: `@nothing-else` no other key, `@bare` no
    prefix, `@wrapped` a prefix with DDP's `module.`, `@untrained` no batch ever counted, `@by-name`
    never (by --format only), `@own` arch and input beside the weights, ...
    `others`: further encoders that belong to the family: roles, or `@key` for any below that key.
    """

    name: str
    roles: tuple[str, ...] = ("",)
    keys: tuple[str, ...] | None = None
    marks: tuple[str, ...] = ()
    others: tuple[str, ...] = ()
    spelling: str | None = None
    input: dict[str, Any] | None = None
    note: str = ""


EMA = ("@model_ema", "@ema_model", "@state_dict_ema", "@ema_state_dict", "@ema",
       "@current_model_state")  # fmt: skip
MM_OTHERS = (
    "encoder_q.0", "online_net.0", "base_encoder.0", "encoder_k.0", "encoder_k", "target_net.0",
    "target_net", "momentum_encoder.0", "encoder_q", "online_net", "base_encoder", *EMA,
)  # fmt: skip
MM_ROLES = ("backbone", "encoder_q.0", "online_net.0", "base_encoder.0")
STATE, MODEL, FLAT = ("state_dict",), ("model",), ("",)

FAMILIES: tuple[Family, ...] = (
    Family("whitening-transfer", keys=STATE, marks=("@own",)),
    Family("caffe2", spelling="caffe2", input=CAFFE2_INPUT,
           note="Caffe2 (MSRA) weights: BGR, std absorbed into conv1, stride in the 1x1 "
           "convolution; detectron2 also reads this file as it is"),
    Family("hugging-face", ("", "resnet"), spelling="hugging-face"),
    Family("simclr-v2", ("", "resnet"), spelling="simclr-v2", input=UNIT_INPUT, note=UNIT_NOTE,
           others=EMA),
    Family("vissl", ("_feature_blocks", "base_model._feature_blocks", "trunk._feature_blocks"),
           others=("@loss", "@ema_model", "@heads", "@classy_state_dict")),
    Family("classyvision", spelling="classy", others=("@loss", "@ema_model")),
    Family("detectron2", ("backbone.bottom_up", "backbone", ""), spelling="detectron2",
           input=CAFFE2_INPUT),
    # Lightning: solo-learn, lightly, lightning-bolts
    Family("lightly", ("backbone",), None, ("student_backbone", LIGHTLY),
           ("student_backbone", *EMA),
           note="in lightly's DINO `backbone` is the teacher, which it evaluates"),
    Family(UNLISTED, ("backbone",), None, ("student_backbone",), ("student_backbone", *EMA),
           note="`backbone` beside a student is taken for the teacher, as in lightly's DINO"),
    Family("lightly", ("backbone",), None, (LIGHTLY,),
           ("key_backbone", "teacher_backbone", "backbone_momentum", "student_backbone",
            "momentum_backbone", *EMA)),
    Family("solo-learn", ("backbone",), STATE, (LIGHTNING, "momentum_projector"),
           ("momentum_backbone", *EMA)),
    Family("solo-learn", ("encoder",), STATE, (LIGHTNING, "momentum_projector"),
           ("momentum_encoder", *EMA), note="an old solo-learn file"),
    Family("lightning-bolts", ("online_network.encoder",), STATE,
           (LIGHTNING, "online_network.projector"), ("target_network.encoder", *EMA)),
    Family("lightning-bolts", ("encoder",), STATE,
           (LIGHTNING, "projection.model|non_linear_evaluator"), EMA),
    Family("lightning-bolts", ("model",), STATE, (LIGHTNING, "model.prototypes"), EMA),
    # training scripts
    Family("dino", ("backbone", ""), ("teacher",), ("@dino_loss",), ("@student",)),
    Family(UNLISTED, ("backbone", ""), ("teacher",), others=("@student",),
           note="a student and its teacher, which is the one taken"),
    Family("byol-yaox12", keys=("online_backbone",), others=("@target_backbone",)),
    Family("byol-yaox12", ("online_network.encoder",), marks=("online_network.projetion",),
           others=("target_network.encoder",)),
    Family("byol-lucidrains", ("", "online_encoder"), marks=("online_predictor",),
           others=("online_encoder", "target_encoder")),
    Family("byol-deepmind", keys=("online_params",), others=("@target_params",),
           note="haiku's weights; its stride-2 layers pad on one side only, torch's on both"),
    Family("moco-v3", ("base_encoder",), None, ("!base_encoder.0", "momentum_encoder"),
           ("momentum_encoder",)),
    Family("openselfsup", MM_ROLES, None,
           ("!@message_hub", "encoder_q.0|online_net.0|base_encoder.0"), MM_OTHERS),
    Family("openselfsup", keys=STATE, marks=("@openselfsup",)),
    Family("mmselfsup", MM_ROLES, None, ("@mmselfsup",), MM_OTHERS),
    Family("mmselfsup", keys=STATE, marks=("@mmselfsup",)),
    Family("mmselfsup", MM_ROLES, None, ("@message_hub", "encoder_k|target_net|momentum_encoder"),
           MM_OTHERS),
    Family(UNLISTED, MM_ROLES, None, ("@meta|@message_hub|@ema_state_dict",), MM_OTHERS,
           note="a file of OpenMMLab's form; its method is not in it"),
    Family("moco", ("encoder_q",), others=("encoder_k",)),
    Family("cw-rgp", ("model",), STATE, ("@wrapped", "head.0", "@arch", "!model_t", "!pred")),
    Family("w-mse", ("model",), FLAT, ("@wrapped", "head.0", "!model_t", "!pred")),
    Family("intl", ("backbone",), STATE, ("@wrapped", "projection.0", "@arch"),
           ("momentum_backbone", "momentum_projection")),
    Family("barlow-twins", ("backbone",), MODEL, ("projector.0", "bn.running_mean")),
    Family("vicreg", ("backbone",), MODEL, ("projector.0", "!bn", "@lars")),
    Family("vicreg", ("0",), None, ("1", "@linear-evaluation"), note="a linear-evaluation file"),
    Family("pixpro", ("encoder",), MODEL, ("encoder_k", "projector.bn1|projector_k.bn1"),
           ("encoder_k",)),
    Family("pycontrast", ("encoder",), MODEL, ("@contrast",), ("@model_ema",)),
    Family("pycontrast", ("encoder",), None, ("head_jig",), ("@model_ema",)),
    Family("simsiam", ("encoder",), STATE, ("encoder.fc.0", "predictor.0")),
    Family("swav", marks=("prototypes",), input=SWAV_INPUT,
           note="SwAV, DeepCluster-v2 or SeLa-v2: trained with std .228 in red"),
    Family("timm", keys=("state_dict_ema",), others=("@state_dict",),
           note="the averaged weights, which timm's own loader prefers"),
    Family("simclr-v1", keys=STATE, marks=("@nothing-else", "fc", "@bare", "@untrained"),
           input=UNIT_INPUT,
           note=UNIT_NOTE + "; if this file is no SimCLR conversion, say --format torchvision"),
    Family("timm", keys=STATE, marks=("@arch", "@args", "@version")),
    Family("pytorch-examples", keys=STATE, marks=("@arch", "@epoch"), others=EMA,
           note="of the form of PyTorch's ImageNet example, as linear evaluations of others too"),
    Family("torchvision", keys=("", "state_dict", "model", "model_state_dict", "module"),
           others=EMA),
    # forms without a trace of their origin: taken for torchvision's, or by name
    Family("barlow-twins", marks=("@by-name",)),
    Family("vicreg", marks=("@by-name",)),
    Family("dino", marks=("@by-name",)),
    Family("swav", marks=("@by-name",), input=SWAV_INPUT),
)  # fmt: skip
FORMATS = tuple(sorted({family.name for family in FAMILIES} - {UNLISTED}))
METHODS = (
    "barlow-twins",
    "byol-deepmind",
    "byol-lucidrains",
    "byol-yaox12",
    "cw-rgp",
    "dino",
    "intl",
    "moco",
    "moco-v3",
    "pixpro",
    "simclr-v1",
    "simclr-v2",
    "simsiam",
    "swav",
    "vicreg",
    "w-mse",
)  # fmt: skip  (the others are libraries and forms of files: how it was trained is not said)
SIDE_NAMES = (
    r"(fc\d*|heads?|head_\w+|classifier|classification_head|logits|linear|last_linear|proj\w*|"
    r"pred\w*|prototypes\w*|mlp|neck|queues?|queue_\w+|online_\w+|target_\w+|momentum_\w+|"
    r"criterion|loss\w*|n_averaged|steps|jigsaw\w*|bn|whiten\w*|contrast\w*|memory\w*|"
    r"value_transform\w*|student_\w+|teacher_\w+|fc1000_[wb]|conv1_b|\w+_momentum|"
    r"non_linear_evaluator|lr|weight_order|model_iter)"
)
COPIES: tuple[tuple[str, tuple[str, ...]], ...] = (
    (r"momentum_(\w+)", ("{}", "base_{}")),
    (r"(\w+)_momentum", ("{}",)),
    (r"target_(\w+)", ("{}", "online_{}")),
    (r"(\w+)_target", ("{}", "{}_online")),
    (r"teacher_(\w+)", ("{}",)),
    (r"key_(\w+)", ("{}", "query_{}")),
    (r"(\w+)_key", ("{}", "{}_query")),
    (r"k_(\w+)", ("q_{}",)),
    (r"(\w+)_k", ("{}", "{}_q")),
    (r"(\w+)_[mt]", ("{}",)),
    (r"(target)", ("online",)),
    (r"(key)", ("query",)),
)


def check_format(name: str | None) -> None:
    """Raise ValueError for a name that no family has; None is that of a file to be recognised."""
    if name is not None and name not in FORMATS:
        hint = did_you_mean(name, FORMATS, repr)
        raise ValueError(f"unknown format {name!r};{hint} known: {', '.join(FORMATS)}")


def is_copy(copy: str, online: str) -> bool:
    """Return whether two dotted paths are equal but for one part, which names a copy.

    `model.momentum_encoder` is a copy of `model.encoder`.
    """
    pairs = zip(copy.split("."), online.split("."), strict=False)
    differing = [pair for pair in pairs if pair[0] != pair[1]]
    if copy.count(".") != online.count(".") or len(differing) != 1:
        return False
    second, first = differing[0]
    matches = ((re.fullmatch(pattern, second), forms) for pattern, forms in COPIES)
    return any(match and first in (f.format(match[1]) for f in forms) for match, forms in matches)
