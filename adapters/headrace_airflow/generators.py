"""A generator task's value: the items that it yields. Wherever HeadraceXCom is in use, under any executor.

Stock runs a generator to its end for the sake of the ``Metadata`` that it may yield, and drops everything else. Both
stay as they are for generators that do what stock has them for: ``Metadata`` goes where stock brings it; one that
yields nothing else has no value, and one that returns a value has that.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable, Generator
from types import GeneratorType
from typing import Any

from airflow.sdk.execution_time import callback_runner

from headrace_airflow.items import Gatherer

Function = Callable[..., Any]
Announce = Callable[[Gatherer], None]

announce: Announce | None = None
"""In a task whose stream others may follow: see ``keeping``."""
forerun: Callable[[Function, Function], Function] | None = None
"""In a task that something has run ahead of: makes its function, and how it is run otherwise, one that takes that."""


def install() -> None:
    """Has ``@task`` and ``PythonOperator`` keep what generators yield. May be called again."""
    stock = callback_runner.create_executable_runner
    if hasattr(stock, "__wrapped__"):
        return

    @functools.wraps(stock)
    def create_executable_runner(func: Any, *args: Any, **kwargs: Any) -> Any:
        return stock(_of_task(func), *args, **kwargs)

    callback_runner.create_executable_runner = create_executable_runner


def in_use() -> bool:
    """Whether generators have values here: HeadraceXCom is the backend, and not only imported."""
    from airflow.sdk.execution_time.xcom import XCom

    ours = sys.modules.get("headrace_airflow.xcom")
    return ours is not None and issubclass(XCom, ours.HeadraceXCom)


def keeps_items(operator: Any) -> bool:
    """Whether what an operator's generator yields becomes its value."""
    from airflow.providers.standard.decorators.python import _PythonDecoratedOperator
    from airflow.providers.standard.operators.python import PythonOperator

    plain = type(operator) in (PythonOperator, _PythonDecoratedOperator)
    return plain and operator.do_xcom_push and not operator.multiple_outputs


def _of_task(function: Function) -> Function:
    """Where a function is that of the task that is running, and not one of its hooks: one that keeps items."""
    from airflow.sdk import get_current_context

    if not in_use():
        return function
    try:
        operator = get_current_context().get("task")
    except RuntimeError:
        return function
    if getattr(operator, "python_callable", None) is not function or not keeps_items(operator):
        return function
    kept = keeping(function, announce)
    return kept if forerun is None else forerun(function, kept)


def keeping(function: Function, announce: Announce | None = None) -> Function:
    """A function that returns the items where this one yields them, and yields the ``Metadata``.

    Args:
        function: of a task.
        announce: told of what was gathered whenever there is a chunk more.
    """
    if inspect.isgeneratorfunction(function):

        @functools.wraps(function)
        def gathers(*args: Any, **kwargs: Any) -> Generator[Any, None, Any]:
            return (yield from _gather(function(*args, **kwargs), announce))

        return gathers

    @functools.wraps(function)
    def calls(*args: Any, **kwargs: Any) -> Any:
        value = function(*args, **kwargs)
        if not isinstance(value, GeneratorType):
            return value
        return exhaust(_gather(value, announce), lambda metadata: None)

    return calls


def exhaust(generator: Generator[Any, None, Any], take: Callable[[Any], object]) -> Any:
    """What a generator returns when it has yielded everything; each item is handed to ``take``."""
    while True:
        try:
            take(next(generator))
        except StopIteration as end:
            return end.value


def _gather(generator: Generator[Any, Any, Any], announce: Announce | None) -> Generator[Any, None, Any]:
    from airflow.sdk.definitions.asset.metadata import Metadata

    gatherer = Gatherer()
    has_metadata = False
    try:
        while True:
            try:
                item = next(generator)
            except StopIteration as end:
                if end.value is not None or (has_metadata and not gatherer.count):
                    return end.value
                return gatherer.end()
            if isinstance(item, Metadata):
                has_metadata = True
                yield item
            elif gatherer.add(item) and announce is not None:
                announce(gatherer)
    finally:
        gatherer.close()
