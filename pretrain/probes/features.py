"""Features that a frozen encoder gives of labelled images.

Legend: N images, F features; images are [3, H, W] uint8 RGB until they meet their encoder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import InterpolationMode, v2

from pretrain.config.data import DataConfig
from pretrain.config.probe import ImageConfig, ProbeConfig
from pretrain.data.images import Images, from_workers, open_images
from pretrain.data.splits import Split
from pretrain.models import InputConvention
from pretrain.runtime.rng import derived_seed
from pretrain.runtime.signals import leave_signals_to_parent
from pretrain.runtime.tf32 import set_tf32, tf32_faults

View = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Labelled:
    """Some or all images of a data set by their numbers in it, and the classes they belong to."""

    images: Images
    labels: Tensor
    numbers: Tensor

    def __len__(self) -> int:
        return len(self.numbers)

    def part(self, positions: Tensor) -> Labelled:
        """Return the images at these positions among these."""
        return Labelled(self.images, self.labels, self.numbers[positions])

    def item(self, position: int) -> tuple[Tensor, Tensor]:
        """Return an image [3, H, W] and its label."""
        number = int(self.numbers[position])
        return self.images.read(number), self.labels[number]


def open_labelled(data: DataConfig, split: Split) -> Labelled:
    """Return the images of a split that has labels.

    Raises:
        ValueError: the data are missing or in another layout, or the split has no labels.
    """
    images = open_images(data, split)
    if images.labels is None:
        raise ValueError(f"{data.root}: split {split!r} of format {data.format!r} has no labels")
    return Labelled(images, images.labels, torch.arange(len(images)))


class LabelledViews(Dataset[tuple[Tensor, Tensor]]):
    """A view of each image and its label; its randomness comes from (seed, epoch, index) alone."""

    def __init__(self, images: Labelled, view: View, seed: int = 0) -> None:
        self.images = images
        self.view = view
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        image, label = self.images.item(index)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(derived_seed(self.seed, self.epoch, index, 3))
            return self.view(image), label


def central_view(config: ImageConfig) -> v2.Transform:
    """Return the transform to the middle `size` of the image, uint8, no randomness in it.

    Bicubic with antialiasing, as the W-MSE code resizes its test images.
    """
    short = config.resize or config.size
    resize = v2.Resize(short, interpolation=InterpolationMode.BICUBIC, antialias=True)
    return v2.Compose([resize, v2.CenterCrop(config.size)])


class FrozenEncoder:
    """An encoder in evaluation mode on `device`, and the convention of its input."""

    def __init__(
        self, encoder: nn.Module, convention: InputConvention, device: torch.device
    ) -> None:
        self.encoder = encoder.to(device).eval()
        self.device = device
        self.tf32 = False
        self.flip = convention.format == "BGR"
        self.mean = torch.tensor(convention.pixel_mean, device=device).view(3, 1, 1)
        self.std = torch.tensor(convention.pixel_std, device=device).view(3, 1, 1)

    def normalise(self, images: Tensor) -> Tensor:
        """Return uint8 RGB images [N, 3, H, W] as float32, in the encoder's order of channels."""
        images = images.to(self.device, non_blocking=True).float()
        if self.flip:
            images = images.flip(1)
        return (images - self.mean) / self.std

    def compute_in(self, precision: str) -> None:
        """Compute features in `precision` from now on.

        Raises:
            ValueError: the device has no TF32, or would compute in it unasked.
        """
        if faults := tf32_faults("precision", precision, self.device):
            raise ValueError(*faults)
        self.tf32 = precision == "tf32"

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """Return the features [N, F], after average pooling, of uint8 images [N, 3, H, W].

        Raises:
            ValueError: a feature is NaN or infinite.
        """
        set_tf32(self.tf32)
        try:
            # not as compiled for training: in this mode and size it would be compiled anew
            features: Tensor = self.encoder.forward(self.normalise(images)).flatten(1).float()
        finally:
            set_tf32(False)
        if not bool(torch.isfinite(features).all()):
            raise ValueError("the encoder's features are NaN or infinite on these images")
        return features


def batches(
    dataset: LabelledViews, batch_size: int, data: DataConfig, order: list[int] | None = None
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of images and labels, in the data set's order or in `order`.

    `data` has the workers and how far ahead they read.
    The loader's own generator keeps it from drawing on the process's random state.

    Raises:
        ValueError: an image cannot be read.
    """
    loader = DataLoader(
        dataset,
        batch_size=batch_size,
        sampler=order,
        num_workers=data.num_workers,
        prefetch_factor=data.prefetch_factor,
        generator=torch.Generator(),
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=leave_signals_to_parent,
    )
    return from_workers(loader)


def feature_chunks(
    frozen_encoder: FrozenEncoder, images: Labelled, config: ProbeConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield features [n, F] and labels [n] of all images in order, a batch at a time."""
    dataset = LabelledViews(images, central_view(config.image))
    for pixels, labels in batches(dataset, config.batch_size, config.data):
        yield frozen_encoder.features(pixels), labels.to(frozen_encoder.device)
