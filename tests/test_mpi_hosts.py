"""Jobs over several hosts, feigned on this one: turns, ends and codes reach the other host."""

import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Self, cast

import numpy as np
import pytest

from bench.ranks.supervisor import Supervisor
from comms.errors import TimeoutFailure, UsageError
from comms.mpi.alone import alone
from comms.mpi.control import Control
from comms.mpi.launcher import find_launcher
from comms.mpi.ranks import library_name
from comms.mpi.relay import Relay, State, check_threads

ROOT = Path(__file__).parent.parent
#: Far more than any job here takes; only one that hangs meets it.
LIMIT_S = 40.0
_TURNS = 3


@dataclass
class Ended:
    """How a job ended.

    Attributes:
        code: the launcher's.
        codes: of each rank that left one.
        times: when each (begin or end, rank, turn) was, in nanoseconds.
        said: lines of other kinds.
        sentences: of the end.
    """

    code: int
    codes: dict[int, int]
    times: dict[tuple[str, int, int], int]
    said: list[str]
    sentences: list[str]


def _run(folder: Path, what: str, order: str = "block") -> Ended:
    launcher = find_launcher(library_name())
    program = [sys.executable, str(ROOT / "tests" / "hosts_rank.py"), str(folder), order, what]
    process = subprocess.Popen(
        launcher.command(4, program),
        cwd=ROOT,
        env={**launcher.environment(), "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        stdout, stderr = process.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        process.terminate()
        pytest.fail(f"no end within {LIMIT_S} s: {process.communicate()}")
    assert "Traceback" not in stderr, stderr
    times: dict[tuple[str, int, int], int] = {}
    said = []
    for line in stdout.splitlines():
        if line.startswith(("begin ", "end ")):
            which, rank, turn, when = line.split()
            times[which, int(rank), int(turn)] = int(when)
        else:
            said.append(line)
    codes = {int(path.name): int(path.read_text()) for path in folder.iterdir()}
    sentences = [line for line in stderr.splitlines() if line.startswith("epbench: ")]
    return Ended(process.returncode, codes, times, said, sentences)


def test_turns_reach_the_other_host_and_a_good_job_ends_well(tmp_path: Path) -> None:
    ended = _run(tmp_path, "good")
    assert (ended.code, ended.sentences) == (0, [])
    assert ended.codes == dict.fromkeys(range(4), 0)
    assert len(ended.times) == 2 * 4 * _TURNS
    for turn in range(2, _TURNS + 1):
        # The first rank says when.
        given = ended.times["end", 0, turn - 1]
        assert all(ended.times["begin", rank, turn] > given for rank in range(4))


def test_kernels_of_the_other_host_end_and_run_again(tmp_path: Path) -> None:
    ended = _run(tmp_path, "abort")
    assert (ended.code, ended.sentences) == (0, [])
    assert len(ended.times) == 2 * 4 * _TURNS


@pytest.mark.parametrize("rank", [1, 2, 3])
def test_a_code_that_one_host_claims_ends_both_with_one_sentence(rank: int, tmp_path: Path) -> None:
    ended = _run(tmp_path, f"raise:{rank}")
    assert ended.sentences == [f"epbench: a fault of rank {rank}"]
    assert ended.codes == dict.fromkeys(range(4), 2)
    assert ended.code == 2


def test_of_two_hosts_that_claim_the_end_one_tells_why(tmp_path: Path) -> None:
    ended = _run(tmp_path, "raise:1,3")
    assert len(ended.sentences) == 1
    assert ended.codes == dict.fromkeys(range(4), 2)


@pytest.mark.parametrize(
    ("how", "rank"), [("kill", 0), ("kill", 1), ("kill", 2), ("kill", 3), ("kill_of_all", 3)]
)
def test_a_killed_rank_ends_both_hosts(how: str, rank: int, tmp_path: Path) -> None:
    ended = _run(tmp_path, f"{how}:{rank}")
    assert ended.sentences == [f"epbench: a rank died: rank {rank} at turn 2"]
    # mpirun sees the death as well, and may kill ranks before they have ended by themselves.
    assert set(ended.codes.values()) == {4}
    assert rank not in ended.codes
    assert ended.code != 0


def test_a_rank_that_is_told_to_end_ends_both_hosts(tmp_path: Path) -> None:
    ended = _run(tmp_path, "terminate:3")
    assert ended.sentences == ["epbench: interrupted by SIGTERM at turn 2"]
    assert ended.codes == dict.fromkeys(range(4), 130)


def test_a_rank_that_makes_no_step_ends_both_hosts(tmp_path: Path) -> None:
    ended = _run(tmp_path, "sleep:3")
    assert len(ended.sentences) == 1
    assert "made no step for 3 s at turn 2" in ended.sentences[0]
    assert ended.codes == dict.fromkeys(range(4), 4)


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        (
            "block",
            "its 4 ranks are 2 and 2 on 2 hosts, not 4 on one: give --nodes 2 --ranks-per-node 2, "
            "or with --nodes 1 at most --ranks-per-node 2",
        ),
        (
            "cyclic",
            "rank 2 is on the host of rank 0 and rank 1 is not: launch consecutive ranks on each "
            "host (srun --distribution=block, mpirun --map-by slot)",
        ),
    ],
)
def test_worlds_whose_nodes_are_no_hosts_are_skipped(
    order: str, reason: str, tmp_path: Path
) -> None:
    ended = _run(tmp_path, "layout", order)
    assert (ended.code, ended.sentences) == (0, [])
    assert ended.said == [f"skipped: {reason}"] * _TURNS


def test_device_cpu_needs_one_host(tmp_path: Path) -> None:
    ended = _run(tmp_path, "cpu")
    assert ended.sentences == [
        "epbench: device cpu needs all ranks on one host, these are on 2: start them on one "
        "(--nodes makes virtual nodes of its ranks)"
    ]
    assert ended.codes[0] == ended.code == 2


def test_a_rank_that_a_lone_process_started_on_another_host(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "bench.ranks", str(tmp_path / "elsewhere")]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith(f"epbench: {tmp_path / 'elsewhere'} is not on this host")


def _state(host: int, **words: int) -> State:
    nothing = {"turn": 0, "generation": 0, "is_aborted": 0, "exit_code": 0, "is_leaving": 0}
    return State(host=host, **{**nothing, **words})


def _page(host: int) -> Control:
    page = Control(alone())
    page._host = host
    return page


def test_a_page_takes_turns_from_the_first_host_only() -> None:
    page = _page(1)
    page.adopt(_state(2, turn=7))
    assert page.turn() == 0
    page.adopt(_state(0, turn=5))
    assert page.turn() == 5


def test_an_end_of_kernels_that_comes_too_late_ends_none() -> None:
    page = _page(1)
    page.adopt(_state(0, is_aborted=1))
    assert page.state().is_aborted
    page.clear_abort(1)
    page.adopt(_state(0, is_aborted=1))
    assert page.state() == _state(1, generation=1)
    page.adopt(_state(0, generation=1, is_aborted=1))
    assert page.state().is_aborted
    # A host without ranks in the world hears of it only.
    page.adopt(_state(0, generation=2))
    assert page.state() == _state(1, generation=2)


def test_the_first_host_that_claims_the_end_has_the_code() -> None:
    page = _page(2)
    assert page.claim_exit(3)
    assert page.state().exit_code == 3
    page.adopt(_state(3, exit_code=4))
    assert page.exit_code() == 3
    page.adopt(_state(1, exit_code=5))
    page.adopt(_state(0, exit_code=6))
    page.adopt(_state(1, exit_code=5))
    assert page.exit_code() == 6
    # It is that host's to tell.
    assert page.state() == _state(2, is_aborted=1)
    assert not page.claim_exit(7)


def test_kernels_of_a_job_that_ends_do_not_run_again() -> None:
    page = _page(0)
    page.claim_exit(3)
    page.clear_abort(1)
    assert page.state() == _state(0, generation=1, is_aborted=1, exit_code=3)


class _Peers:
    """A communicator and its requests: one other host, whose only message comes when it likes."""

    def __init__(self, message: State, before: Callable[[], None]) -> None:
        self.told: list[State] = []
        self._message = message
        self._before = before

    def allgather(self, _: object) -> list[int]:
        """Return each rank's host."""
        return [0, 1]

    def Dup(self) -> Self:
        return self

    def Issend(self, words: np.ndarray, *_: int) -> Self:
        self.told.append(State(*words.tolist()))
        return self

    def Irecv(self, words: np.ndarray, *_: int) -> "_Hearing":
        words[:] = self._message
        return _Hearing(self._before)

    def Ibarrier(self) -> Self:
        return self

    def Test(self) -> bool:
        return True


class _Hearing:
    def __init__(self, before: Callable[[], None]) -> None:
        self._before = before

    def Test(self, status: Any) -> bool:  # noqa: ANN401
        self._before()
        status.source = 1
        return True

    def Cancel(self) -> None:
        """Nothing is under way."""

    Wait = Cancel


def _relay(monkeypatch: pytest.MonkeyPatch, before: Callable[[], None]) -> tuple[Relay, Control]:
    """Return a relay that calls a function before each message, and the page that hears it."""
    library_name()
    from mpi4py import MPI

    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_MULTIPLE)
    peers: Any = _Peers(_state(1, generation=4), before)
    page = _page(0)
    return Relay(replace(alone(), comm=peers, num_hosts=2), page), page


def test_a_host_that_mpi_no_longer_reaches_does_not_end_the_relay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    library_name()
    from mpi4py import MPI

    heard = threading.Event()
    calls: list[None] = []

    def before() -> None:
        calls.append(None)
        if len(calls) > 2:
            heard.set()
        # The second time there is a message.
        if len(calls) != 2:
            raise MPI.Exception(MPI.ERR_OTHER)

    relay, page = _relay(monkeypatch, before)
    assert heard.wait(LIMIT_S)
    relay.close()
    assert page.generation() == 4


def test_a_relay_that_mpi_keeps_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    library_name()
    from mpi4py import MPI

    let_go = threading.Event()

    def before() -> None:
        let_go.wait()
        raise MPI.Exception(MPI.ERR_OTHER)

    monkeypatch.setattr("comms.mpi.relay._JOIN_S", 0.2)
    relay, _ = _relay(monkeypatch, before)
    with pytest.raises(TimeoutFailure, match="MPI has not returned for 0.2 s from a message"):
        relay.close()
    let_go.set()


def test_a_host_whose_first_rank_is_dead_tells_before_all_of_its_ranks_end() -> None:
    told: list[State] = []

    class Told:
        def tell(self, state: State) -> bool:
            told.append(state)
            return True

    page = _page(0)
    page.ranks = (0, 1)
    alive, page._words = page._words, np.zeros(2 * len(page._words), np.int64)
    page._relay = cast(Any, Told())
    page.rank = 1
    page._row(1)[:] = alive[-len(page._row(1)) :]
    page.claim_exit(3)
    assert not page.all_leaving()
    assert [(state.exit_code, state.is_leaving) for state in told] == [(3, 0)]
    page.set_leaving()
    assert page.all_leaving()


def test_a_job_that_mpi_does_not_end_says_that_all_has_run() -> None:
    supervisor = Supervisor(timeout_s=1.0, tell=lambda *_: None)
    supervisor.watch("MPI's start")
    assert "not every rank that was launched is there" in supervisor._describe_late()
    supervisor.control = _page(0)
    supervisor.watch("the end")
    supervisor.detach()
    assert supervisor._describe_late() == "MPI did not end within 3 s; all specs have run"


def test_an_mpi_for_one_thread_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    # Loads MPI without starting it.
    library_name()
    from mpi4py import MPI

    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_SERIALIZED)
    with pytest.raises(UsageError, match="Some MPI gives no MPI_THREAD_MULTIPLE"):
        check_threads("Some MPI")
    monkeypatch.setattr(MPI, "Query_thread", lambda: MPI.THREAD_MULTIPLE)
    check_threads("Some MPI")
