"""Ctrl-C and SIGTERM that wait for the current step to end, so that what is saved is whole."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType
from typing import Any, NoReturn

log = logging.getLogger("wmgym")

CONNECTION_LOST = (EOFError, ConnectionError)
"""What environments in processes of their own raise once they are gone: Ctrl-C in a terminal reaches them too."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class InterruptGuard:
    """Within the block the first SIGINT or SIGTERM only sets `requested`; a second one interrupts at once.

    Outside the main thread, where Python delivers no signals, it does nothing.

    Example:
        >>> with InterruptGuard() as interrupt:
        ...     signal.raise_signal(signal.SIGTERM)
        ...     interrupt.requested
        True
    """

    def __init__(self) -> None:
        self.received: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.received is not None

    def __enter__(self) -> InterruptGuard:
        if threading.current_thread() is threading.main_thread():
            self._previous = {number: signal.signal(number, self._request) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)

    def leave(self) -> NoReturn:
        """End as the signal received would have ended the program.

        Raises:
            KeyboardInterrupt: after SIGINT.
            SystemExit: after SIGTERM, with the exit status 143 that shells give it.
        """
        if self.received == signal.SIGTERM:
            raise SystemExit(128 + signal.SIGTERM)
        raise KeyboardInterrupt

    def _request(self, number: int, frame: FrameType | None) -> None:
        first, self.received = self.received is None, number
        if not first:
            self.leave()
        log.warning("Stopping after the present step or update, to save. A second signal stops at once, unsaved.")
