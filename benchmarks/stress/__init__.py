"""What tries to break the package: fuzzing, mutation."""
