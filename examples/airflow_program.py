"""The same program as in plain_python.py, as an Airflow DAG: put it into a DAGs folder; settings choose Headrace.

AIRFLOW__CORE__EXECUTOR=headrace_airflow.HeadraceExecutor
AIRFLOW__CORE__XCOM_BACKEND=headrace_airflow.HeadraceXCom
"""

from airflow.sdk import dag, task


@task
def numbers():
    return list(range(300_000))


@task
def func1(numbers):
    return sum(n * n for n in numbers)


@task
def func2(numbers):
    return sum(1 for n in numbers if n % 7 == 0)


@task
def func3(squares, sevens):
    return f"{squares} / {sevens} = {squares / sevens:.1f}"


@dag(schedule=None)
def program():
    input1 = numbers()
    result1 = func1(input1)
    result2 = func2(input1)
    func3(result1, result2)


program()
