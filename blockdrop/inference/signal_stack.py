"""Keeps OpenVINO from taking away the stack that signal handlers run on."""

from __future__ import annotations

import contextlib
import ctypes
import sys
from collections.abc import Iterator

DISABLED = 2


class SignalStack(ctypes.Structure):
    """`stack_t` of sigaltstack(2) on Linux."""

    _fields_ = (("start", ctypes.c_void_p), ("flags", ctypes.c_int), ("size", ctypes.c_size_t))


def signal_stack() -> SignalStack:
    """The one of this thread."""
    stack = SignalStack(None, DISABLED, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).sigaltstack(None, ctypes.byref(stack))
    return stack


@contextlib.contextmanager
def kept_signal_stack() -> Iterator[None]:
    """Puts back, in the end, the stack for signals that this thread had.

    OpenVINO 2026.4 gives the thread another one with every model that it compiles, and takes it away with the
    model. Unless the last one made goes first, the thread is left with a stack that is freed, and the next signal,
    such as Ctrl-C, is a segmentation fault. A model whose stack isn't in use takes nothing away.
    """
    before = signal_stack()
    try:
        yield
    finally:
        if sys.platform == "linux":
            ctypes.CDLL(None).sigaltstack(ctypes.byref(before), None)
