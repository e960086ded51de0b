"""The text of `epbench trace`: what bounded each launch, its stages and waits, and its bubbles."""

from collections.abc import Iterator, Sequence

from bench.timeline.summary import Idle, LaunchSummary, percent
from bench.timeline.traced import Traced

#: Waits that are named; they are sorted by their time.
_MOST_WAITS = 8
#: Launches that take less of the time are told in one line.
_MINOR = 0.05


def summary_page(title: str, traced: Traced, launches: Sequence[LaunchSummary]) -> str:
    """Return the page of a recorded operation; every line without data begins with `#`.

    Args:
        title: kernel, world and operation.
        traced: what was recorded.
        launches: what its launches came to.
    """
    total_us = sum(launch.time_us for launch in launches)
    lines = [f"# PREDICTED {title}", *(f"# {line}" for line in _outcome(traced))]
    timeline = traced.timeline
    lines.append(f"# ranks recorded: {_ranges(timeline.ranks)} of {timeline.start_ps.shape[1]}")
    if timeline.num_dropped:
        lines.append(
            f"# INCOMPLETE: {timeline.num_dropped} records found no room, the last ones; record "
            "fewer ranks (--trace-ranks) or more (--max-records)"
        )
    for launch in launches:
        lines += [
            "#",
            f"# {launch.name}: {launch.time_us:.1f} us, rank {launch.last_rank} ended last",
        ]
        lines.append(f"# {launch.verdict}")
        if launch.time_us >= _MINOR * total_us:
            lines += [line for part in _PARTS for line in part(launch)]
    return "\n".join(lines) + "\n"


def _outcome(traced: Traced) -> list[str]:
    if traced.seen is None:
        return f"did not end: {traced.error}".splitlines()
    check = traced.seen.check
    told = f"{check.num_wrong} of {check.num_checked} rows wrong" if check.num_wrong else "right"
    return [f"{traced.seen.samples_us[0]:.1f} us, outputs {told}"]


def _uses(launch: LaunchSummary) -> Iterator[str]:
    rows = [
        (
            use.name,
            percent(use.mean),
            percent(use.most),
            str(use.rank),
            percent(use.middle),
            f"{use.num_bytes / 1e3 / launch.time_us:.1f}" if launch.time_us else "0",
        )
        for use in launch.uses
    ]
    head = ("busy", "mean", "max", "of rank", "its middle", "its GB/s")
    yield from _columns(head, rows, num_left=1)


def _stages(launch: LaunchSummary) -> Iterator[str]:
    rows = [
        (
            one.stage,
            f"{one.total_ps / 1e6:.1f}",
            percent(one.total_ps / launch.total_ps),
            percent(one.wait_ps / launch.total_ps),
            percent(one.pass_ps / launch.total_ps),
        )
        for one in launch.stages
    ]
    head = ("stage", "warps' us", "of all", "waiting", "rows pass the SM")
    yield from _columns(head, rows, num_left=1)


def _waits(launch: LaunchSummary) -> Iterator[str]:
    rows = [
        (
            one.what,
            one.place,
            f"{one.total_ps / 1e6:.1f}",
            percent(one.total_ps / launch.total_ps),
            str(one.count),
            f"{one.longest_ps / 1e6:.1f}",
            "" if one.flag == one.what else one.flag,
        )
        for one in launch.waits[:_MOST_WAITS]
    ]
    head = ("wait for", "at", "warps' us", "of all", "waits", "longest us", "most for")
    yield from _columns(head, rows, num_left=2)
    rest = launch.waits[_MOST_WAITS:]
    if rest:
        part = sum(one.total_ps for one in rest) / launch.total_ps
        yield f"# and {len(rest)} others, {percent(part)} of all"


def _idle_times(launch: LaunchSummary) -> Iterator[str]:
    idle = launch.idle
    if idle is None:
        return
    idle_us = launch.time_us * (idle.before + idle.between + idle.after)
    rows = [
        ("all", f"{idle_us:.1f}", _doings(idle.meanwhile)),
        *(
            (f"{gap.begin_us:.1f}", f"{gap.length_us:.1f}", _doings(gap.meanwhile))
            for gap in idle.gaps
        ),
    ]
    yield "#"
    yield f"# {idle.port} of rank {idle.rank}, the busiest port, idles {_idle_parts(idle)}"
    yield from list(_columns(("idle from us", "for us", "its warps meanwhile"), rows, num_left=0))[
        1:
    ]


def _doings(meanwhile: Sequence[tuple[str, float]]) -> str:
    return "; ".join(f"{percent(part)} {doing}" for doing, part in meanwhile) or "no warp runs"


def _idle_parts(idle: Idle) -> str:
    whole = idle.before + idle.between + idle.after
    return (
        f"{percent(whole)} of the time: {percent(idle.before)} before its first byte, "
        f"{percent(idle.between)} in {idle.num_between} gaps, {percent(idle.after)} after its last"
    )


_PARTS = (_uses, _stages, _waits, _idle_times)


def _ranges(ranks: Sequence[int]) -> str:
    is_run = len(ranks) > 2 and list(ranks) == list(range(ranks[0], ranks[-1] + 1))
    return f"{ranks[0]} to {ranks[-1]}" if is_run else ", ".join(map(str, ranks))


def _columns(head: Sequence[str], rows: Sequence[Sequence[str]], *, num_left: int) -> Iterator[str]:
    """Yield a table after an empty line, its first columns and its last to the left."""
    yield "#"
    if not rows:
        return
    table = [["#" + head[0], *head[1:]], *([" " + row[0], *row[1:]] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    is_text = [i < num_left or head[i] in _TEXT for i in range(len(head))]
    for row in table:
        cells = zip(row, widths, is_text, strict=True)
        yield "  ".join(
            cell.ljust(width) if text else cell.rjust(width) for cell, width, text in cells
        ).rstrip()


_TEXT = ("its warps meanwhile", "most for")
