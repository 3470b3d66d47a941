"""What is measured of a family of tasks, and what follows from it for where its tasks run.

No scheduler in the field chooses for the user, and each is the wrong choice for half of the workloads. A family
(in dask a key prefix and function, of futures a function) is one of five kinds, learned from the spans of its tasks:

========  ===========================================================  =========================================
kind      how it is recognised                                         where it runs
========  ===========================================================  =========================================
UNKNOWN   has not run yet                                              in a batch of a slot, watched
QUICK     takes less than ``inline_below_s``                           in a batch of whatever slot is at hand
WIDE      alone in the process, uses more than one core (BLAS); or     alone: it would fight with itself
          beside another it waits though no core is idle; or, until
          it is seen alone, more cores work than there are tasks
HOLDS     beside another task it gets less CPU time than alone: it     at most one in this process (brief ones in
          waits for the GIL; or a neighbour that runs Python gets      batches), the others in worker processes, if
          next to none: it never lets go of it                         moving them pays
FREE      everything else: numpy, Arrow, I/O                           in as many threads as there are cores
========  ===========================================================  =========================================
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from headrace.sched.events import Span

UNKNOWN, QUICK, FREE, WIDE, HOLDS = range(5)
PYTHON = (QUICK, HOLDS)
KIND_NAMES = ("unknown", "quick", "free", "wide", "holds-gil")

MOVE_BELOW = 2.0
"""A task that takes longer than this at a worker, its transfer included, is better run here: moving it costs memory
too, and work in this process that is not measured here."""
STARVED = 0.8
"""A task that gets less than this share of the CPU time that it gets alone waits for something its neighbour holds."""
SHORT_RUNS, SHORT_S = 4, 0.008
LONG_RUNS, LONG_S = 2, 0.060
"""So many runs beside others, with so many seconds in all, are enough to suspect it, and as many again to say so: a
task may be kept waiting once by a neighbour's memory, which the kernel has to find first."""
ALIKE = 0.18
"""A family that was never seen alone waits for the GIL if its share of a core is that close to an equal one."""
TOGETHER = 0.75
"""Tasks that keep this share of as many cores busy as they are do not wait for one another, whatever each gets."""
FORGET = 0.98
"""With each run here, a cost at a worker that speaks against moving shrinks by this factor: it may have been a bad
moment, and every now and then a task is sent to find out."""
BESIDE_S, BLOCKED = 0.005, 0.3
"""A task beside which a neighbour that runs Python gets less than this share of a core keeps the GIL from it."""
PAYS_BELOW, STAY_S = 1.0, 5.0
"""A job that had workers and took more than this share of what its tasks take one after the other has moved in vain;
then its families stay here while so many seconds of work are done here, and twice as many each further time. Of work,
not of time: nothing is learned in a pause."""
RETEST_S = 0.5
"""After so much work that was taken to hold the GIL, it is looked at again; four times as late each time it is
confirmed."""
WIDE_ENTER, WIDE_LEAVE = 1.5, 1.25
"""Cores a task must keep busy by itself to count as parallel inside, and below which it no longer does."""
HELPED, HELPED_FROM_S = 0.35, 0.01
"""Cores that are kept busy, or waited for, beyond one for each task that runs: threads of a library. Of a shorter task
this cannot be told: what another thread has used is known to a few milliseconds only, and a library's threads wait for
more work for a while before they sleep."""
WIDTH_FROM_S = 0.001
"""Of a shorter task this cannot be told: other threads of the process have to do something now and then."""


class Family:
    """What is measured of one family. Times are smoothed: fast downwards (a first run pays for imports), slowly up."""

    __slots__ = (
        "beside_others",
        "beside_wall",
        "held_s",
        "holds",
        "kind",
        "movable",
        "name",
        "pending",
        "ran_at",
        "ready_at",
        "remote_s",
        "retest_s",
        "runs",
        "shared_all",
        "shared_cpu",
        "shared_runs",
        "shared_wall",
        "solo_cpu",
        "solo_wall",
        "stay_until",
        "streams",
        "suspected",
        "vain",
        "wall_s",
        "width",
    )

    def __init__(self, name: Hashable) -> None:
        self.name = name
        self.kind = UNKNOWN
        self.runs = 0
        self.pending = 0  # tasks of this family that are not done
        self.wall_s = 0.0
        self.remote_s = 0.0  # what one costs at a worker: unpickling, run, pickling; 0 until one has run there
        self.ran_at: set[int] = set()  # workers
        self.ready_at: set[int] = set()  # workers that have imported what its tasks need, as far as that can be told
        self.streams = False  # whether the last one made a stream
        self.movable = True  # False once a task of it could not be pickled
        self.vain = 0  # how many jobs in a row were not faster for moving it
        self.stay_until = 0.0
        self.suspected = False  # its last runs beside others looked as if it waited for the GIL
        self.holds = False  # was found to hold the GIL; remembered while its tasks are quick
        self.held_s = 0.0  # what has run here since then
        self.retest_s = RETEST_S
        self.width = 0.0
        self.solo_wall = self.solo_cpu = 0.0
        self.beside_wall = self.beside_others = 0.0
        self._forget_shared()

    def ran_here(self, span: Span, solo: bool, neighbours: int, beside: bool, inline_below_s: float) -> None:
        """Learns from a task that ran in this process.

        Args:
            solo: nothing else ran in this process meanwhile.
            neighbours: how many other slots were busy, when not solo.
            beside: one of them ran Python.
        """
        wall, cpu = span.wall_s, span.cpu_s
        if self.kind == HOLDS:
            self._doubt(wall)
            if self.remote_s > MOVE_BELOW * self.wall_s:
                self.remote_s *= FORGET
        elif cpu >= 0.0:
            if solo:
                known = self.width > 0.0 and self.solo_wall > 0.0  # not only suspected
                if wall > WIDTH_FROM_S:
                    self.width = 0.5 * (self.width + span.width) if known else span.width
                elif not known:
                    self.width = 0.0
                self.solo_wall = 0.5 * self.solo_wall + wall
                self.solo_cpu = 0.5 * self.solo_cpu + cpu
            elif neighbours:
                self.shared_wall += wall
                self.shared_cpu += cpu
                self.shared_all += span.width * wall
                self.shared_runs += 1
                if beside:
                    self.beside_wall += wall
                    self.beside_others += span.width * wall - cpu
                wall = min(wall, self._alone(wall, cpu))
        self._smooth(wall)
        if self.wall_s < inline_below_s:
            self.kind = QUICK
        elif self.holds:
            self.kind = HOLDS
        else:
            self.kind = self._slow_kind(neighbours)
            self.holds = self.kind == HOLDS

    def _doubt(self, wall: float) -> None:
        """A verdict may be wrong, or out of date: every now and then the family has to prove it again."""
        self.held_s += wall
        if self.held_s > self.retest_s:
            self.kind = FREE
            self.holds = False
            self.held_s = 0.0
            self.retest_s *= 4.0
            self._forget_shared()

    def _forget_shared(self) -> None:
        self.suspected = False
        self.shared_wall = self.shared_cpu = self.shared_all = 0.0
        self.shared_runs = 0

    def ran_away(self, span: Span, worker: int, inline_below_s: float) -> None:
        """Learns from a task that ran at a worker.

        The first one there pays for what the worker has to import: nothing to judge the others by.
        """
        first = worker not in self.ran_at
        if first:
            self.ran_at.add(worker)
            self.ready_at.add(worker)
        else:
            cost = span.wall_s + span.transfer_s
            if self.remote_s == 0.0:
                self.remote_s = cost
            else:
                self.remote_s += (0.5 if cost < self.remote_s else 0.1) * (cost - self.remote_s)
        if not first or self.runs == 0:
            self._smooth(span.wall_s)
        if self.kind == UNKNOWN:
            self.kind = QUICK if self.wall_s < inline_below_s else FREE

    def stalled(self) -> None:
        """A first task is still running: whatever it is, it is not quick."""
        if self.kind == UNKNOWN:
            self.kind = FREE

    def streamed(self, busy_s: float, inline_below_s: float) -> None:
        """Learns from a task that made a stream."""
        self._smooth(busy_s)
        self.kind = QUICK if self.wall_s < inline_below_s else FREE

    def may_move(self, worked_s: float) -> bool:
        """Whether its tasks, if they hold the GIL, are not better off in this process."""
        return self.movable and self.remote_s <= MOVE_BELOW * self.wall_s and worked_s >= self.stay_until

    def _smooth(self, wall: float) -> None:
        if self.runs == 0:
            self.wall_s = wall
        else:
            self.wall_s += (0.5 if wall < self.wall_s else 0.2) * (wall - self.wall_s)
        self.runs += 1

    def _alone(self, wall: float, cpu: float) -> float:
        """How long a task that shared the process would have taken alone."""
        return wall if self.solo_cpu == 0.0 else cpu * self.solo_wall / self.solo_cpu

    def _slow_kind(self, neighbours: int) -> int:
        if self.width >= WIDE_ENTER or (self.kind == WIDE and self.width >= WIDE_LEAVE):
            return WIDE
        if self.beside_wall > BESIDE_S:
            # It is not kept waiting, but keeps others waiting: it does not let go of the GIL at all.
            holds = self.beside_others < BLOCKED * self.beside_wall
            self.beside_wall = self.beside_others = 0.0
            if holds:
                return HOLDS
        runs, wall = self.shared_runs, self.shared_wall
        if not ((runs >= SHORT_RUNS and wall > SHORT_S) or (runs >= LONG_RUNS and wall > LONG_S)):
            return FREE
        share, cores = self.shared_cpu / wall, self.shared_all / wall
        if self.width == 0.0 and wall > HELPED_FROM_S * runs and cores > neighbours + 1 + HELPED:
            # Tasks that all began together are seen alone by chance only. Whose threads these are, its next run tells.
            self._forget_shared()
            self.width = WIDE_ENTER
            return WIDE
        if self.solo_wall > 0.0:
            starved = share < STARVED * self.solo_cpu / self.solo_wall
        else:
            # Never seen alone. Waiting for the GIL has a signature: n tasks get 1/n each; waiting for I/O
            # gets anything.
            starved = abs(share - 1.0 / (neighbours + 1)) < ALIKE
        # While one waits for the GIL, its core is idle. If it is not, a library's own threads are at work, and what it
        # waits for is them (a second call into OpenBLAS waits for the first).
        helped = cores > neighbours + share
        starved = starved and (helped or cores < TOGETHER * (neighbours + 1))
        confirmed = starved and self.suspected
        self._forget_shared()
        self.suspected = starved
        if not confirmed:
            return FREE
        if helped:
            self.width = WIDE_ENTER
            return WIDE
        return HOLDS


def judge(moved: Iterable[Family], serial_s: float, took_s: float, worked_s: float) -> None:
    """Looks at a finished job whether moving these families was worth it.

    What a task costs at a worker is measured, but not what others pay for it: who waits for its value to come, pickles
    its input, shares the memory's bandwidth. The job's own time has it all.
    """
    for family in moved:
        if took_s < PAYS_BELOW * serial_s:
            family.vain = 0
        else:
            family.stay_until = worked_s + STAY_S * 2.0 ** min(family.vain, 8)
            family.vain += 1
