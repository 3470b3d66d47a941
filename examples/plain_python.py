"""func1 and func2 share nothing but their input, so they run side by side; func3 waits for both."""

import headrace


def func1(numbers):
    return sum(n * n for n in numbers)


def func2(numbers):
    return sum(1 for n in numbers if n % 7 == 0)


def func3(squares, sevens):
    return f"{squares} / {sevens} = {squares / sevens:.1f}"


with headrace.Runtime() as rt:
    input1 = list(range(300_000))
    result1 = rt.submit(func1, input1)
    result2 = rt.submit(func2, input1)
    result3 = rt.submit(func3, result1, result2)  # futures may be arguments
    print(result3.result())
