"""When SIGINT becomes KeyboardInterrupt, and when it waits."""

import signal
import threading

import pytest

from zo_kernels.interrupts import InterruptGate


def test_open_gate_lets_an_interrupt_through() -> None:
    before = signal.getsignal(signal.SIGINT)
    with InterruptGate() as gate:
        with pytest.raises(KeyboardInterrupt), gate.open():
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)  # closed again
    assert signal.getsignal(signal.SIGINT) is before


def test_closed_gate_keeps_an_interrupt_for_the_next_opening() -> None:
    reached = False
    with InterruptGate() as gate:
        with gate.open():
            pass
        signal.raise_signal(signal.SIGINT)
        with pytest.raises(KeyboardInterrupt), gate.open():
            reached = True
    assert not reached


def test_gate_does_nothing_outside_the_main_thread() -> None:
    before = signal.getsignal(signal.SIGINT)
    seen = []

    def enter() -> None:
        with InterruptGate() as gate, gate.open():
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]
