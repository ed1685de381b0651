"""Settings of the compared methods without torch: by name, beside the whitening family."""

import subprocess
import sys
from typing import Any

import pytest

from pipeline.config.yaml_files import validated
from pretrain.config.loss import LossConfig, split_faults
from pretrain.config.methods import SimCLRConfig
from pretrain.config.pretrain import PretrainConfig

NAMES = ("simclr", "barlow-twins", "vicreg", "simsiam", "byol", "moco-v2", "intl")
BY_PARTS = {"simsiam", "byol", "moco-v2"}


def config(loss: dict[str, Any], **more: Any) -> PretrainConfig:
    content = {
        "method": "any", "data": {"name": "any", "root": "any"}, "loss": loss,
        "optimizer": {"lr": 0.1}, "max_steps": 4, **more,
    }  # fmt: skip
    return validated(PretrainConfig, content, "mine.yaml")


def test_needs_no_torch() -> None:
    code = "import sys, pretrain.config.methods; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", NAMES)
def test_a_name_alone_is_a_config_which_says_how_a_batch_may_be_cut(name: str) -> None:
    loss = config({"name": name}).loss
    assert loss.name == name and type(loss).model_validate(loss.model_dump()) == loss
    assert split_faults(512, loss, 4) == []
    assert (split_faults(512, loss, 4, 2) == []) == (name in BY_PARTS)
    assert "use at least 2" in loss.check(1, 64)[0]


def test_a_setting_of_another_method_is_refused_under_the_key_that_the_config_has() -> None:
    with pytest.raises(ValueError, match=r"^mine.yaml: loss.sub_batch: unknown key") as error:
        config({"name": "simclr", "sub_batch": 8})
    assert "temperature" in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"^mine.yaml: loss.temperature: .* greater than 0, got 0"):
        config({"name": "moco-v2", "temperature": 0})
    with pytest.raises(ValueError, match=r"^mine.yaml: loss.name: .*'w-mse2'.* barlow-twins"):
        config({"name": "w-mse2"})


def test_views_beyond_what_a_method_is_defined_for_are_refused() -> None:
    message = "num_views 4: moco-v2 is defined for at most 2 views; set num_views to 2"
    with pytest.raises(ValueError, match=message):
        config({"name": "moco-v2"}, num_views=4)
    assert config({"name": "byol"}, num_views=4).num_views == 4


def test_the_covariance_term_belongs_to_whitening() -> None:
    with pytest.raises(ValueError, match="covariance_epochs 3 has no effect"):
        config({"name": "vicreg"}, max_steps=None, epochs=4, covariance_epochs=3)


def test_the_families_are_told_apart_by_name() -> None:
    assert isinstance(config({"name": "simclr"}).loss, SimCLRConfig)
    assert isinstance(config({"name": "none"}).loss, LossConfig)
