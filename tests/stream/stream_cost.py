"""What streams cost: ``python tests/stream/stream_cost.py`` prints figures beside what the stages take by themselves.

Warm: each figure is the best of several rounds in one runtime, so that processes, if stages move to any, are up.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from headrace.runtime import Runtime

CHUNKS = 100
ROUNDS = 5


def range_of(count: int) -> Iterator[int]:
    yield from range(count)


def spin(seconds: float) -> None:
    """Pure Python, for so much CPU time."""
    end_s = time.thread_time() + seconds
    while time.thread_time() < end_s:
        sum(range(200))


def computed(chunks: int) -> Iterator[int]:
    for number in range(chunks):
        spin(0.01)
        yield number


def computed_on(items: Iterable[int]) -> Iterator[int]:
    for item in items:
        spin(0.01)
        yield item + 1


def computed_sum(items: Iterable[int]) -> int:
    total = 0
    for item in items:
        spin(0.01)
        total += item
    return total


def waited(chunks: int) -> Iterator[int]:
    for number in range(chunks):
        time.sleep(0.02)
        yield number


def waited_sum(items: Iterable[int]) -> int:
    total = 0
    for item in items:
        time.sleep(0.02)
        total += item
    return total


def arrays(total_bytes: int) -> Iterator[Any]:
    made = [np.ones(64 << 20, np.uint8) for _ in range(2)]
    for number in range(total_bytes // (64 << 20)):
        yield made[number % 2]


def copy_all(total_bytes: int) -> None:
    """Into memory that is there already: what no way from one process to another one can do without."""
    into = np.ones(64 << 20, np.uint8)
    for array in arrays(total_bytes):
        np.copyto(into, array)


def looked_at(items: Iterable[Any]) -> int:
    return sum(item.nbytes for item in items if item[0])


def stamps(count: int) -> Iterator[float]:
    for _ in range(count):
        yield time.perf_counter()
        time.sleep(0.001)


def first_delay(items: Iterable[float]) -> float:
    return time.perf_counter() - next(iter(items))


def seconds(call: Callable[[], Any], rounds: int = ROUNDS) -> float:
    """The best of several rounds."""
    found = []
    for _ in range(rounds):
        began_s = time.perf_counter()
        call()
        found.append(time.perf_counter() - began_s)
    return min(found)


def main() -> None:
    """Prints the table."""
    argparse.ArgumentParser(description=__doc__).parse_args()
    with Runtime() as rt:

        def compute() -> int:
            return int(rt.submit(computed_sum, rt.submit(computed_on, rt.submit(computed, CHUNKS))).result())

        serial_s = seconds(lambda: computed_sum(computed_on(computed(CHUNKS))), 1)
        cold_s = seconds(compute, 1)
        warm_s = seconds(compute)
        ratios = f"{warm_s / serial_s:.2f} of one after another, {cold_s / serial_s:.2f} the first time"
        print(f"three stages of 1 s of Python: {ratios}")
        one_s = seconds(lambda: sum(waited(CHUNKS)), 1)
        both_s = seconds(lambda: rt.submit(waited_sum, rt.submit(waited, CHUNKS)).result(), 2)
        print(f"two stages that wait, 20 ms a chunk: {both_s / one_s:.2f} of one stage")
        delays = [rt.submit(first_delay, rt.submit(stamps, 20)).result() for _ in range(50)]
        print(f"first chunk at its reader: {statistics.median(delays) * 1e3:.2f} ms (median)")
    with Runtime() as rt:
        count = 1_000_000
        each_s = seconds(lambda: rt.submit(sum, rt.submit(range_of, count)).result()) / count
        print(f"{count:,} integers: {each_s * 1e6:.2f} µs each")
    with Runtime() as rt:
        size = 10_000_000_000
        took_s = seconds(lambda: rt.submit(looked_at, rt.submit(arrays, size)).result(), 2)
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        print(f"10 GB in chunks of 64 MB: {size / took_s / 1e9:.1f} GB/s, peak memory {peak:.0f} MiB")
    with Runtime(lane="processes") as rt:
        took_s = seconds(lambda: rt.submit(looked_at, rt.submit(arrays, size)).result(), 2)
        copied_s = seconds(lambda: copy_all(size), 1)
        ratio = f"{copied_s / took_s:.2f} of the speed of copying them"
        print(f"the same from process to process: {size / took_s / 1e9:.1f} GB/s, {ratio}")


if __name__ == "__main__":
    main()
