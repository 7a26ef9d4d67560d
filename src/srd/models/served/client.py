"""Requests to a server: with its key, several at once, tried again where it is busy, and its refusals in words.

The key comes from an environment variable. It is sent, and neither kept in a setting nor shown: where the server
repeats it in a message, it is struck out.
"""

from __future__ import annotations

import contextlib
import email.utils
import functools
import itertools
import json
import logging
import math
import os
import queue
import random
import ssl
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import httpx2

from srd.base.errors import RunError, UserError
from srd.base.text import duration

logger = logging.getLogger(__name__)

Item = TypeVar("Item")
Result = TypeVar("Result")

BUSY = (408, 425, 429, 500, 502, 503, 504)  # the same request may succeed later
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 60.0  # seconds between tries: doubled from one to the other
CONNECT_SECONDS = 10.0
QUIET = 5.0  # seconds of waiting before it is told
FIRST_PATIENCE = 3.0  # seconds: a server that is not there is told soon
MOST_BYTES = 2**30  # of one answer
SHOWN = 300  # characters of what a server says
SURROUNDINGS = [name for upper in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY") for name in (upper, upper.lower())]
CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")
SURROUNDINGS += CERTIFICATES


@dataclass(frozen=True)
class Address:
    """Where a served model is found, and how it is asked.

    Attributes:
        endpoint: URL of the server's OpenAI-compatible part, such as ``http://localhost:8000/v1``.
        model: Its name there.
        key_variable: Environment variable that holds the key; None: there is no key.
        parallel: Requests at once.
        timeout: Seconds for one answer.
        patience: Seconds for an answer with all its tries.
        tokenizer: What the recipe names as its tokenizer; None: the student's.
    """

    endpoint: str
    model: str
    key_variable: str | None = None
    parallel: int = 8
    timeout: float = 120.0
    patience: float = 600.0
    tokenizer: str | None = None

    @property
    def reads(self) -> str:
        """How messages call the tokenizer that it is asked with."""
        return "the student" if self.tokenizer is None else f"'{self.tokenizer}' (teacher.tokenizer)"

    @property
    def shown(self) -> str:
        """How messages call it."""
        return f"the teacher '{self.model}' at {self.endpoint}"

    @property
    def root(self) -> str:
        """The server, without the part that is OpenAI-compatible."""
        return self.endpoint.removesuffix("/v1")


@dataclass(frozen=True)
class Answer:
    """What a server said: its status, the JSON (None where it is none), and its message in case of an error."""

    status: int
    body: Any
    said: str

    @property
    def fine(self) -> bool:
        """Whether it is what was asked for."""
        return 200 <= self.status < 300

    @property
    def final(self) -> bool:
        """Whether no other question would be answered either: the key is refused, or the server is elsewhere."""
        return self.status in (401, 403) or 300 <= self.status < 400


@dataclass(frozen=True)
class _Problem:
    """Why there is no answer now.

    Attributes:
        said: In words.
        remedy: What helps.
        wanted: Seconds that the server asks to be left alone for.
        away: Whether there is no server at all.
    """

    said: str
    remedy: str
    wanted: float = 0.0
    away: bool = False


class Unreachable(RunError):
    """There is no server where the endpoint says."""


@functools.cache
def _certificates(*places: str | None) -> ssl.SSLContext:
    """Whom to trust, by what the environment says; read once, as it takes longer than a question."""
    return httpx2.create_ssl_context()


class GivenUp(RuntimeError):
    """A request that was not tried again, since another one has failed for good."""


class Client:
    """Asks one server.

    Raises:
        UserError: the environment variable that is to hold the key is not set.
    """

    def __init__(self, address: Address) -> None:
        self.address = address
        self._key = _key(address.key_variable)
        headers = {"authorization": f"Bearer {self._key}"} if self._key else {}
        self._stopped, self._waits = threading.Event(), False
        limits = httpx2.Limits(max_connections=address.parallel, max_keepalive_connections=address.parallel)
        timeout = httpx2.Timeout(address.timeout, connect=min(CONNECT_SECONDS, address.timeout), pool=None)
        try:
            trusted = _certificates(*map(os.environ.get, CERTIFICATES))
            self._http = httpx2.Client(headers=headers, timeout=timeout, limits=limits, verify=trusted)
        except (ValueError, ImportError, OSError) as error:  # of what the environment says of proxies and certificates
            raise UserError(
                f"what the environment says of proxies or certificates cannot be used: {error} Correct or unset "
                f"{', '.join(variable for variable in SURROUNDINGS if os.environ.get(variable))}."
            ) from error

    def get(self, url: str, *, first: bool = False) -> Answer:
        """`post` without a body."""
        return self._try("GET", url, None, first)

    def post(self, url: str, body: Any, *, first: bool = False) -> Answer:
        """Ask, and again while the server is busy, does not answer in time or cannot be reached.

        Args:
            url: Where.
            body: JSON.
            first: Whether nothing was ever heard from the server, so that one that is not there is told soon.

        Raises:
            RunError: it has not answered after all tries; `Unreachable` where there is no server.
        """
        return self._try("POST", url, body, first)

    def _try(self, method: str, url: str, body: Any, first: bool) -> Answer:
        stopped, started, pause = self._stopped, time.monotonic(), FIRST_PAUSE
        for tries in itertools.count(1):
            found = self._ask(method, url, body)
            if isinstance(found, Answer):
                self._waits = False
                return found
            wait = max(found.wanted, pause * random.uniform(0.5, 1.0))
            patience = min(FIRST_PATIENCE if first and found.away else math.inf, self.address.patience)
            if (seconds := time.monotonic() - started) + wait > patience:
                times = f" after {tries} tries in {seconds:.0f} seconds" if tries > 1 else ""
                raise (Unreachable if found.away else RunError)(
                    f"{self.address.shown} {found.said}{times}. {found.remedy}; then the same command continues with "
                    "what is not answered yet."
                )
            self._tell(found, seconds + wait)
            if stopped.wait(wait):
                raise GivenUp
            pause = min(2 * pause, LONGEST_PAUSE)
        raise AssertionError

    def _tell(self, problem: _Problem, seconds: float) -> None:
        """Say once what is waited for, until there is an answer again."""
        if seconds > QUIET and not self._waits:
            self._waits = True
            logger.info(
                "%s %s: asked again until it answers, for up to %s (teacher.patience).",
                self.address.shown, problem.said, duration(self.address.patience),
            )  # fmt: skip

    def _ask(self, method: str, url: str, body: Any) -> Answer | _Problem:
        address = self.address
        try:
            response, sent = self._received(method, url, body)
        except (httpx2.TimeoutException, TimeoutError):
            remedy = f"Wait longer for an answer (teacher.timeout={2 * address.timeout:g}), or look after the server"
            return _Problem(f"gives no answer within {address.timeout:g} seconds", remedy)
        except (httpx2.RequestError, httpx2.InvalidURL, OSError) as error:
            reason = self._clean(str(error)) or type(error).__name__
            start = f"Start the server, or correct teacher.endpoint{_proxy(url)}"
            return _Problem(f"cannot be reached ({reason})", start, away=True)
        content = _parsed(sent)
        if content is None and response.is_success and sent.lstrip()[:1] in (b"", b"{", b"["):
            remedy = f"Look at the server's own log{_proxy(url)}"
            return _Problem("breaks off in the middle of an answer", remedy, away=True)
        wrong = content is None or (isinstance(content, dict) and bool(content.get("error")))  # whatever its status
        said = _message(content) or sent.decode("utf-8", "replace") if wrong or not response.is_success else ""
        if response.has_redirect_location:
            said = f"it points to {response.headers['location']}"
        answer = Answer(response.status_code, content, self._clean(said))
        return self._busy(answer, response, url) if answer.status in BUSY else answer

    def _received(self, method: str, url: str, body: Any) -> tuple[httpx2.Response, bytes]:
        """A response and all that it holds: a server that never ends it has not answered in time."""
        until, parts, size = time.monotonic() + self.address.timeout, [], 0
        with self._http.stream(method, url, json=body) as response:
            for part in response.iter_bytes():
                parts.append(part)
                size += len(part)
                if time.monotonic() > until or size > MOST_BYTES:
                    raise TimeoutError
        return response, b"".join(parts)

    def _busy(self, answer: Answer, response: httpx2.Response, url: str) -> _Problem:
        """A server that may answer the same request later."""
        address, wanted = self.address, _retry_after(response.headers.get("retry-after"))
        later = f"Retry-After: {wanted:.0f} seconds" if wanted else ""
        reasons = "; ".join(filter(None, (answer.said, later)))
        told = f"answers {answer.status}{f' ({reasons})' if reasons else ''}"
        if answer.status != 429:
            return _Problem(told, f"Look at the server's own log{_proxy(url)}", wanted)
        longer = max(2 * address.patience, 2 * wanted)
        gently = f"Ask more gently (teacher.parallel={max(1, address.parallel // 2)}), or wait longer"
        return _Problem(told, f"{gently} (teacher.patience={longer:g})", wanted)

    def _clean(self, text: str) -> str:
        """What a server says, on one line, without the key."""
        text = " ".join(text.split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"

    def in_parallel(self, ask: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[tuple[Item, Result]]:
        """Ask about several things at once; what is answered comes in the order of the answers.

        Where one fails for good, what is under way is still waited for and given, so that it is not asked for again;
        then the error is raised. The threads do not hold up the end of the program.
        """
        todo: queue.SimpleQueue[Item] = queue.SimpleQueue()
        done: queue.SimpleQueue[tuple[Item, Result] | BaseException | None] = queue.SimpleQueue()
        for item in items:
            todo.put(item)
        stopped, running = self._stopped, min(self.address.parallel, len(items))
        for _ in range(running):
            threading.Thread(target=_work, args=(ask, todo, done, stopped), daemon=True).start()
        failed: BaseException | None = None
        try:
            while running:
                found = done.get()
                if found is None:
                    running -= 1
                elif isinstance(found, BaseException):
                    failed = failed or found
                else:
                    yield found
        finally:
            stopped.set()
            self._stopped = threading.Event()
        if failed is not None:
            raise failed


def _work(ask: Callable[[Any], Any], todo: Any, done: Any, stopped: threading.Event) -> None:
    """One thread's share of `Client.in_parallel`: None at its end."""
    while not stopped.is_set():
        try:
            item = todo.get_nowait()
            done.put((item, ask(item)))
        except (queue.Empty, GivenUp):
            break
        except BaseException as error:
            stopped.set()
            done.put(error)
    done.put(None)


def _key(variable: str | None) -> str:
    if variable is None:
        return ""
    key = os.environ.get(variable, "").strip()
    if not key:
        raise UserError(
            f"teacher.api_key_env: the environment variable {variable} is not set. Put the key into it "
            f"(export {variable}=…), or leave the field out where the server asks for none."
        )
    if not (key.isascii() and key.isprintable()):
        raise UserError(
            f"teacher.api_key_env: what the environment variable {variable} holds is no key: it has characters that no "
            "key has. Set it again."
        )
    return key


def _parsed(content: bytes) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError):
        return None


def _proxy(url: str) -> str:
    """What else helps where the environment puts a proxy between."""
    parts, named = urllib.parse.urlsplit(url), urllib.request.getproxies()
    between = next((f"{kind}_proxy" for kind in (parts.scheme, "all") if kind in named), None)
    if between is None or urllib.request.proxy_bypass(parts.netloc):
        return ""
    return f"; it is asked through a proxy ({between.upper()}), which NO_PROXY={parts.hostname} leaves out"


def _message(content: Any) -> str:
    """The message in a server's error, in whichever of the usual places."""
    found = content
    for name in ("error", "detail", "message"):
        if isinstance(found, dict) and name in found:
            found = found[name]
    return found if isinstance(found, str) else "" if found is None else json.dumps(found)


def _retry_after(value: str | None) -> float:
    """Seconds that a server asks to wait: it gives seconds or a date."""
    if not value:
        return 0.0
    with contextlib.suppress(ValueError):
        return max(0.0, float(value)) if math.isfinite(float(value)) else 0.0
    with contextlib.suppress(ValueError, TypeError):
        date = email.utils.parsedate_to_datetime(value)
        return max(0.0, date.timestamp() - time.time())
    return 0.0
