"""Runs other people's test suites on stock schedulers and on Headrace, and prints what only Headrace fails.

``python -m compat_suite --help`` has the commands; ``recipes/*.toml`` say what is run, and on which versions.
"""
