"""Which consumers may run ahead of Airflow: those whose function needs only its arguments; contained, or as said."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from airflow.providers.standard.operators.empty import EmptyOperator
from airflow.sdk import DAG, task, task_group

from headrace_airflow import candidates

TAG, NO_TAG = candidates.TAG, candidates.NO_TAG
YES = {"headrace": {"stream": True}}
NO = {"headrace": {"stream": False}}


@task
def produces():
    yield 1


@task
def consumes(items, other=None):
    return items


@task
def looks_at_its_run(items, run_id=None):
    return items


@task
def takes_anything(items, **context):
    return items


@task.branch
def branches(items):
    return "somewhere"


@task
async def awaits(items):
    return items


@task(multiple_outputs=True)
def gives_several(items):
    return {"items": items}


def found_in(
    make: Callable[[Any], Any], tags: tuple[str, ...] = (TAG,), streaming: str = "produces", **options: Any
) -> list[candidates.Candidate]:
    """The candidates in a DAG of a producer and what is made of its value."""
    with DAG("dag", schedule=None, tags=tags, **options) as dag:
        make(produces())
    return list(candidates.consumers(dag.task_dict["produces"], set(streaming.split())))


def offered(make: Callable[[Any], Any], **how: Any) -> set[str]:
    """Their ids."""
    return {found.operator.task_id for found in found_in(make, **how)}


def test_a_plain_consumer_is_one() -> None:
    assert offered(consumes) == {"consumes"}
    assert offered(lambda items: consumes([items, {"key": (items, 1.5, None)}], "text")) == {"consumes"}
    assert offered(lambda items: [consumes(items), consumes(items)]) == {"consumes", "consumes__1"}


@pytest.mark.parametrize(
    ("tags", "config", "ahead"),
    [
        ((), {}, "contained"),
        ((TAG,), {}, "as it is"),
        ((NO_TAG,), {}, "not"),
        ((TAG, NO_TAG), {}, "not"),
        ((), YES, "as it is"),
        ((NO_TAG,), YES, "as it is"),
        ((), NO, "not"),
        ((TAG,), NO, "not"),
        ((TAG,), {"headrace": {"cpus": 2}}, "as it is"),
        ((), {"headrace": {"stream": "yes"}}, "not"),
    ],
)
def test_the_author_decides(tags: tuple[str, ...], config: dict[str, Any], ahead: str) -> None:
    found = found_in(consumes.override(executor_config=config), tags)
    assert ["contained" if it.contained else "as it is" for it in found] == ([] if ahead == "not" else [ahead])


CALLBACKS = ("on_success_callback", "on_failure_callback", "on_retry_callback", "on_skipped_callback")


@pytest.mark.parametrize("name", CALLBACKS)
def test_whose_callbacks_may_look_at_what_it_leaves_in_memory_is_none_unless_its_author_says_so(name: str) -> None:
    watched = consumes.override(**{name: print})
    assert offered(watched, tags=()) == set()
    assert offered(watched) == {"consumes"}


def test_the_author_decides_for_producers_too() -> None:
    with DAG("dag", schedule=None) as dag:
        produces()
        produces.override(task_id="says_no", executor_config=NO)()
    assert [candidates.may_feed(dag.task_dict[name]) for name in ("produces", "says_no")] == [True, False]


def test_what_it_declares_comes_along() -> None:
    with DAG("dag", schedule=None) as dag:
        consumes.override(executor_config={"headrace": {"stream": True, "cpus": 2}})(produces())
    ((_, needs, _),) = candidates.consumers(dag.task_dict["produces"], {"produces"})
    assert needs.cpus == 2.0


@pytest.mark.parametrize(
    "make",
    [
        looks_at_its_run,
        takes_anything,
        branches,
        awaits,
        gives_several,
        lambda items: consumes.expand(items=items),
        lambda items: consumes(items, "{{ ds }}"),
        lambda items: consumes(items, "a line\n"),
        lambda items: consumes(items, "two\r\nlines"),
        lambda items: consumes(items, object()),
        lambda items: consumes(items["key"]),
        lambda items: consumes(items.map(str)),
        lambda items: items >> EmptyOperator(task_id="empty"),
        *(
            lambda items, option=option: consumes.override(**option)(items)
            for option in (
                {"trigger_rule": "all_done"},
                {"executor": "LocalExecutor"},
                {"depends_on_past": True},
                {"run_as_user": "somebody"},
                {"on_execute_callback": print},
                {"pre_execute": print},
                {"templates_dict": {"a": "b"}},
            )
        ),
    ],
)
def test_others_are_none(make: Callable[[Any], Any]) -> None:
    assert offered(make) == set()


@pytest.mark.parametrize(
    "option", [{"render_template_as_native_obj": True}, {"jinja_environment_kwargs": {"variable_start_string": "<<"}}]
)
def test_a_text_that_is_more_than_a_text_needs_airflow(option: dict[str, Any]) -> None:
    assert offered(lambda items: consumes(items, "12"), **option) == set()
    assert offered(lambda items: consumes(items, 12), **option) == {"consumes"}


def test_one_in_a_mapped_group_is_none_and_in_a_plain_group_is_one() -> None:
    @task_group
    def group(items):
        consumes(items)

    assert offered(group) == {"group.consumes"}
    assert offered(lambda items: group.expand(items=items)) == set()


def test_all_that_a_consumer_waits_for_must_stream() -> None:
    def make(items: Any) -> None:
        consumes(items, produces.override(task_id="also")())

    assert offered(make) == set()
    assert offered(make, streaming="produces also") == {"consumes"}
    assert offered(lambda items: EmptyOperator(task_id="before") >> consumes(items)) == set()


def test_arguments_are_made_of_the_streams() -> None:
    with DAG("dag", schedule=None) as dag:
        consumes([produces(), 1], other={"a": ("b",)})
    args, kwargs = candidates.arguments(dag.task_dict["consumes"], str.upper)
    assert (args, kwargs) == ([["PRODUCES", 1]], {"other": {"a": ("b",)}})
