"""Run or report the control of `checked_arithmetic`; see `protocol.yaml`."""

from experiments.protocol import main

main("checked_arithmetic_rates")
