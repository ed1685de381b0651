"""Processes joined by torchrun's variables, or alone."""

from concurrent.futures import ThreadPoolExecutor

import pytest
from torch.distributed import HashStore

from pretrain.runtime.distributed import devices_fault, joined_processes


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


@pytest.mark.parametrize(
    ("places", "fault"),
    [
        ([("a", "1"), ("a", "2")], None),
        ([("a", "1"), ("b", "1")], None),  # no two machines have one GPU
        ([("a", ""), ("a", ""), ("b", "")], None),
        (
            [("a", "1"), ("a", "1")],
            "processes 0, 1 on a see one GPU, and each needs one of its own; start 1 process(es) "
            "there, or let each see another",
        ),
        (
            [("a", "1"), ("b", "3"), ("a", "2"), ("a", "2")],
            "processes 2, 3 on a see one GPU, and each needs one of its own; start 2 process(es) "
            "there, or let each see another",
        ),
        (
            [("a", "1"), ("b", ""), ("b", "")],
            "processes 1, 2 of 3 see no GPU, the others do; show all one",
        ),
    ],
)
def test_each_process_has_a_gpu_of_its_own_or_none_has(
    places: list[tuple[str, str]], fault: str | None
) -> None:
    """Threads and a store in memory stand for processes; all of them get the same words."""
    store, size = HashStore(), len(places)
    with ThreadPoolExecutor(size) as threads:
        told = threads.map(lambda rank: devices_fault(store, rank, size, places[rank]), range(size))
        assert list(told) == [fault] * size
