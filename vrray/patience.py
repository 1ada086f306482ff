"""Waiting for a storage service that does not answer for a while."""

from __future__ import annotations

import functools
import logging
import time
from collections.abc import Callable
from typing import ParamSpec, TypeVar

WAITS_S = (2.0, 5.0, 10.0, 20.0)  # between attempts; pyarrow's own take some seconds each
# What errors say that pass: a line that is cut, a service that is restarted or wants fewer requests. Others, such as a
# bucket that does not exist, stay.
_PASSING = ("NETWORK_CONNECTION", "SERVICE_UNAVAILABLE", "SLOW_DOWN", "INTERNAL_FAILURE", "REQUEST_TIMEOUT", "Timeout")
_P = ParamSpec("_P")
_R = TypeVar("_R")

log = logging.getLogger(__name__)


def patient(method: Callable[_P, _R]) -> Callable[_P, _R]:
    """A method that is called again where its storage service does not answer; it must be harmless to repeat.

    Raises:
        OSError: of another kind, or the service did not answer to the last attempt either.
    """

    @functools.wraps(method)
    def again(*args: _P.args, **keywords: _P.kwargs) -> _R:
        for wait in WAITS_S:
            try:
                return method(*args, **keywords)
            except OSError as error:
                if not any(text in str(error) for text in _PASSING):
                    raise
                log.warning("the storage does not answer, asked again in %g s: %s", wait, error)
            time.sleep(wait)
        return method(*args, **keywords)

    return again
