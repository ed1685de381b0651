"""Names and shapes of ResNets, in torchvision's and in detectron2's terms."""
