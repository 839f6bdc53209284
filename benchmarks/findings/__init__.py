"""How often the findings are right, on runs with a planted fault and on healthy ones.

A file in ``planted/`` holds the scenarios of one finding, a file in ``healthy/`` the runs on one task; both
are found by being there. ``python -m benchmarks.findings --help`` says how the table is made.
"""
