"""Which consumers of a stream may run ahead of Airflow; in a zygote, which holds their DAG parsed. Nothing is changed.

The author has to say yes: with the tag ``headrace-stream`` at the DAG, or for one task with
``executor_config={"headrace": {"stream": True}}`` (or ``False``, which goes before the tag). And the task has to be one
whose function needs nothing but its arguments: everything else about a task begins when Airflow starts it.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Set
from typing import Any, Final

from headrace.errors import ConfigError
from headrace_airflow import generators
from headrace_airflow.settings import Needs, needs_of

TAG: Final = "headrace-stream"

_HOOKS: Final = ("_pre_execute_hook", "_post_execute_hook", "on_execute_callback", "templates_dict", "template_ext")
_CONDITIONS: Final = ("depends_on_past", "wait_for_downstream", "run_as_user", "is_setup", "is_teardown")


class _CannotResolve(Exception):
    """An argument needs Airflow."""


def may_feed(operator: Any) -> bool:
    """Whether others may follow a task's stream while it runs."""
    return _needs(operator).stream is not False


def consumers(operator: Any, streaming: Set[str]) -> Iterator[tuple[Any, Needs]]:
    """The consumers of a task that could run ahead now, and what they declare.

    Args:
        operator: whose stream has begun.
        streaming: the ids of the tasks of its run that stream.
    """
    for consumer in operator.downstream_list:
        needs = _needs(consumer)
        says = needs.stream if needs.stream is not None else TAG in operator.dag.tags
        if says and consumer.upstream_task_ids <= streaming and _is_plain(consumer, operator):
            yield consumer, needs


def arguments(operator: Any, stream_of: Callable[[str], Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a task's function is called with.

    Args:
        operator: one of ``consumers``.
        stream_of: what stands for the value of the task with this id.
    """
    op_args, op_kwargs = _resolved(list(operator.op_args), stream_of), _resolved(dict(operator.op_kwargs), stream_of)
    return op_args, op_kwargs


def _needs(operator: Any) -> Needs:
    try:
        return needs_of(operator.executor_config)
    except ConfigError:  # said when the task is submitted
        return Needs(stream=False)


def _is_plain(consumer: Any, producer: Any) -> bool:
    from airflow.sdk import TriggerRule

    if not generators.keeps_items(consumer):  # among others, a mapped one
        return False
    hooked = any(getattr(consumer, name, None) for name in (*_HOOKS, *_CONDITIONS))
    return (
        not hooked
        and consumer.trigger_rule == TriggerRule.ALL_SUCCESS
        and next(consumer.iter_mapped_task_groups(), None) is None
        and consumer.executor == producer.executor
        and not inspect.iscoroutinefunction(consumer.python_callable)
        and not inspect.isasyncgenfunction(consumer.python_callable)
        and _needs_only_arguments(consumer)
    )


def _needs_only_arguments(operator: Any) -> bool:
    """Whether the function takes nothing from the context, and no argument is a template."""
    from airflow.sdk.definitions.context import KNOWN_CONTEXT_KEYS

    parameters = inspect.signature(operator.python_callable).parameters.values()
    if any(p.kind is p.VAR_KEYWORD or p.name in KNOWN_CONTEXT_KEYS for p in parameters):
        return False
    try:
        arguments(operator, lambda task_id: None)
    except _CannotResolve:
        return False
    return True


def _resolved(value: Any, stream_of: Callable[[str], Any]) -> Any:
    if _is_return_value(value):
        return stream_of(value.operator.task_id)
    if type(value) in (list, tuple):
        return type(value)(_resolved(item, stream_of) for item in value)
    if type(value) is dict:
        return {key: _resolved(item, stream_of) for key, item in value.items()}
    if value is None or type(value) in (bool, int, float, bytes) or (type(value) is str and _is_no_template(value)):
        return value
    raise _CannotResolve


def _is_return_value(value: Any) -> bool:
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.definitions.xcom_arg import PlainXComArg

    return isinstance(value, PlainXComArg) and value.key == BaseXCom.XCOM_RETURN_KEY


def _is_no_template(text: str) -> bool:
    return not any(mark in text for mark in ("{{", "{%", "{#"))
