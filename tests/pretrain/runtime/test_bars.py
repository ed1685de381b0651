"""A narrow terminal has fewer columns of a progress bar, and all of each number."""

import io

import pytest
from rich import progress as bars
from rich.console import Console

from pretrain.runtime.bars import FittingProgress, Pairs

NOTE = "total_loss 1.234  lr 0.5"


def lines(width: int, name: str) -> str:
    """What is shown of two tasks, the second with a note; white space as single spaces."""
    bar, elapsed = bars.BarColumn(bar_width=24), bars.TimeElapsedColumn()
    note = Pairs()
    console = Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None)
    progress = FittingProgress(
        bars.TextColumn("{task.description}"), bar, bars.MofNCompleteColumn(), elapsed, note,
        console=console, dispensable=(bar, elapsed, note), get_time=lambda: 83.0,
    )  # fmt: skip
    for number, text in enumerate(("", NOTE)):
        progress.add_task(f"{name}{number}", total=24000, completed=12345, note=text)
        progress.tasks[number].start_time = 10.0
    console.print(progress.make_tasks_table(progress.tasks))
    written = console.file.getvalue()  # type: ignore[attr-defined]
    assert all(len(line) <= width for line in written.splitlines())
    return " ".join(written.split())


@pytest.mark.parametrize(
    ("width", "columns"),
    [
        (76, "stage1 ━━━━━━━━━━━━ 12345/24000 0:01:13 total_loss 1.234 lr 0.5"),
        (75, "stage1 12345/24000 0:01:13 total_loss 1.234 lr 0.5"),
        (50, "stage1 12345/24000 total_loss 1.234 lr 0.5"),
        (42, "stage1 12345/24000 total_loss 1.234"),
        (35, "stage1 12345/24000 total_loss 1.234"),
        (34, "stage1 12345/24000"),
        (18, "stage1 12345/24000"),
    ],
)
def test_columns_go_one_by_one(width: int, columns: str) -> None:
    assert lines(width, "stage").endswith(columns)


@pytest.mark.parametrize("width", [30, 40, 60, 80])
def test_a_long_name_is_folded_where_nothing_else_may_go(width: int) -> None:
    name = "finetune/a-backbone-of-a-long-name--and-a-task-of-one--seed"
    text = lines(width, name)
    assert text.count("12345/24000") == 2 and "…" not in text
    assert text.replace("12345/24000", "").replace(" ", "").count(name) == 2


def test_all_columns_come_back_in_a_wider_terminal() -> None:
    console = Console(file=io.StringIO(), force_terminal=True, width=10)
    bar = bars.BarColumn()
    progress = FittingProgress(bars.TextColumn("x"), bar, console=console, dispensable=(bar,))
    progress.add_task("", total=2)
    assert len(progress.make_tasks_table(progress.tasks).columns) == 1
    console.width = 80
    assert len(progress.make_tasks_table(progress.tasks).columns) == 2
