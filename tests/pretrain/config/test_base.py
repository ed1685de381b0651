"""Sections of configs: what is refused, and what identifies a run."""

from collections.abc import Callable

import pytest
from pydantic import Field, ValidationError

from pretrain.config.base import Section, identity, left_out, range_faults
from pretrain.config.pretrain import OptimizerConfig, PretrainConfig

Make = Callable[..., PretrainConfig]
CW_RGP = {
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
    "model": {"projector_hidden": 16, "embedding_dim": 32},
}


class Inner(Section):
    workers: int = Field(default=2, json_schema_extra=left_out("speed"))
    size: int = 8


class Outer(Section):
    inner: Inner = Inner()
    seed: int = 0


def test_the_identity_leaves_out_what_changes_no_result() -> None:
    assert identity(Outer(inner=Inner(workers=9))) == {"inner": {"size": 8}, "seed": 0}


def test_ranges_rise_above_zero() -> None:
    assert range_faults("scale", (0.2, 1.0), highest=1) == []
    for limits in ((0.0, 1.0), (0.5, 0.2), (0.5, 1.5)):
        (fault,) = range_faults("scale", limits, highest=1)
        assert fault.startswith(f"scale: {limits[0]:g} to {limits[1]:g}, wanted two numbers")


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
    for decoding in ("full", "reduced"):
        augment = tiny(augment={"decoding": decoding}).identity()["augment"]
        assert ("decoding" in augment) == (decoding == "reduced")


def test_yes_and_no_are_no_numbers_and_unknown_keys_are_refused() -> None:
    for content in ({"lr": True}, {"lr": 1.0, "drop_at": True}):
        with pytest.raises(ValidationError, match="wanted no true or false here"):
            OptimizerConfig.model_validate(content)
    with pytest.raises(ValidationError, match="Extra inputs"):
        OptimizerConfig.model_validate({"lr": 1.0, "learning_rate": 1.0})
    content = {"lr": 1.0, "decay_norm_and_bias": False}
    assert not OptimizerConfig.model_validate(content).decay_norm_and_bias
