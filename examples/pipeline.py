"""Three stages, each a generator or a reader of one: a stage starts with the first item of the one before it."""

import time

import headrace


def read(chunks):
    for number in range(chunks):
        time.sleep(0.02)  # from a disk, or a service
        yield list(range(number * 1000, (number + 1) * 1000))


def transform(blocks):
    for block in blocks:
        time.sleep(0.02)
        yield [value for value in block if value % 7 == 0]


def aggregate(blocks):
    total = 0
    for block in blocks:
        time.sleep(0.02)
        total += sum(block)
    return total


with headrace.Runtime() as rt:
    blocks = rt.submit(read, 25)
    sevens = rt.submit(transform, blocks)
    total = rt.submit(aggregate, sevens)
    print(total.result())  # after little more than the time of one stage
