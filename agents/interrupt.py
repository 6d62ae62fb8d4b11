"""Ctrl-C that waits for the current step to end, so that what is saved is whole."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

CONNECTION_LOST = (EOFError, ConnectionError)
"""What environments in processes of their own raise once they are gone: Ctrl-C in a terminal reaches them too."""


class InterruptGuard:
    """Within the block the first SIGINT only sets `requested`; a second one interrupts at once.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Example:
        >>> with InterruptGuard() as interrupt:
        ...     signal.raise_signal(signal.SIGINT)
        ...     interrupt.requested
        True
    """

    def __init__(self) -> None:
        self.requested = False
        self._previous: Any = None

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGINT, self._request)
        return self

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)

    def _request(self, number: int, frame: FrameType | None) -> None:
        if self.requested:
            raise KeyboardInterrupt
        self.requested = True
