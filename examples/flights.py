"""Which airline's delays can be foreseen? All 336,776 flights from New York in 2013, on any dask scheduler.

    python examples/flights.py                                  # on Headrace
    python examples/flights.py --scheduler threads --time       # or any other that dask knows

Needs the extra "bench". The program itself is headrace_dask/bench/workloads/flights.py: dask and nothing of Headrace.
"""

import argparse
import time

import dask

import headrace_dask  # noqa: F401  (makes the scheduler's name known)
from headrace_dask.bench.workloads.flights import pipeline

parser = argparse.ArgumentParser()
parser.add_argument("--scheduler", default="headrace", help="headrace, threads, processes, sync")
parser.add_argument("--time", action="store_true", help="print how long it took")


def main() -> None:
    options = parser.parse_args()
    program = pipeline()
    began = time.perf_counter()
    delays, models = dask.compute(*program, scheduler=options.scheduler)
    took_s = time.perf_counter() - began

    print("airline  flights  mean delay  late   told apart  by")
    for model in models:
        row = delays.loc[model["carrier"]]
        print(
            f"{model['carrier']:7}  {row['arr_delay', 'count']:7.0f}  {row['arr_delay', 'mean']:6.1f} min  "
            f"{row['late', 'mean']:4.0%}  {model['auc']:10.2f}  {model['strongest']}"
        )
    if options.time:
        print(f"{took_s:.2f} s on {options.scheduler}")


if __name__ == "__main__":
    main()
