"""What one `epbench run` was asked for, resolved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bench.cases import CaseSpec
    from bench.grid import Grid
    from bench.records.record import TunedBy
    from bench.records.store import RunStore
    from bench.timing import Timing


@dataclass(frozen=True, slots=True)
class RunRequest:
    """A run before it begins.

    Attributes:
        suite: its name, if any.
        grids: the axes.
        specs: what they expand to.
        timing: how real clocks are read, None where no case needs them.
        argv: the command line, for the record.
        results: folder of all results.
        json: second file of this run's.
        tuned: where knobs come from, None where no file gives them.
    """

    suite: str | None
    grids: list[Grid]
    specs: list[CaseSpec]
    timing: Timing | None
    argv: list[str]
    results: Path
    json: Path | None
    tuned: TunedBy | None = None

    def open_store(self) -> RunStore:
        """Prepare the files of the run.

        Raises:
            UsageError: they cannot be written.
        """
        from bench.records.record import Config
        from bench.records.store import RunStore, new_run

        devices = dict.fromkeys(spec.device for spec in self.specs)
        header = new_run(
            list(devices),
            self.argv,
            Config(self.suite, [grid.axes() for grid in self.grids], self.timing, self.tuned),
        )
        return RunStore(header, self.results, self.json)
