"""What a new worker imports before it is announced."""

from __future__ import annotations

import functools
import types
from collections.abc import Callable
from typing import Any

from headrace import testing
from headrace.program import run_program
from headrace.shell.imports import modules_of
from headrace.task import Call


def call(fn: Callable[..., Any], *args: Any) -> Call:
    return fn, args, None, ()


def lazy() -> Any:
    import colorsys
    from xml import dom

    return colorsys, dom


def never() -> Any:
    import headrace_that_nobody_has

    return headrace_that_nobody_has


def of_main(fn: Callable[..., Any]) -> Callable[..., Any]:
    """The same function as ``__main__`` would have it."""
    assert isinstance(fn, types.FunctionType)
    found = types.FunctionType(fn.__code__, {**fn.__globals__, "__name__": "__main__"})
    assert found.__module__ == "__main__"
    return found


def mentions_globals() -> Any:
    return functools.partial(testing.inc, call(len))


def test_modules_that_a_function_imports_when_it_runs() -> None:
    lazy()
    assert {"colorsys", "xml", "xml.dom", __name__} == set(modules_of([call(lazy)]))


def test_only_what_this_process_has_imported() -> None:
    assert modules_of([call(never)]) == (__name__,)


def test_steps_of_programs_and_functions_in_partials() -> None:
    steps = [call(functools.partial(functools.partial(testing.inc), 1)), call(len)]
    assert modules_of([call(run_program, steps, (), [])]) == ("headrace.testing",)


def test_what_a_function_of_main_mentions_comes_with_it() -> None:
    assert modules_of([call(mentions_globals)]) == (__name__,)
    assert set(modules_of([call(of_main(mentions_globals))])) == {"functools", "headrace.testing", __name__}


def test_a_callable_that_answers_to_every_name() -> None:
    class Anything:
        def __getattr__(self, name: str) -> Any:
            return self

        def __call__(self) -> None: ...

        __hash__ = None

    assert modules_of([call(Anything())] * 2) == (__name__,)
