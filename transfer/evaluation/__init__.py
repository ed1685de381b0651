"""AP by COCO's and by Pascal VOC's rules, of what detectron2's loop detects."""

from transfer.evaluation.coco import coco_ap
from transfer.evaluation.evaluators import build_evaluator
from transfer.evaluation.voc import voc_ap

__all__ = ["build_evaluator", "coco_ap", "voc_ap"]
