"""Seeds and orders that follow from numbers, and random states that are restored."""

import random

import numpy as np
import torch

from pretrain.runtime.rng import (
    derived_seed,
    epoch_order,
    random_states,
    restore_random_states,
    seed_process,
)


def test_an_epoch_visits_every_image_once_in_its_own_order() -> None:
    assert sorted(epoch_order(50, 0, 0)) == list(range(50))
    assert epoch_order(50, 0, 0) == epoch_order(50, 0, 0)
    assert epoch_order(50, 0, 0) != epoch_order(50, 0, 1)
    assert epoch_order(50, 0, 0) != epoch_order(50, 1, 0)


def test_seeds_are_pinned_and_differ_by_every_part() -> None:
    assert derived_seed(0, 1, 2) == 1772749440416956875
    assert len({derived_seed(*parts) for parts in ((0,), (0, 0), (0, 1), (1, 0), (0, 1, 0))}) == 5


def test_restored_states_draw_the_same_again() -> None:
    def draws() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    before = random_states()
    try:
        seed_process(0, 1)
        states, first = random_states(), draws()
        assert draws() != first
        restore_random_states(states)
        assert draws() == first
        seed_process(0, 1)
        assert draws() == first
    finally:
        restore_random_states(before)
