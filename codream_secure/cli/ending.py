"""How a command ends when somebody wants it to end."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager

# A scheduler sends the first, a terminal that closes the second; Windows has no SIGHUP.
_ENDS = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]


def end_like_interrupt() -> None:
    """Let SIGTERM and SIGHUP do what Ctrl-C does, unless they are ignored, as under nohup."""
    if threading.current_thread() is not threading.main_thread():
        return
    for number in _ENDS:
        if signal.getsignal(number) is signal.SIG_DFL:
            signal.signal(number, signal.default_int_handler)


@contextmanager
def undisturbed() -> Iterator[None]:
    """Ignore SIGTERM and SIGHUP while results are written; Ctrl-C still works."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in _ENDS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
