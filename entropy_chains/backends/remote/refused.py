"""Servers that refuse what only early stopping asks for: how that is recognised, and what is remembered of it. Pure.

That is logprobs, ``stream_options``, and a stream. Such a refusal says nothing about the question. So where it is not needed, the
same request is sent again without it, and later ones are sent without it at once. Whether it was at fault is proved by that second
request alone: where it fails as well, its own error is raised.
"""

from __future__ import annotations

import re
import warnings
import weakref
from collections.abc import Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from entropy_chains.backends.remote.continuations import Request, Way
from entropy_chains.backends.remote.logprob_entries import fields, items
from entropy_chains.core.policy import Policy, stopping_enabled
from entropy_chains.errors import BackendError, EntropyChainsError, NoLogprobsError, quoted
from entropy_chains.options import WithoutLogprobs

REMEDY = "use a server or model that gives them (with a smaller k where it gives fewer), or without_logprobs='agreement' or 'full'"

IN_AN_APP: WithoutLogprobs = "full"
"""The default of all that is added to an app that worked before: it goes on working."""

UNREAD = "unread"
"""In the place of what to do without logprobs: the rule reads none."""

RETHINKS = "after a stop the model begins to think again, so its calls run in full"
"""Why nothing more is stopped of a model that did so."""

INSTEAD = "a server that goes on from a begun thinking, such as vLLM, keeps it from that"

STATUSES = (400, 403, 422)
"""What a refused setting is answered with."""

IF_UNSUPPORTED = (404, 500, 501)
"""Statuses that are mostly about something else: of a refused setting only where the text says that it is not supported."""

_NAMED = re.compile(r"log[ _-]?prob", re.IGNORECASE)
_ELSE = re.compile(
    r"context[ _-](length|window)|(invalid|incorrect|expired|missing|wrong) api[ _-]?key"
    r"|api[ _-]?key (is |was |has )?(not valid|invalid|incorrect|expired|missing)",
    re.IGNORECASE,
)
"""Errors that mention logprobs, say because they repeat the request, and are about something else."""

_UNSUPPORTED = re.compile(r"support|implement", re.IGNORECASE)

_VALUE = r"(?:true|false|null|none|\d+)\b"
_ECHOED = re.compile(
    rf"""(\\?["'])\w*log_?probs\1\s*[:=]\s*{_VALUE}|(?<=[(,{{])\s*\w*log_?probs\s*=\s*{_VALUE}(?=\s*[,)}}])""", re.IGNORECASE
)
"""A setting with its value, as in a request that an error repeats in its text: ``'logprobs': True``, ``(…, logprobs=True, …)``."""

ECHO = "input"
"""The field in which FastAPI repeats what it was sent, the settings that are not at fault included."""


def refusal(error: BaseException) -> str | None:
    """What the server said where it refused a request because it asks for logprobs; None for any other error.

    Args:
        error: of whatever client: its ``status_code``, ``code``, ``response`` and ``body`` are read where it has them, its text
            otherwise. A client that does not know the setting (TypeError) counts as well.
    """
    body = getattr(error, "body", None)
    status = _status(error, body)
    if status is not None and status not in STATUSES + IF_UNSUPPORTED:
        return None
    texts = list(_texts(body)) or [str(error)]
    message = " ".join(texts)
    if not _NAMED.search(_ECHOED.sub("", message)) or _ELSE.search(message):
        return None
    if status in IF_UNSUPPORTED and not _UNSUPPORTED.search(message):
        return None
    sentences = [text for text in texts if " " in text]  # the rest is names and codes
    return quoted("; ".join(sentences) or message, 300)


@contextmanager
def refusals(logprobs: bool) -> Iterator[None]:
    """Turns a refusal of logprobs into a NoLogprobsError, where they were asked for at all."""
    try:
        yield
    except Exception as error:
        ours = isinstance(error, EntropyChainsError) and type(error) is not BackendError
        message = refusal(error) if logprobs and not ours else None
        if message is None:
            raise
        raise NoLogprobsError(f"the server refuses logprobs ({message}), so there is no entropy: {REMEDY}", message) from error


OPTIONS = "stream_options"
STREAM = "streaming"
ADDED = "the request with logprobs"
"""What a server may refuse of a request: by name, or, where it names nothing, all that was added."""

UNNAMED = (400, 403, 405, 406, 422)
"""Statuses that may be about a setting which their text does not name."""

_OPTIONS = re.compile(r"stream_options|include_usage|continuous_usage_stats", re.IGNORECASE)
_STREAM = re.compile(r"(?<![\w-])stream(ing|ed)?\b", re.IGNORECASE)
_THEIRS = re.compile(
    r"context|prompt|token limit|max(imum)?[ _](\w+_)?tokens|too (long|large|many|big)|exceeds?.*(length|size|tokens)"
    r"|content|policy|filter|safety|moderation|flagged|quota|billing|credit|balance|api[ _-]?key"
    r"|unauthori[sz]ed|permission|forbidden|no such|model\b.*(not found|does not exist|unknown)",
    re.IGNORECASE,
)
"""Errors that are about the question, the account or the model."""


class RefusedError(BackendError):
    """A request failed, perhaps for something that only early stopping asks for.

    Attributes:
        own: the error as it came; raised where nothing is to be left out.
        what: what to leave out: ``OPTIONS``, ``STREAM`` or ``ADDED``.
        said: the server's message.
    """

    def __init__(self, own: Exception, what: str, said: str):
        super().__init__(str(own))
        self.own, self.what, self.said = own, what, said


def doubted(error: Exception, request: Request) -> RefusedError | None:
    """What a failed request should perhaps have left out; None where its error is about something else.

    Args:
        error: as :func:`refusal` reads it, or a BackendError that was made of such a one.
        request: the one that failed. Errors of what follows a stop are judged elsewhere.
    """
    if request.purpose not in ("reason", "full") or (isinstance(error, EntropyChainsError) and type(error) is not BackendError):
        return None
    own = (error.__cause__ or error) if isinstance(error, BackendError) else error
    body = getattr(own, "body", None)
    if _status(own, body) not in UNNAMED:
        return None
    texts = list(_texts(body)) or [str(own)]
    message = _ECHOED.sub("", " ".join(texts))
    if request.usage and _OPTIONS.search(message):
        what = OPTIONS
    elif request.streamed and _STREAM.search(message):
        what = STREAM
    elif (request.logprobs or request.usage) and not (_THEIRS.search(message) or _named_setting(body)):
        what = ADDED
    else:
        return None
    said = str(error) if isinstance(error, BackendError) else "; ".join(text for text in texts if " " in text) or message
    return RefusedError(error, what, quoted(said, 300))


def _named_setting(body: Any) -> bool:
    """Whether an error names the setting that is at fault: OpenAI's ``param``, the ``loc`` of FastAPI's."""
    content = fields(body)
    if isinstance(content.get("param"), str) and content["param"]:
        return True
    return any(fields(detail).get("loc") for detail in items(content.get("detail")))


@contextmanager
def additions(request: Request) -> Iterator[None]:
    """Turns the errors of a request that may be due to what early stopping added into a RefusedError."""
    try:
        yield
    except Exception as error:
        refused = doubted(error, request)
        if refused is None:
            raise
        raise refused from error


_BOUNDS = (
    *(r"max\w*", "most", "up to", r"limit\w*", "<=", "≤", "equal to", r"exceed\w*", "(?:larger|greater|more|higher) than"),
    *(r"(?:between|from|range|interval)[^\d#]{0,12}\d+", r"(?P<beyond>less than(?! or))"),
)
_LIMIT = re.compile(rf"(?:{'|'.join(_BOUNDS)})[^\d#]{{0,24}}?(?<![A-Za-z])(?<![A-Za-z]-)(?P<number>\d+)(?!\.?\d)", re.IGNORECASE)
"""The largest number that is allowed, in the words of servers and validators: "max allowed: 5", "between 0 and 5", "<= 5"."""


def allowed(text: str | None, k: int) -> int | None:
    """How many alternatives a server allows that refused ``k`` of them; None where it does not say so."""
    matches = _LIMIT.finditer(re.sub(rf"\b{k}\b", "#", text or ""))
    limits = [int(match["number"]) - bool(match["beyond"]) for match in matches]
    return next((limit for limit in limits if 0 < limit < k), None)


def _status(error: BaseException, body: Any) -> int | None:
    """The HTTP status, by whatever name; of an error in the stream the code that it gives."""
    response = getattr(error, "response", None)
    for holder in (error, response, fields(body)):
        for name in ("status_code", "code", "status"):
            value = holder.get(name) if isinstance(holder, Mapping) else getattr(holder, name, None)
            if isinstance(value, int | str) and str(value).isdecimal() and 100 <= int(value) < 600:
                return int(value)
    return None


def _texts(value: Any) -> Iterator[str]:
    """Every text in the body of an error, but for what it repeats of the request."""
    if isinstance(value, str):
        yield value
    for name, inner in value.items() if isinstance(value, Mapping) else ():
        if name != ECHO:
            yield from _texts(inner)
    for inner in items(value):
        yield from _texts(inner)


def without_logprobs(chosen: str, policy: Policy | None, *, stop: bool) -> str:
    """What to do without logprobs in a run: ``error`` is for runs that a policy may stop by a signal; nothing else needs any."""
    may_stop = policy is not None and policy.active and stop and stopping_enabled()
    needed = may_stop and policy is not None and policy.stop_rule.reads_signal
    return "full" if chosen == "error" and not needed else chosen


@dataclass(slots=True)
class Known:
    """What is known of one model, from what came of its requests.

    Attributes:
        refused: why requests do not ask for them: the server refuses that; None where it does not.
        most: alternatives that the server allows; None where it refused none.
        no_usage: why requests do not ask for the usage of a stream (``stream_options``); None where they do.
        whole: why requests are not streamed; None where they are.
        accepted: a request was answered that asked for logprobs, for the usage, for a stream, each or not.
        tried: errors, by their text, after which a request was sent again without what was added.
        rethinking: names of the ways to the answer, those of one backend each, by which it thought again after a stop.
        told: what warnings have spoken of.
    """

    refused: str | None = None
    most: int | None = None
    no_usage: str | None = None
    whole: str | None = None
    accepted: set[tuple[bool, ...]] = field(default_factory=set)
    tried: set[str] = field(default_factory=set)
    rethinking: set[tuple[str, ...]] = field(default_factory=set)
    told: set[str] = field(default_factory=set)

    def within(self, k: int) -> int:
        """So many alternatives, or as many as the server allows."""
        return k if self.most is None else min(k, self.most)

    def in_vain(self, ways: Sequence[Way]) -> str | None:
        """Why no stop is worth its cost where the answer is asked for in these ways; None where it may be."""
        return RETHINKS if tuple(way.name for way in ways) in self.rethinking else None

    def thinks_again(self, ways: Sequence[Way], model: str) -> None:
        """The model thought again after a stop, asked in the last of these ways. Said once."""
        self.rethinking.add(tuple(way.name for way in ways))
        self.warn(f"{model}: {RETHINKS} from now on, for a stop costs more than it saves; {INSTEAD}", about="rethinking")

    def warn(self, text: str, about: str = "no logprobs") -> None:
        """Say so, once ``about`` one thing."""
        if about not in self.told:
            self.told.add(about)
            warnings.warn(text, stacklevel=2)


_known: dict[int, dict[Hashable, Known]] = {}


def known(owner: object, asked: Hashable) -> Known:
    """What is known of requests like ``asked`` (a model's name, say), for as long as ``owner`` lives: the user's client or model.

    Two objects never share it, even where they are equal: another one may hold another address and key.
    """
    if id(owner) not in _known:
        try:
            weakref.finalize(owner, _known.pop, id(owner), None).atexit = False
        except TypeError:  # nobody would tell when it is gone: nothing is remembered
            return Known()
    return _known.setdefault(id(owner), {}).setdefault(asked, Known())
