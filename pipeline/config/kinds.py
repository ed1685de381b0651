"""Kinds of configs, told apart by their keys, and what takes each."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import apply_overrides, load_yaml
from pretrain.config.pretrain import PretrainConfig
from pretrain.config.probe import ProbeConfig

Kind = Literal[
    "pipeline config", "pretraining config", "probe config", "detectron2 config",
    "file of rates", "file of published rows",
]  # fmt: skip
WHITE = b"\xef\xbb\xbf \t\r\n"  # and the mark of byte order
OF_DETECTRON2 = re.compile(r"[A-Z][A-Z0-9_]*")
KEYS: dict[Kind, frozenset[str]] = {  # detectron2's are all those in capitals
    "pipeline config": frozenset(PipelineConfig.model_fields),
    "pretraining config": frozenset(PretrainConfig.model_fields),
    "probe config": frozenset(ProbeConfig.model_fields),
    "file of rates": frozenset(("hardware", "s_per_iteration", "storage_gb", "hours")),
    "file of published rows": frozenset(("sources", "detection", "probes")),
}
TAKEN_BY: dict[Kind, str] = {
    "pipeline config": "tools/run_pipeline.py takes it",
    "pretraining config": "tools/pretrain.py takes it, and `pretrain:` of a pipeline's backbone",
    "probe config": "tools/probe.py takes it, and `config:` of a pipeline's probe",
    "detectron2 config": "tools/train_net.py takes it, and `config:` of a pipeline's task",
    "file of rates": "tools/simulate.py --rates takes it",
    "file of published rows": "`references:` of a pipeline config takes it",
}


def load_config(path: Path | str, kind: Kind, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the mapping in a config file and its bases, with changes that another config asks for.

    Raises:
        ValueError: it cannot be read, it is of another kind, or an override cannot be applied;
            every line names the file.
    """
    if is_coco(Path(path)):  # told apart before it is read as YAML: it may be of any size
        raise ValueError(
            f"{path}: is a COCO annotation file, wanted a {kind}; `annotations:` of a set under "
            "`datasets:` in a pipeline config takes it"
        )
    content = load_yaml(Path(path))
    if (other := kind_of(content, kind)) != kind:
        raise ValueError(f"{path}: is a {other}, wanted a {kind}; {TAKEN_BY[other]}")
    return apply_overrides(content, overrides, f"{path}: ")


def is_coco(path: Path) -> bool:
    """Return whether a file is JSON with the keys of COCO's annotations; it is not parsed."""
    try:
        if not path.is_file():  # a pipe would be read away
            return False
        with path.open("rb") as file:
            if not file.read(64).lstrip(WHITE).startswith(b"{"):
                return False
            file.seek(0)
            content = file.read()
    except OSError:
        return False  # reading it as a config says why
    return all(f'"{key}"'.encode() in content for key in ("images", "annotations", "categories"))


def kind_of(content: dict[str, Any], kind: Kind) -> Kind:
    """Return the kind of config that has more of these keys than `kind` has, or `kind`.

    Example:
        >>> kind_of({"MODEL": {}, "SOLVER": {}, "seed": 0}, "pretraining config")
        'detectron2 config'
    """
    counts = {name: len(keys & content.keys()) for name, keys in KEYS.items()}
    counts["detectron2 config"] = sum(bool(OF_DETECTRON2.fullmatch(key)) for key in content)
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] > counts[kind] else kind
