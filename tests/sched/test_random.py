"""Random graphs, lanes, failures, deaths and cancellations in any legal order, checked after every event."""

from __future__ import annotations

import random
from collections.abc import Sequence

import pytest
from cost import cost_us
from fake_shell import FAMILIES
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule, run_state_machine_as_test
from simulation import World

from headrace.sched import events as e

LANES = ("auto", "processes", "threads", "inline")


@st.composite
def graphs(draw: st.DrawFn, most: int = 12) -> dict[str, object]:
    size = draw(st.integers(1, most))
    deps, literals = [], []
    for i in range(size):
        deps.append(tuple(sorted(draw(st.sets(st.integers(0, i - 1), max_size=3))) if i else ()))
        if not deps[-1] and draw(st.integers(0, 9)) == 9:
            literals.append(i)
    few = draw(st.sampled_from([FAMILIES, *((family,) for family in FAMILIES)]))
    return {
        "deps": deps,
        "families": [draw(st.sampled_from(few)) for _ in range(size)],
        "outputs": sorted(draw(st.sets(st.integers(0, size - 1), min_size=1))),
        "literals": literals,
        "pinned": sorted(draw(st.sets(st.integers(0, size - 1), max_size=2))),
        "lane": draw(st.sampled_from(LANES)),
        "limit": draw(st.sampled_from([None, 1, 2, 3])),
    }


class Anything(RuleBasedStateMachine):
    """The machine verifies itself after every event (``check=True``), the world what it commands."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World(cores=2)

    @rule(graph=graphs())
    @precondition(lambda self: len(self.world.jobs) < 3)
    def submit(self, graph: dict[str, object]) -> None:
        self.world.submit(**graph)

    @rule(graph=graphs(most=6), data=st.data())
    @precondition(lambda self: len(self.world.jobs) < 5 and self.world.running_slots())
    def submit_inside(self, graph: dict[str, object], data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(self.world.running_slots()))
        self.world.submit(**graph, inside=slot)

    @rule(data=st.data(), family=st.sampled_from(FAMILIES))
    def submit_future(self, data: st.DataObject, family: str) -> None:
        held = list(self.world.futures)
        deps = data.draw(st.lists(st.sampled_from(held), max_size=2, unique=True)) if held else []
        self.world.submit_future(tuple(deps), family)

    @rule(data=st.data(), family=st.sampled_from(FAMILIES))
    @precondition(lambda self: self.world.running_slots())
    def await_future(self, data: st.DataObject, family: str) -> None:
        slot = data.draw(st.sampled_from(self.world.running_slots()))
        self.world.await_future(slot, self.world.submit_future((), family))

    @rule(data=st.data())
    @precondition(lambda self: self.world.futures)
    def drop(self, data: st.DataObject) -> None:
        self.world.drop([data.draw(st.sampled_from(list(self.world.futures)))])

    @rule(data=st.data())
    @precondition(lambda self: self.world.futures)
    def cancel(self, data: st.DataObject) -> None:
        self.world.post(e.TasksCancelled((data.draw(st.sampled_from(list(self.world.futures))),)))

    @rule(data=st.data())
    @precondition(lambda self: self.world.jobs)
    def cancel_job(self, data: st.DataObject) -> None:
        self.world.cancel_job(data.draw(st.sampled_from(list(self.world.jobs))))

    @rule()
    def look_at_clock(self) -> None:
        self.world.post(e.WorkersIdled())

    @rule(data=st.data())
    @precondition(lambda self: self.world.actions())
    def go_on(self, data: st.DataObject) -> None:
        for _ in range(data.draw(st.integers(1, 5))):
            if actions := self.world.actions():
                actions[data.draw(st.integers(0, len(actions) - 1))][1]()

    @rule(data=st.data())
    @precondition(lambda self: self.world.troubles())
    def go_wrong(self, data: st.DataObject) -> None:
        troubles = self.world.troubles()
        troubles[data.draw(st.integers(0, len(troubles) - 1))][1]()

    def teardown(self) -> None:
        self.world.finish()


def test_anything_may_happen_in_any_order() -> None:
    run_state_machine_as_test(Anything, settings=settings(max_examples=60, stateful_step_count=40, deadline=None))


@pytest.mark.parametrize("seed", range(40))
def test_long_random_walks(seed: int) -> None:
    """More at once than Hypothesis finds it sensible to draw, and everything that was submitted is run to its end."""
    rng = random.Random(seed)
    world = World(cores=rng.choice((1, 2, 3)), lane=rng.choice(LANES))
    world.trouble = rng.random() < 0.7
    for _ in range(150):
        _random_step(world, rng, FAMILIES, LANES)
    world.finish(seed)


@pytest.mark.parametrize("seed", range(20))
def test_workers_come_go_and_are_prepared_for_what_holds_the_gil(seed: int) -> None:
    rng = random.Random(seed)
    world = World(cores=rng.choice((2, 3)), lane="auto")
    world.trouble, world.streams = rng.random() < 0.5, False
    for families in (("gil",), ("other gil",), ("gil", "other gil")):
        for _ in range(150):
            _random_step(world, rng, families, ("auto",))
        world.run(seed)
    world.finish(seed)


def _random_step(world: World, rng: random.Random, families: Sequence[str], lanes: Sequence[str]) -> None:
    chance = rng.random()
    if chance < 0.03 and len(world.jobs) < 4:
        running = world.running_slots()
        world.submit(
            **_random_graph(rng, families, lanes),
            inside=rng.choice(running) if running and rng.random() < 0.5 else None,
        )
    elif chance < 0.08:
        held = list(world.futures)
        world.submit_future(tuple(rng.sample(held, min(len(held), rng.choice((0, 1, 2))))), rng.choice(families))
    elif chance < 0.085 and (running := world.running_slots()):
        world.await_future(rng.choice(running), world.submit_future((), rng.choice(families)))
    elif chance < 0.10 and world.futures:
        world.drop([rng.choice(list(world.futures))])
    elif chance < 0.11 and world.futures:
        world.post(e.TasksCancelled((rng.choice(list(world.futures)),)))
    elif chance < 0.115 and world.jobs:
        world.cancel_job(rng.choice(list(world.jobs)))
    elif chance < 0.16 and world.trouble and (troubles := world.troubles()):
        rng.choice(troubles)[1]()
    elif chance < 0.17:
        world.post(e.WorkersIdled())
    elif actions := world.actions():
        rng.choice(actions)[1]()


def _random_graph(rng: random.Random, families: Sequence[str], lanes: Sequence[str]) -> dict[str, object]:
    size = rng.randrange(1, 14)
    deps = [tuple(sorted(rng.sample(range(i), min(rng.choice((0, 1, 1, 2, 3)), i)))) for i in range(size)]
    few = families if rng.random() < 0.5 else rng.sample(families, 1)
    return {
        "deps": deps,
        "families": [rng.choice(few) for _ in range(size)],
        "outputs": sorted(rng.sample(range(size), rng.randrange(1, size + 1))),
        "literals": {i for i in range(size) if not deps[i] and rng.random() < 0.1},
        "pinned": [i for i in range(size) if rng.random() < 0.1],
        "lane": rng.choice(("auto", *lanes)),
        "limit": rng.choice((1, 2, 3, None)),
    }


def test_many_workers_on_a_fake_clock_run_a_large_graph_to_its_end() -> None:
    assert cost_us(4_000, workers=100) > 0.0
