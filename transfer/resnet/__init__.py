"""ResNets by torchvision's names: shapes, names in detectron2, entries that a detector holds."""

from transfer.resnet.architecture import Architecture, recognise
from transfer.resnet.names import to_detectron2

__all__ = ["Architecture", "recognise", "to_detectron2"]
