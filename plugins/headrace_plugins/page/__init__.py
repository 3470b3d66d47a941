"""The page in Airflow's UI: workers, tasks, the XCom store, and how long tasks wait for the scheduler.

    browser ── static/ ── every 2 s ──▶ app ──▶ observe: what this node's daemons and store say (shared by all viewers)
                                         │──▶ runs: the newest DAG runs in the database ──▶ gaps (pure)
                                         └──▶ view (pure): takes out what this user may not see

Who sees it, and which DAGs' names on it, is decided by Airflow's auth manager.
"""
