"""The copy of the code that jobs run from."""

from pathlib import Path

from pipeline.executors.slurm.snapshot import take_snapshot


def test_a_snapshot_is_the_code_of_its_moment_and_shared(tmp_path: Path) -> None:
    source = tmp_path / "checkout"
    (source / "pipeline").mkdir(parents=True)
    (source / "pipeline" / "a.py").write_text("x = 1\n", encoding="utf-8")
    (source / "pipeline" / "data.bin").write_bytes(b"0")
    first = take_snapshot(tmp_path / "code", source)
    assert take_snapshot(tmp_path / "code", source) == first
    (source / "pipeline" / "a.py").write_text("x = 2\n", encoding="utf-8")
    second = take_snapshot(tmp_path / "code", source)
    assert (first / "pipeline" / "a.py").read_text(encoding="utf-8") == "x = 1\n"
    assert second != first and (second / "code_state.json").exists()
    assert not (first / "pipeline" / "data.bin").exists()
    assert sorted(path.name for path in (tmp_path / "code").iterdir()) == sorted(
        [first.name, second.name]
    )
