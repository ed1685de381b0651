"""Progress bars that fit the terminal. Imports no torch."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.measure import Measurement
from rich.progress import Progress, ProgressColumn, Task
from rich.table import Table

WIDER_THAN_ANY = 10_000  # columns of a terminal


class FittingProgress(Progress):
    """A progress display that leaves out whole columns where the terminal is too narrow for all.

    `dispensable` are the columns that may go, the one that goes first before the others. Where no
    more may go the text of the first column is folded: a number is never cut.
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
        try:
            for number in range(len(self.dispensable) + 1):
                self.columns = tuple(c for c in columns if c not in self.dispensable[:number])
                table = super().make_tasks_table(tasks)
                if Measurement.get(self.console, unlimited, table).maximum <= self.console.width:
                    break
        finally:
            self.columns = columns
        for place, column in enumerate(table.columns):
            column.no_wrap, column.overflow = place > 0, "fold"
        return table
