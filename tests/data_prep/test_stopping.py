"""SIGTERM ends a command as Ctrl-C does, whatever else the signal broke."""

from __future__ import annotations

import os
import signal

import pytest

from data_prep.command import stopping_on_sigterm


def test_sigterm_is_a_keyboard_interrupt_and_only_inside() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stopping_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is before


def test_what_fails_after_the_signal_is_part_of_the_stop() -> None:
    with pytest.raises(KeyboardInterrupt), stopping_on_sigterm():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        finally:
            raise EOFError("the manager process is gone")


def test_what_fails_without_a_signal_stays_as_it_is() -> None:
    with pytest.raises(EOFError), stopping_on_sigterm():
        raise EOFError
