"""Runs real Airflows side by side, on its own executor and on Headrace's, and compares what they do.

:class:`RealAirflow` (module ``airflow``) is an Airflow for as long as a block lasts; the tests, the demonstration, the
benchmark and the runs of Airflow's example DAGs all stand on it. Needs Airflow, and for PostgreSQL what ``databases``
says.
"""
