"""SIGTERM and Ctrl-C, noted when they come and acted on where a run can be left and resumed."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType
from typing import Any

from lightning.pytorch.trainer.connectors.signal_connector import _HandlersCompose
from lightning.pytorch.utilities import rank_zero_only
from rich import get_console

NOTES = {
    signal.SIGTERM: "finishing the rollout, then saving",
    signal.SIGINT: "finishing the rollout, then saving; Ctrl-C again leaves at once",
}


class Interruptions:
    """Takes the place of the handlers of signals that end a run, or have SLURM requeue it.

    Lightning's own act in the middle of an update, whose half would be saved. When its trainer
    ends, it brings back what was there before.

    Attributes:
        pending: Number of the last signal, 0 if there was none.
    """

    def __init__(self) -> None:
        """Listen to nothing yet."""
        self.pending = 0
        self._requeue: dict[int, Any] = {}

    def listen(self) -> None:
        """Take over the signals; called when Lightning has set its handlers."""
        if threading.current_thread() is not threading.main_thread():
            return
        for number in NOTES:
            signal.signal(number, self._note)
        for number in signal.valid_signals() - {signal.SIGTERM, signal.SIGINT}:
            handler = signal.getsignal(number)
            if isinstance(handler, _HandlersCompose):  # of SLURM's requeueing
                self._requeue[number] = handler
                signal.signal(number, self._note)

    def requeue(self, number: int) -> bool:
        """Save and requeue as Lightning does, if that is what a signal is for."""
        if number not in self._requeue:
            return False
        self.pending = 0
        self._requeue[number](number, None)
        return True

    def _note(self, number: int, frame: FrameType | None) -> None:
        again, self.pending = self.pending == number == signal.SIGINT, number
        if again:
            get_console().show_cursor()  # a live view hides it
            os._exit(exit_code(number))
        if vars(rank_zero_only)["rank"] == 0 and number in NOTES:
            name = signal.Signals(number).name
            os.write(2, f"\n{name}: {NOTES[signal.Signals(number)]}\n".encode())


def exit_code(number: int) -> int:
    """Return what a shell reports of a program that a signal has ended: 130 for Ctrl-C."""
    return 128 + number
