"""Signatures decide what is run again: their definition must not drift."""

import pytest

from pipeline.stages.stage import canonical_json, differences, identity_of, signature_of
from pretrain.config.pretrain import PretrainConfig
from transfer.config.data import CocoData

RECIPE = {
    "method": "w-mse",
    "data": {"name": "digits", "root": "/anywhere"},
    "loss": {"name": "w-mse", "sub_batch": 128},
    "optimizer": {"lr": 1e-3},
    "batch_size": 128,
    "max_steps": 10,
}


def test_signature_is_sha256_of_canonical_json() -> None:
    # printf '{"a":[1,2.5,null],"b":"x"}' | sha256sum | head -c 16
    assert canonical_json({"b": "x", "a": [1, 2.5, None]}) == '{"a":[1,2.5,null],"b":"x"}'
    assert signature_of({"b": "x", "a": [1, 2.5, None]}) == "6739d783db2ab3fd"


def test_nan_has_no_signature() -> None:
    with pytest.raises(ValueError, match="JSON"):
        signature_of({"a": float("nan")})


def test_paths_workers_and_log_periods_stay_out() -> None:
    moved = RECIPE | {
        "data": {"name": "digits", "root": "/elsewhere", "num_workers": 9},
        "log_every": 77,
        "checkpoint_every": 3,
    }
    here, there = (PretrainConfig.model_validate(entry) for entry in (RECIPE, moved))
    assert identity_of(here) == identity_of(there)
    assert "root" not in identity_of(here)["data"]


def test_a_setting_that_came_later_counts_only_where_it_is_not_its_default() -> None:
    loss = {"name": "cw-rgp", "sub_batch": 16, "groups": 2, "covariance_weight": 0.1}
    before = identity_of(PretrainConfig.model_validate(RECIPE | {"loss": loss}))
    loss |= {"covariance_batch": 64}
    given = identity_of(PretrainConfig.model_validate(RECIPE | {"loss": loss}))
    assert given["loss"] == before["loss"] | {"covariance_batch": 64}
    for value in (False, True):
        augment = {"augment": {"colours_before_crop": value}}
        given = identity_of(PretrainConfig.model_validate(RECIPE | augment))
        assert ("colours_before_crop" in given["augment"]) == value


@pytest.mark.parametrize(
    "change",
    [{"batch_size": 256}, {"seed": 1}, {"max_steps": 11}, {"optimizer": {"lr": 2e-3}}],
)
def test_whatever_changes_the_result_changes_the_identity(change: dict[str, object]) -> None:
    assert identity_of(PretrainConfig.model_validate(RECIPE)) != identity_of(
        PretrainConfig.model_validate(RECIPE | change)
    )


def test_data_paths_stay_out_of_detection_sets() -> None:
    assert identity_of(CocoData(annotations="a.json", images="b")) == {
        "format": "coco",
        "fraction": None,
        "subset_seed": 0,
    }


def test_differences_name_every_place() -> None:
    stored = {"a": 1, "b": {"c": [1]}, "gone": 0}
    assert differences(stored, {"a": 2, "b": {"c": [1]}, "new": 5}) == [
        "a: stored 1, wanted 2",
        "gone: stored 0, wanted nothing",
        "new: stored nothing, wanted 5",
    ]


def test_differences_are_written_as_in_a_config() -> None:
    before = {"detectron2": {"SOLVER": {"BASE_LR": None}}, "mask": None, "format": "coco"}
    now = {"detectron2": {"SOLVER": {"BASE_LR": 0.1}}, "mask": {"on": True}, "format": "voc"}
    assert differences(before, now, names=("before", "now")) == [
        "SOLVER.BASE_LR: before null, now 0.1",
        "format: before 'coco', now 'voc'",
        'mask: before null, now {"on": true}',
    ]
