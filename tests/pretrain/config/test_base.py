"""Sections of configs: what is refused, and what identifies a run."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from pretrain.config.pretrain import OptimizerConfig, PretrainConfig

Make = Callable[..., PretrainConfig]
CW_RGP = {
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
    "model": {"projector_hidden": 16, "embedding_dim": 32},
}


def test_a_setting_that_came_later_is_identity_only_where_it_is_not_its_default(tiny: Make) -> None:
    loss = {**CW_RGP["loss"], "covariance_weight": 0.1}
    size = loss["sub_batch"]
    without = tiny(**CW_RGP | {"loss": loss})
    given = tiny(**CW_RGP | {"loss": {**loss, "covariance_batch": size}})
    assert "covariance_batch" not in without.identity()["loss"]
    assert given.identity()["loss"]["covariance_batch"] == size
    for before in (False, True):
        augment = tiny(augment={"colours_before_crop": before}).identity()["augment"]
        assert ("colours_before_crop" in augment) == before


def test_yes_and_no_are_no_numbers_and_unknown_keys_are_refused() -> None:
    for content in ({"lr": True}, {"lr": 1.0, "drop_at": True}):
        with pytest.raises(ValidationError, match="wanted no true or false here"):
            OptimizerConfig.model_validate(content)
    with pytest.raises(ValidationError, match="Extra inputs"):
        OptimizerConfig.model_validate({"lr": 1.0, "learning_rate": 1.0})
    content = {"lr": 1.0, "decay_norm_and_bias": False}
    assert not OptimizerConfig.model_validate(content).decay_norm_and_bias
