"""Whether weights reached a detector: nothing lost, and nothing but new heads left random."""

from __future__ import annotations

import pickle
from pathlib import Path

import torch
from torch import Tensor, nn

from transfer.resnet.loaded import PLACES, lost_entries
from transfer.resnet.names import COUNTER

# What a detector has and a backbone has not: its parameters start at random.
NEW_PARAMETERS = (
    "proposal_generator.",
    "backbone.fpn_lateral",
    "backbone.fpn_output",
    "roi_heads.res5.norm.",  # of Res5ROIHeadsExtraNorm
    "roi_heads.box_head.",
    "roi_heads.box_predictor.",
    "roi_heads.mask_head.",
)
FROM_CONFIG = ("pixel_mean", "pixel_std")


def weights_fault(weights: str) -> str | None:
    """Return why MODEL.WEIGHTS cannot be used: it must be empty or a local .pkl or .pth file.

    A .pkl is vouched for by its companion, a .pth is read here.
    """
    if not weights:
        return None
    path = Path(weights)
    if "://" in weights or path.suffix not in (".pkl", ".pth"):
        return (
            f"MODEL.WEIGHTS is {weights}, wanted a local file: .pkl as "
            "tools/convert_to_detectron2.py writes it, or .pth of an earlier run"
        )
    if not path.is_file():
        return f"{weights}: no such file (MODEL.WEIGHTS)"
    return _detector_fault(path) if path.suffix == ".pth" else None


def _detector_fault(path: Path) -> str | None:
    """Return why a .pth is none of an earlier run: a dict whose `model` holds tensors by name."""
    wanted = "wanted a .pth of an earlier run, or a .pkl of tools/convert_to_detectron2.py"
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # noqa: BLE001  (damage shows in many types)
        return f"{path}: torch cannot read it ({type(error).__name__}); {wanted}"
    model = content.get("model") if isinstance(content, dict) else None
    if isinstance(model, dict) and all(isinstance(value, Tensor) for value in model.values()):
        return None
    return f"{path}: no tensors by name under 'model'; {wanted}"


def check_loaded(model: nn.Module, weights: Path, *, whole: bool = False) -> None:
    """Compare a model with the file it was loaded from, value by value and in both directions.

    `whole` demands every parameter of the model from the file, heads too, as an evaluation must.

    Raises:
        ValueError: an entry was lost, or a parameter that is no new head's was left random.
    """
    state = model.state_dict()
    if weights.suffix == ".pkl":
        with weights.open("rb") as file:
            entries = pickle.load(file)["model"]  # its companion has vouched for it
        lost = lost_entries(model, entries)
        names = {place + name for name in entries for place in PLACES}
    else:
        content = torch.load(weights, map_location="cpu", weights_only=True)["model"]
        lost = [
            name
            for name, value in content.items()
            if name not in state or not torch.equal(state[name].cpu(), value)
        ]
        names = set(content)
    if lost:
        raise ValueError(f"{weights}: {len(lost)} entries were not loaded: {', '.join(lost)}")
    allowed = FROM_CONFIG if whole else (*FROM_CONFIG, *NEW_PARAMETERS)
    strange = [name for name in state if name not in names and not name.startswith(allowed)]
    if not any(name.endswith(COUNTER) for name in names):
        strange = [name for name in strange if not name.endswith(COUNTER)]
    if strange:
        raise ValueError(
            f"{weights}: has nothing for {len(strange)} parameters: {', '.join(strange)}; only "
            f"{'' if whole else ', '.join(NEW_PARAMETERS) + ' and '}{', '.join(FROM_CONFIG)} "
            "may start without it"
        )
