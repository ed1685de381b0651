"""Words of messages: text for a terminal, and what was meant by a name that is not known."""

from pathlib import Path

import pytest

from transfer.files import did_you_mean, near_path, one_line, printable, refusal


def test_text_from_files_keeps_nothing_that_a_terminal_obeys() -> None:
    assert printable("é\x1b[31m\n") == "é?[31m?" and printable("a\0b", " ") == "a b"
    assert printable(ValueError("a\tb")) == "a?b"


def test_a_message_is_one_line() -> None:
    assert one_line(ValueError("a\n\tb \x1b c ")) == "a b c"
    assert one_line(KeyError()) == ""


def test_the_closest_name_is_shown_as_asked() -> None:
    known = {"voc_2007_test": 1, "coco_2017_val": 2}
    assert did_you_mean("voc_2007_tset", known) == " did you mean voc_2007_test?"
    assert did_you_mean("voc_2007_tset", known, repr) == " did you mean 'voc_2007_test'?"
    assert did_you_mean("zzz", known) == ""


def test_a_refusal_is_one_short_line_with_the_path_and_the_reason() -> None:
    assert refusal(Path("a/b.pth"), ValueError("no\ntensors")) == "a/b.pth: no?tensors"
    long = refusal(Path("/folder" * 99 + "/b.pth"), "reason " * 99)
    assert "/b.pth: reason" in long and len(long) == 370 and long.endswith("...")


@pytest.mark.parametrize(
    ("missing", "near"),
    [
        ("mine_slrum.yaml", "mine_slurm.yaml"),
        ("moco_r50.pt", "moco_r5.pth"),
        ("mine_slurm.pth", None),  # another kind of file
        ("zzz.yaml", None),
        ("gone/mine_slurm.yaml", None),
        ("vall", "val"),
    ],
)
def test_the_nearest_file_or_folder_beside_one_that_is_missing(
    tmp_path: Path, missing: str, near: str | None
) -> None:
    for name in ("mine_slurm.yaml", "moco_r5.pth"):
        (tmp_path / name).touch()
    for name in ("mine_slrun.yaml", "val"):
        (tmp_path / name).mkdir()
    assert near_path(tmp_path / missing) == (f"; did you mean {tmp_path / near}?" if near else "")
