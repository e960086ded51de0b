"""What `epbench doctor` finds on a machine: devices, MPI, its launcher, memory, cores, versions."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from bench.records.environment import RECORDED_PACKAGES, VERSION, environment
from comms.errors import EpbenchError, RuntimeFailure, UsageError
from comms.mpi.launched import Launched

if TYPE_CHECKING:
    from bench.pages.doctor import Page
    from comms.mpi.launcher import Launcher


@dataclass(frozen=True, slots=True)
class Mpi:
    """MPI as it is found.

    Attributes:
        library: name and version, None where there is none.
        launcher: what starts ranks of this library, None where there is none.
        started: what the launcher's environment says, None where nothing started this process.
        why_no_library: sentence.
        why_no_launcher: error.
        why_not_met: error of ranks that a launcher started.
    """

    library: str | None = None
    launcher: Launcher | None = None
    started: Launched | None = None
    why_no_library: str = ""
    why_no_launcher: EpbenchError | None = None
    why_not_met: EpbenchError | None = None

    @property
    def has_wrong_launcher(self) -> bool:
        """Whether there are launchers, but none that ranks could be started with."""
        return self.started is None and isinstance(self.why_no_launcher, UsageError)


def find_library() -> tuple[str | None, str]:
    """Return name and version of the MPI library, and a sentence where there is none."""
    from comms.mpi.ranks import library_name

    try:
        return library_name(), ""
    except RuntimeFailure as error:
        return None, str(error)


def find_mpi(started: Launched | None, why_not_met: EpbenchError | None) -> Mpi:
    """Look for the MPI library and its launcher.

    Args:
        started: what the launcher's environment says.
        why_not_met: error of ranks that it started.
    """
    from comms.mpi.launcher import find_launcher

    library, why_not = find_library()
    if library is None:
        return Mpi(started=started, why_no_library=why_not)
    try:
        launcher = find_launcher(library)
    except EpbenchError as error:
        return Mpi(library, None, started, why_no_launcher=error, why_not_met=why_not_met)
    return Mpi(library, launcher, started, why_not_met=why_not_met)


def tell_machine(page: Page, mpi: Mpi, device: str | None = None) -> None:
    """Tell everything but the ranks, and what a device needs that is looked at by itself."""
    _tell_devices(page, mpi, device)
    _tell_mpi(page, mpi)
    _tell_memory(page)
    num_cores = os.cpu_count() or 1
    page.ok("cores", f"this process may run on {len(os.sched_getaffinity(0))} of {num_cores}")
    load = f"{os.getloadavg()[0]:.1f} on {num_cores} cores in the last minute"
    if os.getloadavg()[0] > num_cores:
        page.note("load", f"{load}: other work runs here: times will vary until it has ended")
    else:
        page.ok("load", load)
    recorded = environment()
    versions = {"python": recorded.python, "epbench": VERSION, **recorded.packages}
    page.ok("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))
    if missing := set(RECORDED_PACKAGES) - set(recorded.packages):
        page.note("versions", f"not installed: {', '.join(sorted(missing))}: install epbench again")
    model = recorded.cpu_model or "unknown processor"
    page.ok("machine", f"{recorded.os} {recorded.kernel} {recorded.machine}, {model}")


def _tell_devices(page: Page, mpi: Mpi, device: str | None) -> None:
    if why_not := _why_no_fibers():
        page.fail("device sim", why_not)
        page.fail("device cpu", "needs fibers, too: see device sim")
    else:
        page.ok("device sim", "predicts in virtual time, all ranks in one process")
        if mpi.library is None:
            page.note("device cpu", "needs an MPI library, which sim does not: see MPI")
        elif mpi.why_not_met is not None or mpi.has_wrong_launcher:
            page.fail("device cpu", "cannot run, launcher and MPI do not fit: see launcher")
        elif mpi.started is None and mpi.launcher is None:
            page.note("device cpu", "needs a launcher, which sim does not: see launcher")
        else:
            page.ok("device cpu", "measures on real clocks, a process per rank")
    if device is None:
        page.note("device cuda", "not looked for: epbench doctor --device cuda tells what it needs")


def _why_no_fibers() -> str | None:
    try:
        from comms.fiber import install_switch

        install_switch()
    except RuntimeFailure as error:
        return str(error)
    except (ImportError, OSError) as error:
        return f"Numba cannot be imported ({error}): install epbench again"
    return None


def _tell_mpi(page: Page, mpi: Mpi) -> None:
    if mpi.library is None:
        page.note("MPI", mpi.why_no_library)
    else:
        version = environment().packages.get("mpi4py", "without a version")
        page.ok("MPI", f"{mpi.library}, mpi4py {version}")
    if mpi.why_not_met is not None:
        page.fail("launcher", str(mpi.why_not_met))
    elif mpi.started is not None:
        started = f"{mpi.started.launcher} started {mpi.started.size} ranks"
        page.ok("launcher", f"{started} ({mpi.started.variable}={mpi.started.size})")
    if mpi.launcher is not None:
        page.ok("launcher", f"{mpi.launcher.path} is {mpi.launcher.kind}'s")
    elif mpi.has_wrong_launcher:
        page.fail("launcher", str(mpi.why_no_launcher))
    elif mpi.why_no_launcher is not None:
        page.note("launcher", str(mpi.why_no_launcher))
    elif mpi.started is None:
        page.note("launcher", "not looked for, because it must fit the library: see MPI")


def _tell_memory(page: Page) -> None:
    from comms.mpi.window import SHARED_MEMORY, free_bytes

    try:
        free = free_bytes()
    except OSError as error:
        why = f"{SHARED_MEMORY} cannot be asked ({error.strerror})"
        page.note("shared memory", f"{why}: device cpu needs it mounted, as Linux does")
        return
    needed, wanted, num_ranks = _default_need()
    tokens = int(free / num_ranks / needed)
    text = (
        f"{free / 1e9:.1f} GB free in {SHARED_MEMORY}, for about {tokens} tokens per rank of the "
        f"default cases of device cpu ({num_ranks} ranks)"
    )
    if tokens < wanted:
        remedy = "use fewer (--tokens), or enlarge it (docker run --shm-size)"
        page.note("shared memory", f"{text}, which have {wanted}: {remedy}")
    else:
        page.ok("shared memory", text)


def _default_need() -> tuple[float, int, int]:
    """Return bytes per token and rank of the default case that needs most, its tokens and ranks."""
    import numpy as np

    from bench.expand import expand
    from bench.grid import DEFAULTS
    from comms.memory import Layout
    from kernels.devices.base import World, user_regions

    most, specs = 0, expand([DEFAULTS["cpu"]])
    for spec in specs:
        protocol, shape = spec.protocol(), spec.shape()
        # About what uniform routing sends to a rank.
        copies = shape.num_topk if protocol.granularity == "selection" else shape.world_size
        unused = np.zeros(shape.world_size, np.int64)
        world = World(shape, spec.fabric, unused, copies * shape.num_tokens, unused)
        regions = {**user_regions(protocol, world), **protocol.regions(shape)}
        most = max(most, Layout(regions).window_bytes)
    num_tokens = specs[0].workload.num_tokens
    return most / num_tokens, num_tokens, specs[0].world_size
