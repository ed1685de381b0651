"""Kinds of configs, told apart by their keys, and what takes each."""

from __future__ import annotations

import re
from collections.abc import Sequence, Set
from pathlib import Path
from typing import Any, Literal, get_args

from pipeline.config.schema import PipelineConfig
from pipeline.config.yaml_files import apply_overrides, load_yaml

Kind = Literal[
    "pipeline config", "pretraining config", "probe config", "file of rates",
    "file of published rows", "detectron2 config",
]  # fmt: skip
WHITE = b"\xef\xbb\xbf \t\r\n"  # and the mark of byte order
OF_DETECTRON2 = re.compile(r"[A-Z][A-Z0-9_]*")
OF_RATES = frozenset(("hardware", "s_per_iteration", "storage_gb", "hours"))
OF_PUBLISHED_ROWS = frozenset(("sources", "detection", "probes"))
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
    if len(keys_in(content, kind)) == len(content):  # none has more; their models are not imported
        return kind
    counts: dict[Kind, int] = {name: len(keys_in(content, name)) for name in get_args(Kind)}
    most = max(counts, key=counts.__getitem__)
    return most if counts[most] > counts[kind] else kind


def keys_in(content: dict[str, Any], kind: Kind) -> Set[str]:
    """Return the keys of a config that are those of a kind; detectron2's are all in capitals."""
    if kind == "detectron2 config":
        return {key for key in content if OF_DETECTRON2.fullmatch(key)}
    if kind == "pretraining config":
        from pretrain.config.pretrain import PretrainConfig  # noqa: PLC0415  (takes a tenth of a second)

        return PretrainConfig.model_fields.keys() & content.keys()
    if kind == "probe config":
        from pretrain.config.probe import ProbeConfig  # noqa: PLC0415

        return ProbeConfig.model_fields.keys() & content.keys()
    if kind == "pipeline config":
        return PipelineConfig.model_fields.keys() & content.keys()
    return (OF_RATES if kind == "file of rates" else OF_PUBLISHED_ROWS) & content.keys()
