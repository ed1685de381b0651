"""Rows, ids and times of SLURM's answers."""

from pipeline.executors.slurm.queue import expand_ids, parse_rows, parse_time


def test_ids_and_times_of_slurm() -> None:
    assert expand_ids("12") == ["12"] and expand_ids("12_3") == ["12_3"]
    assert expand_ids("12_[0-2,7%2]") == ["12_0", "12_1", "12_2", "12_7"]
    assert expand_ids("12_[0-4:2]") == ["12_0", "12_2", "12_4"]
    assert [parse_time(text) for text in ("1:05", "2:00:00", "1-00:00:01", "7")] == [
        65, 7200, 86401, 7,
    ]  # fmt: skip
    assert parse_time("UNLIMITED") is parse_time("INVALID") is parse_time("") is None


def test_rows_of_squeue_and_sacct() -> None:
    (row, *more) = parse_rows("5_[1-2%1]|PENDING||0:00|1:00:00|Dependency|x\nnoise\n")
    assert (row.job_id, more[0].job_id, row.is_queued, row.left_s) == ("5_1", "5_2", True, 3600)
    (never,) = parse_rows("6|PENDING||0:00|1:00|DependencyNeverSatisfied|x")
    assert not never.is_active
    (renamed,) = parse_rows("9|RUNNING|n1|0:10|1:00|None|best|FAILED|run\nsecond line|of the name")
    assert (renamed.state, renamed.node, renamed.name) == ("RUNNING", "n1", "best|FAILED|run")
    rows = parse_rows(
        "7|CANCELLED by 1000|None assigned|00:00:00\n7.batch|FAILED|n1|00:00:01\n"
        "8_[0-1]|OUT_OF_MEMORY|n[1-2]|1-00:00:00"
    )
    assert [(row.job_id, row.state, row.node) for row in rows] == [
        ("7", "CANCELLED", ""),
        ("8_0", "OUT_OF_MEMORY", "n[1-2]"),
        ("8_1", "OUT_OF_MEMORY", "n[1-2]"),
    ]
