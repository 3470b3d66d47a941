"""What is learned of families, and what follows."""

from __future__ import annotations

from headrace.sched.events import Span
from headrace.sched.policy import FREE, HOLDS, PAYS_BELOW, QUICK, STAY_S, WIDE, Family, judge

INLINE_BELOW_S = 1e-4


def run_here(
    family: Family,
    times: int,
    wall_s: float,
    share: float = 1.0,
    width: float = 1.0,
    solo: bool = True,
    beside: bool = False,
) -> None:
    for _ in range(times):
        family.ran_here(
            Span(0, 0.0, wall_s, share * wall_s, width, -1, 0.0), solo, 0 if solo else 1, beside, INLINE_BELOW_S
        )


def run_away(family: Family, times: int, wall_s: float, transfer_s: float = 0.0) -> None:
    for _ in range(times):
        family.ran_away(Span(0, 0.0, wall_s, wall_s, 1.0, -1, transfer_s), 1, INLINE_BELOW_S)


def gil_holder(wall_s: float = 0.01) -> Family:
    family = Family("f")
    run_here(family, 2, wall_s)
    run_here(family, 8, 2 * wall_s, share=0.5, solo=False)
    assert family.kind == HOLDS
    return family


def test_kinds() -> None:
    for wall_s, share, width, solo, kind in (
        (1e-5, 1.0, 1.0, True, QUICK),
        (1e-2, 1.0, 1.0, True, FREE),
        (1e-2, 1.0, 2.0, True, WIDE),
        (1e-2, 0.95, 1.0, False, FREE),
        (1e-2, 0.5, 1.0, False, HOLDS),
    ):
        family = Family("f")
        run_here(family, 10, wall_s, share, width, solo)
        assert family.kind == kind


def test_one_bad_moment_is_not_waiting_for_the_gil() -> None:
    family = Family("f")
    for _ in range(5):
        run_here(family, 6, 0.01, share=0.95, solo=False)
        run_here(family, 2, 0.01, share=0.5, solo=False)
    assert family.kind == FREE


def test_tasks_that_keep_their_cores_busy_do_not_wait_for_one_another() -> None:
    family = Family("f")
    run_here(family, 2, 0.01)
    run_here(family, 20, 0.01, share=0.75, width=1.6, solo=False)
    assert family.kind == FREE


def test_waiting_for_io_is_not_waiting_for_the_gil() -> None:
    family = Family("f")
    run_here(family, 2, 0.02, share=0.05)
    run_here(family, 10, 0.02, share=0.05, solo=False)
    assert family.kind == FREE


def test_a_verdict_is_remembered_while_tasks_are_quick() -> None:
    family = gil_holder()
    run_here(family, 20, 1e-5)
    assert family.kind == QUICK
    run_here(family, 20, 0.01, solo=False)
    assert family.kind == HOLDS


def test_the_first_run_at_a_worker_does_not_decide() -> None:
    family = gil_holder(0.002)
    run_away(family, 1, 0.5, transfer_s=0.5)
    assert family.wall_s < 0.004
    assert family.may_move(0.0)
    run_away(family, 20, 0.002, transfer_s=0.01)
    assert not family.may_move(0.0)
    run_here(family, 100, 0.002)  # the verdict fades, so that one is sent again to find out
    assert family.may_move(0.0)


def test_what_moved_in_vain_stays_for_a_while_and_longer_each_time() -> None:
    family = gil_holder()
    judge([family], serial_s=1.0, took_s=PAYS_BELOW + 0.01, worked_s=0.0)
    assert not family.may_move(STAY_S - 0.1)
    assert family.may_move(STAY_S)
    judge([family], serial_s=1.0, took_s=PAYS_BELOW + 0.01, worked_s=10.0)
    assert not family.may_move(10.0 + 2 * STAY_S - 0.1)
    judge([family], serial_s=1.0, took_s=0.5, worked_s=100.0)
    assert family.vain == 0
    assert family.may_move(100.0)


def test_an_old_verdict_is_doubted() -> None:
    family = gil_holder()
    run_here(family, 250, 0.01)
    assert family.kind == FREE


def test_a_neighbour_of_a_parallel_library_is_not_taken_to_wait_for_the_gil() -> None:
    family = Family("f")
    run_here(family, 8, 0.02, share=0.5, width=2.0, solo=False)
    assert family.kind == WIDE


def test_more_busy_cores_than_tasks_are_threads_of_a_library_and_a_run_alone_tells_whose() -> None:
    for alone, kind in ((2.0, WIDE), (1.0, FREE)):
        family = Family("f")
        run_here(family, 3, 0.05, width=2.4, solo=False)
        assert family.kind == WIDE
        run_here(family, 1, 0.05, width=alone)
        assert family.kind == kind
        run_here(family, 20, 0.05, width=2.4, solo=False)
        assert family.kind == kind


def test_two_tasks_on_two_cores_have_no_help() -> None:
    family = Family("f")
    run_here(family, 20, 0.05, width=2.1, solo=False)
    assert family.kind == FREE


def test_of_short_tasks_it_cannot_be_told_that_they_have_help() -> None:
    family = Family("f")
    run_here(family, 40, 0.004, width=3.0, solo=False)
    assert family.kind == FREE
    run_here(family, 4, 0.02, width=3.0, solo=False)
    assert family.kind == WIDE
    run_here(family, 1, 0.0005, width=1.0)  # too short to tell: no longer suspected
    assert family.kind == FREE


def test_what_keeps_others_from_running_holds_the_gil_though_it_never_waits() -> None:
    family = Family("f")
    run_here(family, 6, 0.002, width=1.05, solo=False, beside=True)
    assert family.kind == HOLDS
    family = Family("f")
    run_here(family, 6, 0.002, width=1.9, solo=False, beside=True)
    assert family.kind == FREE
