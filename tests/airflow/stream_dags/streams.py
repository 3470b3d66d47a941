"""Tasks that yield: what their consumers get, ahead of their end or after it."""

from __future__ import annotations

from airflow.sdk import Asset, Metadata, dag, task


def values():
    @task
    def numbers():
        yield from range(1000)

    @task
    def squares(numbers):
        for number in numbers:
            yield number * number

    @task
    def summary(squares):
        return [len(squares), squares[-1], squares[:3], sum(squares), squares == [n * n for n in range(1000)]]

    summary(squares(numbers()))

    @task
    def words():
        return (word for word in ("a", "bc", "def"))

    @task
    def long(word):
        return len(word)

    @task
    def all_of(lengths):
        return list(lengths)

    all_of(long.expand(word=words()))

    @task
    def spelled(word):
        yield from word

    @task
    def first_of_each(words):
        return [word[0] for word in words]

    first_of_each(spelled.expand(word=words()))

    @task
    def nothing():
        yield from ()

    @task
    def count(items):
        return len(items)

    count.override(task_id="count_nothing")(nothing())

    @task(outlets=[Asset("headrace_streams")])
    def metadata():
        yield Metadata(Asset("headrace_streams"), extra={"rows": 3})

    @task
    def is_none(value):
        return value is None

    is_none.override(task_id="metadata_alone_is_no_value")(metadata())

    @task
    def returns():
        yield "dropped"
        return "kept"

    returns()

    @task(do_xcom_push=False)
    def pushes_nothing():
        yield 1

    is_none.override(task_id="is_not_pushed")(pushes_nothing())


dag("stream_values", schedule=None)(values)()
dag("stream_values_local", schedule=None, default_args={"executor": "LocalExecutor"})(values)()
