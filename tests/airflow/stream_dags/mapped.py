"""Mapped tasks before and behind generators: they run as ever, whatever the tag says."""

from __future__ import annotations

from airflow.sdk import dag, task, task_group

TAGS = ["headrace-stream"]


@task
def words():
    yield from ("a", "bc", "def")


@task
def pairs():
    for number, word in enumerate(("a", "bc", "def")):
        yield {"word": word, "times": number}


@task
def nothing():
    yield from ()


@task
def too_many():
    yield from range(2000)


@task
def long(word):
    return len(word)


@task
def letters(word):
    yield from word


@task
def repeated(word, times):
    return word * times


@task
def nth(items, index):
    return items[index]


@task
def lists(items):
    return [list(item) if hasattr(item, "__iter__") and not isinstance(item, str) else item for item in items]


@task
def lists_both(items, others):
    return [list(items), [list(other) for other in others]]


@dag(schedule=None, tags=TAGS)
def stream_mapped():
    spelled = letters.expand(word=words())
    lists.override(task_id="of_mapped")(spelled)
    lists.override(task_id="of_mapped_by_mapped")(long.override(task_id="long_of_letters").expand(word=spelled))
    lists_both.override(task_id="of_both")(words.override(task_id="more_words")(), spelled)
    lists.override(task_id="of_kwargs")(repeated.expand_kwargs(pairs()))
    lists.override(task_id="of_partial")(nth.partial(items=words.override(task_id="to_all")()).expand(index=[0, 2]))
    shouted = words.override(task_id="to_map")().map(lambda word: word + "!")
    lists.override(task_id="of_map")(long.override(task_id="long_of_shouted").expand(word=shouted))
    zipped = words.override(task_id="to_zip")().zip(pairs.override(task_id="to_zip_too")())
    lists.override(task_id="of_zip")(long.override(task_id="long_of_zipped").expand(word=zipped))

    @task_group
    def group(word):
        return lists.override(task_id="in_group")(letters.override(task_id="letters_in_group")(word))

    lists.override(task_id="of_groups")(group.expand(word=words.override(task_id="to_groups")()))
    long.override(task_id="of_nothing").expand(word=nothing())


@dag(schedule=None, tags=TAGS)
def stream_too_many():
    long.expand(word=too_many())


stream_mapped()
stream_too_many()
