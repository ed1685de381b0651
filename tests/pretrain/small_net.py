"""A network of a thousandth of ResNet-18's size, for tests of the loop around it."""

from torch import nn

NUM_FEATURES = 16


def build_encoder(_: object) -> tuple[nn.Module, int]:
    """Stand in for `encoder.build_encoder`: convolutions with BatchNorm, 16 features."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, NUM_FEATURES, 3, stride=2),
        nn.BatchNorm2d(NUM_FEATURES),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
    ), NUM_FEATURES
