"""Stress tests of the package: fuzzing, mutation tests, random runs on ranks, kills."""
