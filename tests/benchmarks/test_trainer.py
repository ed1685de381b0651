"""The trainer's cost: two loops that do the same work, and their difference."""

import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from detectron2.config import CfgNode

from benchmarks import trainer
from benchmarks.detection import (
    CASES,
    DATASET,
    case_config,
    cost_line,
    draw_dataset,
    row_of,
)
from benchmarks.trainer import (
    Cost,
    NoDetector,
    NoDetectorTrainer,
    plain_loop,
    trainer_cost,
    trainer_loop,
)
from transfer.detection.loader import register


def small_case(folder: Path, size: int) -> CfgNode:
    register({DATASET: draw_dataset(folder, size)})
    return case_config(CASES["Mask R-CNN R50-FPN"], size, folder, precision="float32", workers=0)


def test_both_loops_train_alike_and_give_the_signals_back(tmp_path: Path) -> None:
    cfg = small_case(tmp_path, 32)
    cfg.SOLVER.BASE_LR = 1.0
    before = signal.getsignal(signal.SIGTERM)
    model = NoDetector()
    trainer = NoDetectorTrainer(cfg)
    loops = [plain_loop(cfg, model), trainer_loop(trainer)]
    for _ in range(4):
        for loop in loops:
            next(loop)
    assert trainer.iter == 3 and signal.getsignal(signal.SIGTERM) != before
    for loop in loops:
        loop.close()
    assert signal.getsignal(signal.SIGTERM) == before
    moved = model.weight
    # five losses of a tenth each: a gradient of 0.5, with momentum 0.9 a pace of 0.5, 0.95, 1.355
    # and 1.7195; the rate is 0.001, 0.002, 0.003 and 0.004 at the warm-up's beginning
    assert moved.item() == pytest.approx(1 - 0.013343, abs=1e-4)
    assert torch.equal(moved, trainer.model.weight)


def test_the_cost_is_the_difference_of_two_blocks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    now, steps = 0.0, []

    def loop(name: str, costs: list[float]) -> Callable[..., Iterator[None]]:
        def run(*_: Any) -> Iterator[None]:
            nonlocal now
            for cost in costs:
                now += cost
                steps.append(name)
                yield

        return run

    monkeypatch.setattr(trainer, "WRITE_PERIOD", 2)
    monkeypatch.setattr(trainer, "clock_of", lambda _: lambda: now)
    monkeypatch.setattr(trainer, "NoDetectorTrainer", NoTrainer)
    # the first block, 9 s and 5 s a step, does not count; then 1 s and 3 s, then 2 s and 3 s
    monkeypatch.setattr(trainer, "plain_loop", loop("plain", [9, 9, 1, 1, 1, 3]))
    monkeypatch.setattr(trainer, "trainer_loop", loop("ours", [5, 5, 3, 3, 3, 3]))
    cost = trainer_cost(CfgNode(), blocks=2)
    assert cost.plain == pytest.approx(1500)
    assert cost.differences == pytest.approx((2000, 1000))
    assert steps == [name for block in ("po", "op", "po") for name in two_of(block)]


class NoTrainer:
    def __init__(self, cfg: CfgNode) -> None: ...

    @staticmethod
    def build_model(cfg: CfgNode) -> None: ...


def two_of(block: str) -> list[str]:
    return [{"p": "plain", "o": "ours"}[letter] for letter in block for _ in range(2)]


def test_the_cost_in_words_and_as_a_part_of_a_step() -> None:
    cost = Cost(10.0, (1.0, 2.0, 3.0, 4.0, 5.0))
    assert cost.added == 3 and cost.quartiles == (1.5, 4.5)
    # sqrt(pi / 2) / sqrt(5) times the deviation 3 / 1.349 of a normal distribution
    assert cost.standard_error == pytest.approx(1.2465, abs=1e-3)
    line = cost_line(cost, "x")  # 3 and twice 1.2465 are 2 % of 274.65 ms
    assert all(part in line for part in ("10.00 ms", "adds 3.00 ms", "2 % of every step of 275 ms"))
    assert Cost(10.0, (-5.0, -5.0, -5.0)).least_step(0.02) == 0
    row = row_of({"data": 0.1, "forward": 0.1, "backward": 0.2, "optimiser": 0.1}, cost)
    assert row == pytest.approx([0.5, 0.1, 0.1, 0.2, 0.1, 4.0, 0.6])
    assert list(cost.numbers().values()) == [10.0, 3.0, 1.5, 4.5, cost.standard_error]
