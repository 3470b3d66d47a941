"""Runs Airflow's own example DAGs on its LocalExecutor and on Headrace, and compares every task instance and XCom.

``python -m compat_suite.dags --help`` has the commands; the recipes beside this file say which DAGs of which release.
"""
