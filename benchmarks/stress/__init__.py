"""Try to break the package: fuzzing, mutation tests, ranks, kills."""
