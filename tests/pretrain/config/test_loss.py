"""Settings of losses without torch: defaults, refusals, batches that cannot be cut."""

import subprocess
import sys

import pytest
from pydantic import ValidationError

from pretrain.config.loss import LossConfig, LossSettings, split_faults


def test_needs_no_torch():
    code = "import sys, pretrain.config.loss; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_defaults_that_depend_on_the_name_are_filled_in():
    wmse = LossConfig(name="w-mse", sub_batch=128)
    assert (wmse.over, wmse.method, wmse.groups, wmse.random_partition) == (
        "batch",
        "cholesky",
        1,
        False,
    )
    cwrgp = LossConfig(name="cw-rgp", sub_batch=64, groups=4)
    assert (cwrgp.over, cwrgp.method, cwrgp.random_partition) == ("channels", "zca", True)
    newton = LossConfig(name="whitening", over="batch", method="newton", sub_batch=8)
    assert newton.newton_iterations == 5
    assert LossConfig(name="batch-norm").eps == 1e-5
    assert LossConfig.model_validate(cwrgp.model_dump()) == cwrgp


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "cwrgp"}, "w-mse"),
        ({"name": "w-mse"}, "sub_batch \\(needed\\)"),
        ({"name": "cw-rgp", "sub_batch": 8}, "groups \\(needed\\)"),
        ({"name": "whitening", "sub_batch": 8}, "over \\(needed\\), method \\(needed\\)"),
        ({"name": "none", "sub_batch": 8}, "sub_batch \\(has no effect\\)"),
        ({"name": "none", "eps": 0.1}, "eps \\(has no effect\\)"),
        ({"name": "batch-norm", "eps": 0.0}, "set eps > 0, such as 1e-5"),
        ({"name": "batch-norm", "method": "zca"}, "method \\(has no effect\\)"),
        ({"name": "w-mse", "sub_batch": 8, "over": "channels"}, "use name 'whitening'"),
        ({"name": "w-mse", "sub_batch": 8, "covariance_weight": 0.1}, "channel whitening"),
        ({"name": "cw-rgp", "sub_batch": 8, "groups": 2, "covariance_batch": 8}, "give the weight"),
        ({"name": "w-mse", "sub_batch": 8, "newton_iterations": 3}, "newton_iterations 3 has no"),
        ({"name": "w-mse", "sub_batch": 8, "random_partition": True}, "no effect with groups 1"),
        ({"name": "w-mse", "sub_batch": 8, "subbatch": 8}, "subbatch"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(settings, message):
    with pytest.raises(ValidationError, match=message):
        LossConfig(**settings)


@pytest.mark.parametrize(
    ("settings", "sizes", "faults"),
    [
        ({"name": "w-mse", "sub_batch": 128}, (256, 64), []),
        ({"name": "w-mse", "sub_batch": 64}, (256, 64), ["more than 64 samples, got 64"]),
        ({"name": "w-mse", "sub_batch": 64, "eps": 0.1}, (256, 64), []),
        (
            {"name": "w-mse", "sub_batch": 100, "groups": 3},
            (256, 64),
            ["256 images is not divisible by sub_batch 100", "64 is not divisible by 3 groups"],
        ),
        ({"name": "cw-rgp", "sub_batch": 64, "groups": 4}, (256, 512), []),
        ({"name": "cw-rgp", "sub_batch": 64, "groups": 4}, (256, 128), ["can never have full"]),
        ({"name": "cw-rgp", "sub_batch": 64, "groups": 512}, (256, 512), ["1 channel per group"]),
        ({"name": "cw-rgp", "sub_batch": 64, "groups": 1}, (64, 64), ["use sub_batch <= 63"]),
        ({"name": "none"}, (1, 64), ["use at least 2"]),
        ({"name": "batch-norm"}, (64, 64), []),
        ({"name": "batch-norm"}, (1, 64), ["use at least 2"]),
        (
            {"name": "whitening", "over": "channels", "method": "newton", "sub_batch": 64},
            (64, 32),
            [],
        ),
        (
            {"name": "whitening", "over": "channels", "method": "zca", "sub_batch": 64},
            (64, 32),
            ["can never have full"],
        ),
    ],
)
def test_check_returns_every_fault_with_numbers(settings, sizes, faults):
    found = LossConfig(**settings).check(*sizes)
    assert len(found) >= len(faults)
    assert bool(found) == bool(faults)
    for fault in faults:
        assert any(fault in line for line in found)
    assert not any("\n" in line for line in found)


def test_check_knows_where_sub_batches_are_taken():
    cwrgp = LossConfig(name="cw-rgp", sub_batch=64, groups=2)
    assert cwrgp.check(128, 256, num_ranks=2) == []
    assert "per-process batch (128 / 4) of 32 images" in cwrgp.check(128, 256, num_ranks=4)[0]
    assert LossConfig(name="w-mse", sub_batch=128).check(128, 64, num_ranks=4) == []
    assert (
        "not divisible by 3 processes; choose a multiple of 3, such as 129"
        in (cwrgp.check(128, 256, num_ranks=3)[0])
    )


def test_a_batch_that_cannot_be_cut_is_refused_with_numbers() -> None:
    w_mse = LossConfig(name="w-mse", sub_batch=128)
    cw_rgp = LossConfig(name="cw-rgp", sub_batch=64, groups=2)
    assert split_faults(512, w_mse, 8) == []
    assert split_faults(512, w_mse, 3) == [
        "batch_size 512 is not divisible by 3 processes; choose a multiple of 3, such as 513"
    ]
    assert split_faults(512, cw_rgp, 4, 2) == []
    assert split_faults(512, cw_rgp, 8, 2) == [
        "batch_size 512 over 8 processes x 2 parts is 32 images each, not divisible by sub_batch "
        "64; choose a multiple of 1024, such as 1024"
    ]
    with_term = cw_rgp.model_copy(update={"covariance_weight": 0.1, "covariance_batch": 96})
    assert split_faults(384, with_term, 2, 1) == split_faults(384 * 4, with_term, 2, 4) == []
    assert split_faults(256, with_term, 2) == [
        "batch_size 256 over 2 processes is 128 images each, not divisible by sub_batch 64 and "
        "covariance_batch 96; choose a multiple of 384, such as 384"
    ]
    assert split_faults(4, LossConfig(name="none"), 4) == [
        "batch_size 4 over 4 processes leaves one image for BatchNorm; "
        "choose a multiple of 4, such as 8"
    ]


class MineConfig(LossSettings):
    pass


class GathersConfig(LossSettings):
    gathers = True


class PartsConfig(LossSettings):
    takes_parts = True


def test_a_loss_of_ones_own_is_for_one_process_and_whole_batches_unless_it_says_more() -> None:
    mine = MineConfig(name="vicreg")
    assert split_faults(8, mine) == []
    assert split_faults(8, mine, 1, 2) == [
        "compute.accumulate 2: nothing says that loss 'vicreg' of parts adds up to that of the "
        "whole batch; set it to 1 and use more processes"
    ]
    assert split_faults(8, mine, 2) == [
        "2 processes: nothing says that loss 'vicreg' gathers what it takes over the whole batch; "
        "use 1, or, if it does, say `gathers` in MineConfig"
    ]
    gathering = GathersConfig(name="mine")
    assert split_faults(8, gathering, 2) == [] != split_faults(8, gathering, 2, 2)
    assert split_faults(8, PartsConfig(name="mine"), 2, 2) == []
