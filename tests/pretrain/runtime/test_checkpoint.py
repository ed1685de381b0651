"""Checkpoint files: whole or refused, whatever happens to their bytes, and never executed."""

import contextlib
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from pretrain.runtime import checkpoint
from pretrain.runtime.checkpoint import (
    DAMAGED,
    LAST,
    PREVIOUS,
    drop_unfinished,
    load_state,
    newest_state,
    save_atomically,
)

CONTENT = {"step": 3, "model": {"w": torch.arange(50.0)}, "ranks": [{"python": [3, None, 0.5]}]}


def equal(state: dict[str, object]) -> bool:
    model = state.get("model")
    return (
        isinstance(model, dict)
        and torch.equal(model["w"], CONTENT["model"]["w"])  # type: ignore[index]
        and {**state, "model": None} == {**CONTENT, "model": None}
    )


def test_a_flipped_bit_is_found_or_does_not_matter(tmp_path: Path) -> None:
    path = tmp_path / LAST
    save_atomically(CONTENT, path)
    whole = bytearray(path.read_bytes())
    found = 0
    for position in range(0, len(whole), 7):
        flipped = bytearray(whole)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(flipped)
        try:
            assert equal(load_state(path)), f"byte {position} of {len(whole)} went unnoticed"
        except ValueError as error:
            assert f"{path}: damaged checkpoint (" in str(error)
            found += 1
    assert found > 50


def test_a_file_cut_anywhere_is_refused(tmp_path: Path) -> None:
    path = tmp_path / LAST
    save_atomically(CONTENT, path)
    whole = path.read_bytes()
    for size in [*range(0, len(whole), 97), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(ValueError, match=r"last\.pth: damaged checkpoint"):
            load_state(path)


def test_the_last_state_and_the_one_before_are_there(tmp_path: Path) -> None:
    assert newest_state(tmp_path) is None
    for step in (1, 2, 3):
        save_atomically({"step": step}, tmp_path / LAST)
    assert load_state(tmp_path / PREVIOUS) == {"step": 2}
    assert newest_state(tmp_path) == (tmp_path / LAST, {"step": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == [LAST, PREVIOUS]


def test_a_damaged_state_never_pushes_out_a_whole_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for step in (1, 2):
        save_atomically({"step": step}, tmp_path / LAST)
    (tmp_path / LAST).write_bytes(b"PK\x03\x04 cut off")
    assert newest_state(tmp_path) == (tmp_path / PREVIOUS, {"step": 1})
    assert "last.pth: damaged checkpoint (File is not a zip file), now named damaged.pth" in (
        caplog.text
    )
    save_atomically({"step": 2}, tmp_path / LAST)
    assert load_state(tmp_path / PREVIOUS) == {"step": 1}
    assert (tmp_path / DAMAGED).read_bytes() == b"PK\x03\x04 cut off"


def test_only_unfinished_checkpoints_are_dropped(tmp_path: Path) -> None:
    names = (".last.pth.17.tmp", ".metrics.jsonl.4.tmp", ".manifest.json.x1.tmp", "other.tmp")
    for name in names:
        (tmp_path / name).touch()
    drop_unfinished(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names[2:])


@pytest.mark.parametrize("write", [torch.save, lambda x, p: p.write_bytes(pickle.dumps(x))])
def test_nothing_in_a_checkpoint_is_executed(
    tmp_path: Path, write: Callable[[object, Path], object]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "ran",))  # type: ignore[return-value]

    write({"step": Evil()}, tmp_path / LAST)
    with pytest.raises(ValueError, match="damaged checkpoint"):
        load_state(tmp_path / LAST)
    assert not (tmp_path / "ran").exists()


def test_a_full_disk_says_so_and_which_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    full = contextlib.nullcontext(Path("/dev/full"))
    monkeypatch.setattr(checkpoint, "whole_file", lambda _: full)
    with pytest.raises(OSError, match=r"No space left on device: '.*/last\.pth'$"):
        save_atomically({"weight": torch.zeros(1000)}, tmp_path / "last.pth")
