"""Who waits for whom: finds the circle in which nobody can go on. Pure.

A consumer waits for its producer; a producer that is out of credit for all the consumers that hold it up; a task that
has not begun for all of its inputs. Whoever waits, waits for *all* of these, so every circle is a deadlock, and one
that was made by limits alone: without them the streams are a Kahn process network, which has none. It goes away when
the smallest full buffer in it grows (Parks, "Bounded scheduling of process networks", 1995), and since only a circle
that is really there makes one grow, the buffers stay as small as the program allows.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable
from typing import TypeVar

Node = TypeVar("Node", bound=Hashable)


def find_circle(start: Node, waits_for: Callable[[Node], Iterable[Node]]) -> list[Node]:
    """A circle of waits that can be reached from ``start``; empty if there is none.

    Args:
        start: who has waited for long.
        waits_for: for whom somebody waits; nobody, if it can go on. Asked once a node.
    """
    done: set[Node] = set()
    path: dict[Node, None] = {start: None}
    stack = [iter(waits_for(start))]
    while stack:
        for node in stack[-1]:
            if node in path:
                circle = list(path)
                return circle[circle.index(node) :]
            if node not in done:
                path[node] = None
                stack.append(iter(waits_for(node)))
                break
        else:
            stack.pop()
            done.add(path.popitem()[0])
    return []
