"""Heads that the field's configs name and detectron2 does not bring.

Tested in tests/transfer/detection/test_shipped_configs.py.
"""

from __future__ import annotations

from typing import Any

from detectron2.config import CfgNode
from detectron2.layers import ShapeSpec, get_norm
from detectron2.modeling import ROI_HEADS_REGISTRY
from detectron2.modeling.roi_heads import Res5ROIHeads
from torch import nn

if "Res5ROIHeadsExtraNorm" not in ROI_HEADS_REGISTRY:

    @ROI_HEADS_REGISTRY.register()
    class Res5ROIHeadsExtraNorm(Res5ROIHeads):  # type: ignore[misc]
        """The C4 box head with one more normalisation after res5 (MoCo's detection recipe)."""

        @classmethod
        def from_config(cls, cfg: CfgNode, input_shape: dict[str, ShapeSpec]) -> dict[str, Any]:
            """Return the arguments of `Res5ROIHeads` with the norm appended to its res5."""
            arguments: dict[str, Any] = super().from_config(cfg, input_shape)
            res5 = arguments["res5"]
            norm = get_norm(cfg.MODEL.RESNETS.NORM, res5[-1].out_channels)
            arguments["res5"] = nn.Sequential(*res5)
            arguments["res5"].add_module("norm", norm)
            return arguments
