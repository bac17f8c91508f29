"""Compare groups of runs for `vcppo compare`, and test their differences.

statistics.py computes, measurements.py resamples runs, runs.py and tables.py read, arms.py groups
and pairs, contrasts.py assembles the numbers, cautions.py lists reasons to doubt them, curves.py
draws, output.py and page.py write. None of them needs torch; statistics.py needs scipy, which the
extra `report` installs.
"""
