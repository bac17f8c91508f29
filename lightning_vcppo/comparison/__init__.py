"""Compare groups of runs for `vcppo compare`: whether a difference is one to believe.

statistics.py computes, measurements.py draws runs again, runs.py and tables.py read, arms.py groups
and pairs, contrasts.py puts the numbers together, cautions.py says what speaks against them,
curves.py draws, output.py and page.py write. None of them needs torch; statistics.py needs scipy,
which the extra `report` installs.
"""
