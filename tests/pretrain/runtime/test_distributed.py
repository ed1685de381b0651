"""Processes joined by torchrun's variables, or alone."""

import pytest

from pretrain.runtime.distributed import joined_processes


def test_half_set_variables_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("RANK", "0")
    words = "WORLD_SIZE is 4 but LOCAL_RANK, LOCAL_WORLD_SIZE, MASTER_ADDR, MASTER_PORT not set"
    with pytest.raises(ValueError, match=words), joined_processes():
        pass


def test_one_process_of_torchrun_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "1")
    with joined_processes() as processes:
        assert (processes.rank, processes.size, processes.is_main) == (0, 1, True)
        assert processes.all_gather([1.0, 2.0]) == [[1.0, 2.0]]
        assert processes.gather("x") == ["x"] and processes.broadcast("y") == "y"
