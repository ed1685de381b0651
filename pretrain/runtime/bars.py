"""Progress bars that fit the terminal. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table
from rich.text import Text

WIDER_THAN_ANY = 10_000  # columns of a terminal


class Pairs(ProgressColumn):
    """The first pairs of a name and a number, two spaces between them, of a task's `note`."""

    shown: int | None = None  # all

    def render(self, task: Task) -> Text:
        """Return as many as are shown."""
        return Text("  ".join(str(task.fields["note"]).split("  ")[: self.shown]))


class FittingProgress(Progress):
    """A progress display that leaves out whole columns where the terminal is too narrow for all.

    `dispensable` are the columns that may go, the one that goes first before the others; `Pairs`
    go one by one, from the last. Where no more may go the text of the first column is folded: a
    number is never cut.
    """

    def __init__(
        self, *columns: ProgressColumn, dispensable: Sequence[ProgressColumn], **settings: object
    ) -> None:
        self.dispensable = dispensable
        super().__init__(*columns, **settings)  # type: ignore[arg-type]

    def make_tasks_table(self, tasks: Iterable[Task]) -> Table:
        """Return the lines of the tasks, a row each, in the columns for which there is room."""
        tasks, columns = list(tasks), self.columns
        if not tasks:  # such as before the console is known
            return super().make_tasks_table(tasks)
        unlimited = self.console.options.update(max_width=WIDER_THAN_ANY)
        steps: list[tuple[int, int | None]] = []  # columns that are gone, and pairs of the next
        for number, column in enumerate(self.dispensable):
            most = max(str(task.fields.get("note", "")).count("  ") for task in tasks)
            steps += [(number, None)]
            steps += [(number, n) for n in range(most, 0, -1)] if isinstance(column, Pairs) else []
        for number, shown in [*steps, (len(self.dispensable), None)]:
            for column in self.dispensable:
                if isinstance(column, Pairs):
                    column.shown = shown
            self.columns = tuple(c for c in columns if c not in self.dispensable[:number])
            table = super().make_tasks_table(tasks)
            self.columns = columns
            if Measurement.get(self.console, unlimited, table).maximum <= self.console.width:
                break
        for place, cells in enumerate(table.columns):
            cells.no_wrap, cells.overflow = place > 0, "fold"
        return table
