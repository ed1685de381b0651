from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image

from pretrain.config import PretrainConfig, TrainingProbeConfig
from pretrain.features import open_labelled
from pretrain.training_probe import TrainingProbe, evenly

CPU = torch.device("cpu")


@pytest.fixture
def labelled(tmp_path: Path) -> dict[str, object]:
    """Write 12 + 6 images of two classes, bright and dark; return the data config."""
    generator = torch.Generator().manual_seed(0)
    for split, count in (("train", 6), ("val", 3)):
        for name, level in (("bright", 200), ("dark", 40)):
            folder = tmp_path / "labelled" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                noise = int(torch.randint(-30, 31, (), generator=generator))
                Image.new("RGB", (32, 32), (level + noise,) * 3).save(folder / f"{index}.png")
    return {"name": "levels", "root": tmp_path / "labelled", "format": "imagefolder"}


def test_every_image_votes_or_an_even_part_of_them(labelled: dict[str, object]) -> None:
    data = TrainingProbeConfig.model_validate({"every_epochs": 1, "data": labelled}).data
    assert data is not None
    images = open_labelled(data, "train")
    assert evenly(images, 12) is images
    assert evenly(images, 4).numbers.tolist() == [0, 3, 6, 9]
    assert [int(evenly(images, 4).item(i)[1]) for i in range(4)] == [0, 0, 1, 1]


def test_an_encoder_is_left_as_it_was(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object]
) -> None:
    from pretrain.models import SelfSupervisedModel

    config = tiny(probe={"every_epochs": 1, "data": labelled, "k": 3})
    assert config.probe is not None
    model = SelfSupervisedModel(config.model).train()
    model.encoder.layer1.eval()  # as somebody may freeze a part
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    random_state = torch.get_rng_state()
    found = TrainingProbe(config, config.probe).measure(model.encoder, CPU)
    assert found == {"knn/top1": 100.0}
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_faults_name_the_data(
    tiny: Callable[..., PretrainConfig], labelled: dict[str, object]
) -> None:
    for probe, expected in (
        ({"data": labelled, "k": 13}, "12 images are fewer than probe.k = 13"),
        ({}, "format 'folder' has no labels"),
    ):
        config = tiny(probe=probe | {"every_epochs": 1})
        assert config.probe is not None
        with pytest.raises(ValueError, match=expected):
            TrainingProbe(config, config.probe)
