"""``python -m headrace_airflow.bench``."""

import sys

from headrace_airflow.bench.cli import main

sys.exit(main(sys.argv[1:]))
