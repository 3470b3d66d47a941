"""Which consumers of a stream may run ahead of Airflow; in a zygote, which holds their DAG parsed. Nothing is changed.

A task must be one whose function needs nothing but its arguments: everything else about a task begins when Airflow
starts it. Whether it may, its author can say: yes or no for a DAG with the tag ``headrace-stream`` or
``headrace-no-stream`` (no goes before yes), for one task with ``executor_config={"headrace": {"stream": True}}`` or
``False`` (which goes before the tags). Who says neither has it run ahead contained (containment.py), and then only if
no code of the author's runs in the task's process after the function, and could look at what that has left in memory.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Set
from typing import Any, Final, NamedTuple

from headrace.errors import ConfigError
from headrace_airflow import generators
from headrace_airflow.settings import Needs, needs_of

TAG: Final = "headrace-stream"
NO_TAG: Final = "headrace-no-stream"

_HOOKS: Final = ("_pre_execute_hook", "_post_execute_hook", "on_execute_callback", "templates_dict", "template_ext")
_CONDITIONS: Final = ("depends_on_past", "wait_for_downstream", "run_as_user", "is_setup", "is_teardown")
_CALLBACKS: Final = ("on_success_callback", "on_failure_callback", "on_retry_callback", "on_skipped_callback")


class _CannotResolve(Exception):
    """An argument needs Airflow."""


class Candidate(NamedTuple):
    """A consumer that could run ahead; ``contained``: its author has not said that it may."""

    operator: Any
    needs: Needs
    contained: bool


def may_feed(operator: Any) -> bool:
    """Whether others may follow a task's stream while it runs."""
    return _needs(operator).stream is not False


def consumers(operator: Any, streaming: Set[str]) -> Iterator[Candidate]:
    """The consumers of a task that could run ahead now.

    Args:
        operator: whose stream has begun.
        streaming: the ids of the tasks of its run that stream.
    """
    for consumer in operator.downstream_list:
        needs = _needs(consumer)
        says = _word_of(operator.dag.tags) if needs.stream is None else needs.stream
        if says is False or not consumer.upstream_task_ids <= streaming or not _is_plain(consumer, operator):
            continue
        contained = says is None
        if not contained or not any(getattr(consumer, name, None) for name in _CALLBACKS):
            yield Candidate(consumer, needs, contained)


def _word_of(tags: Set[str]) -> bool | None:
    return False if NO_TAG in tags else True if TAG in tags else None


def arguments(operator: Any, stream_of: Callable[[str], Any]) -> tuple[list[Any], dict[str, Any]]:
    """What a task's function is called with.

    Args:
        operator: one of ``consumers``.
        stream_of: what stands for the value of the task with this id.
    """
    dag = operator.dag
    text_is_text = not (dag.render_template_as_native_obj or dag.jinja_environment_kwargs)

    def resolved(value: Any) -> Any:
        if _is_return_value(value):
            return stream_of(value.operator.task_id)
        if type(value) in (list, tuple):
            return type(value)(resolved(item) for item in value)
        if type(value) is dict:
            return {key: resolved(item) for key, item in value.items()}
        if value is None or type(value) in (bool, int, float, bytes):
            return value
        if type(value) is str and text_is_text and _is_no_template(value):
            return value
        raise _CannotResolve

    return resolved(list(operator.op_args)), resolved(dict(operator.op_kwargs))


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


def _is_return_value(value: Any) -> bool:
    from airflow.sdk.bases.xcom import BaseXCom
    from airflow.sdk.definitions.xcom_arg import PlainXComArg

    return isinstance(value, PlainXComArg) and value.key == BaseXCom.XCOM_RETURN_KEY


def _is_no_template(text: str) -> bool:
    """Whether Jinja leaves a text as it is; it changes ends of lines, too."""
    return not any(mark in text for mark in ("{{", "{%", "{#", "\r")) and not text.endswith("\n")
