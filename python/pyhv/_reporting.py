"""What everything with a `tick()` does with a callback that raises, and with what the native side warns of."""

from __future__ import annotations

import logging
from typing import ClassVar


class Reporting:
    """Goes in front of the native base, whose tick calls `_callback_failed` and `_warn`."""

    __slots__ = ()

    #: Not called `_log`, which a program's subclass might well have for itself.
    _pyhv_log: ClassVar[logging.Logger]

    def on_error(self, exc: Exception) -> None:
        """A callback raised `exc`, which has been logged."""

    def _callback_failed(self, callback: str, exc: Exception) -> None:
        self._pyhv_log.error("%s of %s raised", callback, type(self).__name__, exc_info=exc)
        if callback != "on_error":
            self._tell_on_error(exc)

    def _tell_on_error(self, exc: Exception) -> None:
        try:
            self.on_error(exc)
        except Exception:
            self._pyhv_log.exception("on_error of %s raised", type(self).__name__)

    def _warn(self, text: str) -> None:
        self._pyhv_log.warning("%s", text)
