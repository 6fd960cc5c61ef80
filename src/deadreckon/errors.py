"""Exceptions: each message says what was wrong, where, and what to do about it.

The command line turns these into one line on stderr and the exit code that the class carries.
"""

from __future__ import annotations


class DeadreckonError(Exception):
    """Base of every error that deadreckon raises on purpose."""

    exit_code = 1


class UsageError(DeadreckonError):
    """The request does not make sense: an unknown name, a wrong option, too few tokens."""

    exit_code = 2


class InputError(DeadreckonError):
    """The input was read and is not what it should be: a NaN gain, a damaged header."""

    exit_code = 2


class UnreachableError(DeadreckonError):
    """The input could not be read or reached: a missing file, a package that is not installed."""

    exit_code = 3
