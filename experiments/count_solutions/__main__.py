"""Run or report the experiment; see `protocol.yaml`."""

from experiments.protocol import main

main("count_solutions")
