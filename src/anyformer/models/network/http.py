"""One GET with what a network does to it: timeouts, resets, redirects, limits. Standard library only."""

from __future__ import annotations

import email.message
import email.utils
import http.client
import ipaddress
import random
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import IO, Any
from urllib.parse import urlsplit

from anyformer.core.errors import SourceError

TRIES = 4
BACKOFF = 0.5
"""Seconds before the second try; doubled before each further one, with ±50 % of jitter."""
LONGEST_WAIT = 30.0
"""A server's Retry-After beyond this many seconds is told to the user instead of waited for."""
LONGEST_TRANSFER = 300.0
"""Seconds that one body may take in all, however often a few bytes arrive."""
_PIECE = 1 << 16
_JITTER = random.SystemRandom()  # the model's own seed must not move with the network


class Unreachable(Exception):
    """No answer came, or none that could be used, after all tries."""


@dataclass(frozen=True)
class Answer:
    """Status, headers (names in lower case) and body of what a server said."""

    status: int
    headers: dict[str, str]
    body: bytes


@dataclass(frozen=True)
class Client:
    """GETs with retries, and where they may go."""

    allowed: Callable[[str], bool]
    """Whether an address may be asked; every redirect is asked as well."""
    timeout: float = 15.0
    """Seconds without a byte."""
    sleep: Callable[[float], None] = time.sleep
    progress: Callable[[int, int], None] | None = None
    """Called with the bytes that are there and the bytes in all (0: not known)."""
    tries: int = field(default=TRIES)

    def get(self, url: str, *, headers: Mapping[str, str], limit: int, what: str) -> Answer:
        """The answer to one GET, whatever its status but those of a server in trouble.

        500, 502, 503, 504, timeouts, resets and bodies cut short are tried again, 429 where it asks for a short wait.
        limit: bytes of the body. what: the thing, for messages.
        Raises Unreachable after the last try, SourceError for a forbidden redirect or a body beyond the limit.
        """
        problem = ""
        for attempt in range(self.tries):
            try:
                answer = self._once(url, headers, limit, what)
            except _Trouble as trouble:
                problem = str(trouble)
                if trouble.hopeless:
                    break
                wait = 0.0
            else:
                if answer.status not in (429, 500, 502, 503, 504):
                    return answer
                problem = f"the server answered {answer.status}"
                wait = retry_after(answer.headers) or 0.0
                if answer.status == 429 and (attempt + 1 == self.tries or not 0 < wait <= LONGEST_WAIT):
                    return answer
                if wait > LONGEST_WAIT:
                    problem += f" and asks to wait {wait:.0f} s"
                    break
            if attempt + 1 < self.tries:
                self.sleep(max(wait, BACKOFF * 2**attempt * _JITTER.uniform(0.5, 1.5)))
            else:
                problem += f", {self.tries} times"
        raise Unreachable(problem)

    def _once(self, url: str, headers: Mapping[str, str], limit: int, what: str) -> Answer:
        request = urllib.request.Request(url, headers=dict(headers))
        handlers: list[urllib.request.BaseHandler] = [_Redirects(self.allowed, what)]
        if is_loopback(url):
            handlers.append(urllib.request.ProxyHandler({}))
        opener = urllib.request.build_opener(*handlers)
        try:
            with opener.open(request, timeout=self.timeout) as response:
                return Answer(response.status, _lower(response.headers), self._body(response, limit, what))
        except SourceError:  # an OSError as well, but ours: a forbidden redirect, too big a body
            raise
        except urllib.error.HTTPError as error:
            with error:
                return Answer(error.code, _lower(error.headers), _error_body(error))
        except urllib.error.URLError as error:
            raise _trouble(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise _trouble(error) from error

    def _body(self, response: Any, limit: int, what: str) -> bytes:
        declared = response.headers.get("Content-Length", "")
        total = int(declared) if declared.isdigit() else 0
        if total > limit:
            raise too_big(what, total, limit)
        pieces: list[bytes] = []
        done, begin = 0, time.monotonic()
        while piece := response.read(_PIECE):
            pieces.append(piece)
            done += len(piece)
            if done > limit:
                raise too_big(what, done, limit)
            if time.monotonic() - begin > LONGEST_TRANSFER:
                raise _Trouble(f"the transfer took more than {LONGEST_TRANSFER:.0f} s")
            if self.progress is not None:
                self.progress(done, max(total, 0))
        if done < total:  # read() in pieces does not complain
            raise _Trouble(f"the answer ended after {done:,} of {total:,} bytes")
        return b"".join(pieces)


class _Trouble(Exception):
    def __init__(self, message: str, *, hopeless: bool = False) -> None:
        super().__init__(message)
        self.hopeless = hopeless
        """Trying again would not help: the machine is offline."""


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to allowed addresses only, and never carries a token to another host."""

    def __init__(self, allowed: Callable[[str], bool], what: str) -> None:
        self._allowed = allowed
        self._what = what

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        if not self._allowed(newurl):
            raise SourceError(
                f"{self._what}: the server sends us on to {origin(newurl)}, where no gist is kept",
                "files are taken from api.github.com and gist.githubusercontent.com by https, from nowhere else",
            )
        following = super().redirect_request(req, fp, code, msg, headers, newurl)
        if following is not None and origin(newurl) != origin(req.full_url):
            following.remove_header("Authorization")
        return following


def origin(url: str) -> str:
    """Scheme, host and port of an address, the default port left out."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError:
        return "an address that cannot be read"
    shown = "" if port in (None, {"https": 443, "http": 80}.get(parts.scheme)) else f":{port}"
    return f"{parts.scheme}://{(parts.hostname or '').lower()}{shown}"


def is_loopback(url: str) -> bool:
    """Whether an address is on this very machine."""
    try:
        host = (urlsplit(url).hostname or "").lower()
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds of a Retry-After header, in either of its forms; None where there is none."""
    value = headers.get("retry-after", "").strip()
    if re.fullmatch(r"\d{1,9}", value):
        return float(value)
    try:
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    except (ValueError, TypeError):
        return None


def too_big(what: str, size: int, limit: int) -> SourceError:
    """The error for a body or a file beyond the limit."""
    return SourceError(
        f"{what} is too big: {size:,} bytes or more, and at most {limit:,} are fetched",
        fix="a gist holds code; give weights with --weights FILE",
    )


def _trouble(reason: Any) -> _Trouble:
    """What a person reads of an error of the network."""
    if isinstance(reason, TimeoutError):
        return _Trouble("no answer within the time limit")
    if isinstance(reason, ConnectionRefusedError):
        return _Trouble("the connection was refused", hopeless=True)
    if isinstance(reason, ConnectionResetError | http.client.RemoteDisconnected | BrokenPipeError):
        return _Trouble("the connection was cut")
    if isinstance(reason, http.client.IncompleteRead):
        return _Trouble("the answer ended too early")
    name = type(reason).__name__
    if name == "gaierror":
        return _Trouble("the server's name cannot be resolved: is this machine online?", hopeless=True)
    if name.startswith("SSL"):
        return _Trouble(f"no secure connection: {reason}", hopeless=True)
    if isinstance(reason, OSError) and reason.strerror:
        return _Trouble(reason.strerror.lower(), hopeless=True)
    return _Trouble(f"{name}: {reason}")


def _lower(headers: email.message.Message) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _error_body(error: urllib.error.HTTPError) -> bytes:
    """The first bytes of an error's page; its text only explains, so a cut one does no harm."""
    try:
        return error.read(_PIECE)
    except (OSError, http.client.HTTPException):
        return b""
