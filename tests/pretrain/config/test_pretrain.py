"""Settings of a pretraining run: what is refused, and the learning rate of a batch."""

from collections.abc import Callable

import pytest
from pydantic import ValidationError

from pretrain.config.base import identity
from pretrain.config.pretrain import OptimizerConfig, PretrainConfig

Make = Callable[..., PretrainConfig]


CW_RGP = {
    "loss": {"name": "cw-rgp", "sub_batch": 4, "groups": 2},
    "model": {"projector_hidden": 16, "embedding_dim": 32},
}


def test_learning_rate_is_given_once_and_scales_with_the_batch() -> None:
    assert OptimizerConfig(lr_per_256=0.05).base_lr(512) == pytest.approx(0.1)
    assert OptimizerConfig(lr=0.003).base_lr(512) == 0.003
    for both in ({}, {"lr": 1.0, "lr_per_256": 1.0}):
        with pytest.raises(ValidationError, match="exactly one of lr and lr_per_256"):
            OptimizerConfig.model_validate(both)


def test_a_final_rate_belongs_to_the_cosine() -> None:
    with pytest.raises(ValidationError, match=r"final_rate 0\.1 has no effect with"):
        OptimizerConfig.model_validate({"lr": 1, "schedule": "constant", "final_rate": 0.1})
    config = OptimizerConfig.model_validate({"lr": 1, "final_rate": 0.1})
    assert identity(config)["final_rate"] == 0.1
    assert "final_rate" not in identity(OptimizerConfig(lr=1))


@pytest.mark.parametrize("settings", [{"schedule": "step"}, {"drop_at": (0.5,)}])
def test_drops_and_the_step_schedule_go_together(settings: dict[str, object]) -> None:
    with pytest.raises(ValidationError, match="go with schedule 'step'"):
        OptimizerConfig.model_validate({"lr": 1.0, **settings})


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "batch whitening takes its covariance from images of the whole batch"),
        ({"loss": {"name": "batch-norm"}}, "the loss standardises over the whole batch"),
        (
            {**CW_RGP, "loss": {**CW_RGP["loss"], "covariance_weight": 0.1}},
            "covariance_weight compares all pairs of images",
        ),
    ],
)
def test_accumulation_is_refused_where_images_of_other_parts_matter(
    tiny: Make, changes: dict[str, object], words: str
) -> None:
    with pytest.raises(ValidationError, match=rf"compute.accumulate 2: {words}.*set it to 1"):
        tiny(**changes, compute={"accumulate": 2})


def test_how_the_covariance_term_ends_is_identity_only_where_it_ends(tiny: Make) -> None:
    weighted = CW_RGP | {"loss": {**CW_RGP["loss"], "covariance_weight": 0.1}}
    assert "covariance_extra_steps" not in tiny(**weighted).identity()
    assert tiny(**weighted, covariance_epochs=1).identity()["covariance_extra_steps"] == 1
    with pytest.raises(ValidationError, match="covariance_extra_steps 2 has no effect without"):
        tiny(**weighted, covariance_extra_steps=2)


THREE = [{"count": 2}, {"size": 16}]


def test_the_number_of_views_follows_from_their_description(tiny: Make) -> None:
    config = tiny(augment={"size": 32, "views": THREE})
    assert config.num_views == 3 and config.view_sizes == [32, 32, 16]
    assert tiny(augment={"views": THREE}, num_views=3).num_views == 3
    assert tiny(augment={"views": []}).num_views == tiny(augment={}).num_views == 2
    again = PretrainConfig.model_validate_json(config.model_dump_json())
    assert again == config and again.identity() == config.identity()


def test_another_number_of_views_than_described_is_one_line(tiny: Make) -> None:
    words = "augment.views describes 3 views, got num_views 2; leave num_views out or set it to 3"
    with pytest.raises(ValidationError, match=words):
        tiny(augment={"views": THREE}, num_views=2)


@pytest.mark.parametrize(
    "views", [None, {}, 3, ["x"], [None, {}], [{"count": "two"}], [{"size": 0}, {}], [{"x": 1}, {}]]
)
def test_a_description_that_cannot_be_read_is_told_at_its_place(tiny: Make, views: object) -> None:
    with pytest.raises(ValidationError) as refused:
        tiny(augment={"views": views})
    assert all(error["loc"][:2] == ("augment", "views") for error in refused.value.errors())


def test_views_are_identity_where_they_are_given(tiny: Make) -> None:
    assert {"views", "solarize", "solarize_threshold"}.isdisjoint(tiny().identity()["augment"])
    augment = tiny(augment={"views": THREE, "solarize": 0.1}).identity()["augment"]
    assert augment["views"] == [{"count": 2}, {"size": 16}] and augment["solarize"] == 0.1
