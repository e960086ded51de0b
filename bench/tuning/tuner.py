"""Tuning kernels one after another: search on some seeds, freeze, measure again on others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from bench.harness import refusal_of
from bench.knobs import told, turn
from bench.records.record import Case, Op
from bench.running import interruption
from bench.tuning.apply import point_of
from bench.tuning.runs import RunAll
from bench.tuning.search import Search, Setting, Trial
from bench.tuning.tuned_file import (
    Checked,
    Dropped,
    Entry,
    Skipped,
    Tuned,
    probe,
    write_tuned,
)
from comms.errors import EpbenchError, Interrupted, UsageError, error_of

if TYPE_CHECKING:
    from bench.cases import CaseSpec


@dataclass(frozen=True, slots=True)
class Asked:
    """How to tune.

    Attributes:
        op: whose time counts.
        seeds: of routing and data that the search sees.
        check_seeds: those that it does not see.
        budget: most runs of the search of one kernel; the runs of its check come on top.
        exhaustive: whether to try all combinations.
    """

    op: Op
    seeds: tuple[int, ...]
    check_seeds: tuple[int, ...]
    budget: int
    exhaustive: bool

    def __post_init__(self) -> None:
        both = sorted(set(self.seeds) & set(self.check_seeds))
        if both:
            raise UsageError(
                f"check seeds must not be among the seeds of the search, got {both[0]} in both"
            )
        for name in ("seeds", "check_seeds"):
            seeds = getattr(self, name)
            if len(set(seeds)) != len(seeds):
                raise UsageError(f"{name} must differ, got {','.join(map(str, seeds))}")
        if self.budget < len(self.seeds):
            raise UsageError(
                f"budget must be at least {len(self.seeds)}, the runs of one setting (one for each "
                f"seed), got {self.budget}"
            )


class Tuner:
    """Tunes specs and keeps what it finds in a file."""

    def __init__(
        self, asked: Asked, run_all: RunAll, tuned: Tuned, path: Path, tell: Callable[[str], None]
    ) -> None:
        """Tune nothing yet.

        Args:
            asked: how to tune.
            run_all: runs specs.
            tuned: what the file will hold, without entries.
            path: the file.
            tell: told in one line what goes on.
        """
        self.tuned = tuned
        self._asked = asked
        self._run_all = run_all
        self._path = path
        self._tell = tell

    def tune(self, specs: Sequence[CaseSpec]) -> None:
        """Tune specs in order and keep the file up to date.

        Raises:
            Interrupted: the user pressed Ctrl-C; the file has what was found so far.
            EpbenchError: a spec cannot be run; likewise.
        """
        labels = [f"[{i + 1}/{len(specs)}] {spec.label()}" for i, spec in enumerate(specs)]
        searches = [self._open(spec, label) for spec, label in zip(specs, labels, strict=True)]
        probe(self._path)
        number = 0
        try:
            for number, (spec, search) in enumerate(zip(specs, searches, strict=True)):
                self._tune_one(spec, search, labels[number])
            self.tuned.complete = True
        except KeyboardInterrupt as interrupt:
            raise Interrupted(
                f"{interruption(interrupt)} after {number} of {len(specs)} kernels; "
                + self._found_so_far()
            ) from None
        except EpbenchError as error:
            raise error_of(error.exit_code, f"{error}; {self._found_so_far()}") from error
        finally:
            self._keep(last=True)

    def _open(self, spec: CaseSpec, label: str) -> Search:
        """Return the search of a spec.

        Raises:
            UsageError: all combinations were asked for, and they are more than the budget.
        """
        knobs, shape = spec.protocol().knobs, spec.shape()
        seeds = self._asked.seeds
        search = Search(
            knobs=knobs,
            default={knob.name: knob.of(shape) for knob in knobs},
            measure=lambda settings: self._measure(spec, settings, seeds, label),
            refuses=lambda setting: self._refusal(spec, setting),
            num_seeds=len(seeds),
            budget=self._asked.budget,
        )
        if self._asked.exhaustive and search.cost() > search.budget:
            raise UsageError(
                f"all combinations of {spec.kernel}/{spec.variant} take {search.cost()} runs, "
                f"more than the budget of {search.budget}: give --budget {search.cost()}, or leave "
                "--exhaustive out"
            )
        return search

    def _tune_one(self, spec: CaseSpec, search: Search, label: str) -> None:
        reason = self._refusal(spec, search.default)
        if reason is None and not search.knobs:
            reason = "has no knobs"
        if reason is None:
            reason = self._search(spec, search, label)
        if reason is not None:
            self.tuned.skipped.append(Skipped(point_of(spec), reason))
            self._tell(f"{label}: skipped ({reason})")
        self._keep(last=False)

    def _search(self, spec: CaseSpec, search: Search, label: str) -> str | None:
        """Search and check, and add what was found; return why there is nothing."""
        dropped: list[Trial] = []
        try:
            search.exhaust() if self._asked.exhaustive else search.descend()
            first = search.first
            if first is None or not first.is_right:
                return f"its default: {first.reason if first else 'was not run'}"
            found, check = self._check(spec, search, dropped, label)
        except BaseException:
            # What was found is worth keeping, whatever ended the search.
            if search.first is not None and search.first.is_right:
                self._add(spec, search, search.ranking()[0], dropped, None, complete=False)
            raise
        if isinstance(check, str):
            return check
        self._add(spec, search, found, dropped, check, complete=search.is_complete)
        return None

    def _check(
        self, spec: CaseSpec, search: Search, dropped: list[Trial], label: str
    ) -> tuple[Trial, Checked | str]:
        """Measure the default and the best on the check seeds; what is wrong there is dropped."""
        seeds = self._asked.check_seeds

        assert search.first is not None
        for trial in search.ranking():
            # Both in one job: on real clocks they are compared under the same conditions.
            settings = [search.default]
            if trial.setting != search.default:
                settings.append(trial.setting)
            trials = list(self._measure(spec, settings, seeds, f"{label}, check"))
            default, checked = trials[0], trials[-1]
            if not default.is_right:
                return search.first, f"its default on the check seeds: {default.reason}"
            if checked.is_right:
                break
            dropped.append(checked)
        return trial, Checked(list(seeds), list(default.times_us), list(checked.times_us))

    def _add(
        self,
        spec: CaseSpec,
        search: Search,
        found: Trial,
        dropped: Sequence[Trial],
        check: Checked | None,
        *,
        complete: bool,
    ) -> None:
        assert search.first is not None
        entry = Entry(
            point=point_of(spec),
            op=self._asked.op,
            default=dict(search.default),
            found=dict(found.setting),
            default_us=list(search.first.times_us),
            found_us=list(found.times_us),
            num_runs=search.num_runs,
            num_refused=search.num_refused,
            complete=complete,
            dropped=[
                Dropped(dict(one.setting), one.status, str(one.reason))
                for one in (*search.dropped(), *dropped)
            ],
            check=check,
        )
        self.tuned.entries.append(entry)

    def _measure(
        self, spec: CaseSpec, settings: Sequence[Setting], seeds: Sequence[int], label: str
    ) -> Iterator[Trial]:
        specs = [_variation(spec, setting, seed) for setting in settings for seed in seeds]
        results = self._run_all(specs)
        for setting in settings:
            rows = [_row(next(results), self._asked.op) for _ in seeds]
            trial = _trial(setting, rows)
            told_as = f"{trial.mean_us:.1f} us" if trial.is_right else f"dropped ({trial.reason})"
            self._tell(f"{label}: {told(setting.items())}: {told_as}")
            yield trial

    def _refusal(self, spec: CaseSpec, setting: Setting) -> str | None:
        varied = _variation(spec, setting, spec.workload.seed)
        return refusal_of(varied, spec.protocol(), self._asked.op)

    def _found_so_far(self) -> str:
        return f"found so far: {self._path}" if self.tuned.entries else "nothing was found so far"

    def _keep(self, *, last: bool) -> None:
        """Write what was found; where there is nothing, an older file stays."""
        if not self.tuned.entries:
            return
        self.tuned.end_time = datetime.now(UTC).isoformat(timespec="seconds")
        write_tuned(self._path, self.tuned, last=last)


def _variation(spec: CaseSpec, setting: Setting, seed: int) -> CaseSpec:
    (varied,) = turn([replace(spec, workload=replace(spec.workload, seed=seed))], setting)
    return varied


def _row(rows: Sequence[Case], op: Op) -> Case:
    return next(row for row in rows if row.op == op)


def _trial(setting: Setting, rows: Sequence[Case]) -> Trial:
    for row in rows:
        if row.status != "passed":
            return Trial(setting, status=row.status, reason=f"seed {row.seed}: {row.reason}")
    return Trial(setting, tuple(row.time_us for row in rows if row.time_us is not None))
