"""Experiments on small tasks, with the runs, rows and reports that they share."""
