"""Byte ranges over HTTP: checked, bounded in bytes and in time, and patient with servers that have a bad moment.

The connection is huggingface_hub's own session, so its proxies and certificates hold here too. Only an answer 206 with
exactly the range that was asked for is taken; of any other the body is never read.
"""

from __future__ import annotations

import random
import re
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from importlib import import_module
from typing import Any
from urllib.parse import urljoin, urlsplit

from deadreckon.errors import UnreachableError

_REDIRECTS = {301, 302, 303, 307, 308}
_BUSY = {408, 429, 500, 502, 503, 504}
_EXPIRED = {401, 403, 404, 410}
_HOPS = 6
_CONTENT_RANGE = re.compile(r"bytes (\d{1,19})-(\d{1,19})/(\d{1,19}|\*)")


@dataclass(frozen=True)
class Patience:
    """How long to put up with a server.

    Attributes:
        attempts: times that one range is asked for.
        connections: times that a connection is tried.
        first_wait: seconds before the second attempt; they double from there.
        longest_wait: most seconds to wait because the server says so (Retry-After).
        silence: seconds without a byte that end an attempt.
        grace: seconds in which a range must have come, waits between attempts not counted, and
        slowest: one more for as many bytes of it as this.
    """

    attempts: int = 5
    connections: int = 2
    first_wait: float = 0.5
    longest_wait: float = 60.0
    silence: float = 10.0
    grace: float = 30.0
    slowest: float = 50_000.0


PATIENCE = Patience()


class NoAnswerError(UnreachableError):
    """The server could not be reached, or stayed busy or broken through all attempts."""


class _AgainError(Exception):
    """An attempt failed in a way that another may not."""

    def __init__(self, why: str, after: float = 0.0, attempts: int | None = None) -> None:
        super().__init__(why)
        self.after, self.attempts = after, attempts


@dataclass
class Link:
    """One file's address.

    Attributes:
        url: as it is named.
        label: how an error names it.
        size: bytes, None until the server said.
        final: where its redirects ended, asked directly from then on.
    """

    url: str
    label: str
    size: int | None = None
    final: str | None = None


@dataclass
class Web:
    """A connection to one server, with what went over it.

    Attributes:
        origin: of the server, e.g. ``https://huggingface.co``.
        headers: sent to it and to no other host that it redirects to.
        explain: what an answer that is no success means, from its label, status and headers.
        requests: sent so far, each redirect that was followed counted.
        received: bytes of bodies so far.
    """

    origin: str
    headers: Mapping[str, str]
    explain: Callable[[str, int, Mapping[str, str]], str]
    requests: int = 0
    received: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def whole(self, link: Link, limit: int) -> bytes:
        """A whole file of at most `limit` bytes.

        Args:
            link: the file.
            limit: a longer one is refused.

        Returns:
            Its bytes.

        Raises:
            NoAnswerError: the server cannot be reached, or is busy or slow beyond patience.
            UnreachableError: it says no.
        """
        return self._patiently(link, None, limit)

    def range(self, link: Link, start: int, stop: int) -> bytes:
        """The bytes ``[start, stop)`` of a file; fewer only where it ends before and its size was not known.

        Args:
            link: the file; its size is filled in.
            start: first byte.
            stop: the byte after the last.

        Returns:
            The bytes.

        Raises:
            NoAnswerError: the server cannot be reached, or is busy or slow beyond patience.
            UnreachableError: it says no, or does not serve ranges.
        """
        return self._patiently(link, start, stop)

    def _patiently(self, link: Link, start: int | None, stop: int) -> bytes:
        got = bytearray()
        patience = PATIENCE
        deadline = time.monotonic() + patience.grace + (stop - (start or 0)) / patience.slowest
        wait, attempt = patience.first_wait, 0
        while True:
            attempt += 1
            if start is None:
                got.clear()
            try:
                self._once(link, start, stop, got, deadline)
            except _AgainError as error:
                over = attempt >= min(error.attempts or patience.attempts, patience.attempts)
                if over or error.after > patience.longest_wait or time.monotonic() > deadline:
                    later = f" and asks to come back in {error.after:.0f} s" if error.after else ""
                    raise NoAnswerError(
                        f"{link.label}: {error}{later} (tried {attempt} time{'s' * (attempt > 1)}): try again later"
                    ) from None
                pause = max(error.after, wait * random.uniform(0.5, 1.0))
                time.sleep(pause)
                deadline += pause
                wait *= 2
            else:
                return bytes(got)

    def _once(self, link: Link, start: int | None, stop: int, got: bytearray, deadline: float) -> None:
        """One attempt at what is still missing."""
        session, http = _session()
        url = link.final or link.url
        begin = None if start is None else start + len(got)
        if begin is not None and link.size is not None:
            stop = min(stop, link.size)
        try:
            for _ in range(_HOPS):
                headers = {"Accept-Encoding": "identity"}
                if _origin(url) == self.origin:
                    headers |= self.headers
                if begin is not None:
                    headers["Range"] = f"bytes={begin}-{stop - 1}"
                with self._counting:
                    self.requests += 1
                with session.stream(
                    "GET", url, headers=headers, follow_redirects=False, timeout=PATIENCE.silence
                ) as response:
                    if response.status_code in _REDIRECTS and "location" in response.headers:
                        url = _next(link, url, response.headers["location"])
                        continue
                    expected = self._accepted(link, url, response, begin, stop)
                    most = stop if expected is None else expected
                    self._receive(link, response, got, expected, most, deadline)
                link.final = url
                return
        except (http.ConnectError, http.ConnectTimeout) as error:
            why = f"{urlsplit(url).hostname} cannot be reached ({error})"
            raise _AgainError(why, attempts=PATIENCE.connections) from None
        except http.TimeoutException:
            raise _AgainError(f"nothing came for {PATIENCE.silence:g} s") from None
        except http.HTTPError as error:
            raise _AgainError(f"the connection broke ({error})") from None
        except http.InvalidURL:
            raise UnreachableError(f"{link.label}: not an address that can be asked: {url[:200]!r}") from None
        raise UnreachableError(f"{link.label}: redirected more than {_HOPS} times")

    def _accepted(self, link: Link, url: str, response: Any, begin: int | None, stop: int) -> int | None:
        """Bytes to expect of the body, None where only the limit is known; raises for what is not to be read."""
        status, headers = response.status_code, response.headers
        if status in _BUSY:
            raise _AgainError(f"the server answered {status}", _retry_after(headers.get("retry-after", "")))
        if url == link.final != link.url and status in _EXPIRED:
            link.final = None  # addresses that a redirect signs expire: ask for a new one
            raise _AgainError(f"the server answered {status}", attempts=2)
        if status == 416:
            raise UnreachableError(f"{link.label}: the server says that the file ends before byte {stop}")
        if not 200 <= status < 300 or (begin is None and status != 200):
            raise UnreachableError(self.explain(link.label, status, headers))
        if headers.get("content-encoding", "identity") not in {"", "identity"}:
            raise UnreachableError(f"{link.label}: the server sends it compressed, although asked not to")
        if begin is None:
            length = headers.get("content-length", "")
            expected = int(length) if re.fullmatch(r"\d{1,19}", length) else link.size
            if expected is not None and expected > stop:
                raise UnreachableError(f"{link.label}: {expected} bytes are too many (at most {stop} are read)")
            return expected
        if status != 206:
            raise UnreachableError(
                f"{link.label}: the server ignores byte ranges (it answered {status} to one), and the whole file "
                "is not downloaded from here: download it and name the file"
            )
        return _length_of_range(link, headers.get("content-range", ""), begin, stop)

    def _receive(
        self, link: Link, response: Any, got: bytearray, expected: int | None, most: int, deadline: float
    ) -> None:
        """Add the body to what has come."""
        before = len(got)
        for chunk in response.iter_raw():
            got += chunk
            with self._counting:
                self.received += len(chunk)
            if len(got) - before > most:
                raise UnreachableError(f"{link.label}: the server sends more than the {most} bytes that were expected")
            if time.monotonic() > deadline:
                raise _AgainError(f"only {len(got)} bytes came in time: the connection is too slow", attempts=1)
        if expected is not None and len(got) - before < expected:
            raise _AgainError(f"the connection ended after {len(got)} bytes of {before + expected}")


def _length_of_range(link: Link, content_range: str, begin: int, stop: int) -> int:
    """Bytes of a range that is the one asked for; the file's size goes into the link."""
    match = _CONTENT_RANGE.fullmatch(content_range)
    total = int(match[3]) if match and match[3] != "*" else link.size
    end = stop if total is None or link.size is not None else min(stop, total)
    if match is None or total is None or (int(match[1]), int(match[2]) + 1) != (begin, end):
        raise UnreachableError(
            f"{link.label}: asked for bytes {begin} to {stop - 1}, the server sends {content_range[:60]!r}: its "
            "answers cannot be trusted; download the file and name it"
        )
    if link.size is not None and total != link.size:
        raise UnreachableError(f"{link.label}: the server says {total} bytes, and before {link.size}: it has changed")
    link.size = total
    return end - begin


def _next(link: Link, url: str, location: str) -> str:
    """Where a redirect leads."""
    old = urlsplit(url).scheme
    try:
        target = urljoin(url, location)
        new = urlsplit(target).scheme
    except ValueError:
        target, new = "", "nowhere"
    if new not in {"http", "https"} or (old == "https" and new == "http"):
        raise UnreachableError(f"{link.label}: redirected from {old}: to {new}:, which is not followed")
    return target


def _origin(url: str) -> str:
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc}".lower()


def _retry_after(value: str) -> float:
    """Seconds that a Retry-After header asks for, as a number or as a date."""
    if re.fullmatch(r"\d{1,9}", value.strip()):
        return float(value)
    from email.utils import parsedate_to_datetime

    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError, OverflowError):
        return 0.0


def _session() -> tuple[Any, Any]:
    """huggingface_hub's session, and the library whose errors it raises (httpx under one of its names)."""
    hub = hub_library()
    errors = import_module("huggingface_hub.errors")
    return hub.get_session(), sys.modules[errors.HfHubHTTPError.__bases__[0].__module__.partition(".")[0]]


def hub_library() -> Any:
    """The package huggingface_hub, imported when it is first needed.

    Returns:
        The module.

    Raises:
        UnreachableError: it is not installed.
    """
    try:
        return import_module("huggingface_hub")
    except ImportError as error:
        raise UnreachableError(
            f"models elsewhere need huggingface_hub ({error}): pip install huggingface_hub"
        ) from None
