"""What every process writes to its log: one JSON object a line, or text for people at a terminal.

A line has time, level, process, pid, logger, message, and the ids of what it is about (`bound`):
request, completion, run, stage, version, replica. Nothing that people wrote gets in. What an
exception says is withheld, unless its type is known to say nothing of data; of foreign loggers the
arguments are, where an exception goes with them; passwords, keys and addresses are struck out
wherever they stand. Loggers that are not ours never go below `info`, because what they say at
`debug` may be a whole request. Only this module configures logging.
"""

import json
import logging
import re
import sys
import threading
import traceback
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, TextIO

from pythonjsonlogger.json import JsonFormatter

from core.errors import InstructLoopError

Format = Literal["auto", "json", "text"]
Ids = Mapping[str, str]
_OURS = ("core", "deploy", "feedback", "learning", "serving")
_IDS = ("request_id", "completion_id", "run", "stage", "version", "replica")
_EXTRAS = (*_IDS, "route", "method", "status", "seconds", "key_id", "fraction")
"""What a line may carry beside its message; what else a library attaches is dropped."""
_CHATTY = ("httpx", "celery.app.trace", "celery.worker.strategy", "celery.beat")
"""Loggers that say a line or two for every request or tick."""
_PLAIN = (MemoryError, ImportError, NotImplementedError, ZeroDivisionError)
_OF_MATHS = (
    *(*_PLAIN, ArithmeticError, RuntimeError),
    *(AssertionError, AttributeError, TypeError, IndexError),
)
_LONGEST = 4000
_CHAIN = 4
_DEEPEST = 30
_ROOT = f"{Path(__file__).resolve().parents[1]}/"
_STRUCK = (
    (re.compile(r"://[^/\s@]*@"), "://***@"),
    (re.compile(r"\b(Bearer|Basic)\s+[\w.~+/=-]+", re.IGNORECASE), r"\1 ***"),
    (re.compile(r"\b(?:il|ilf|sk|whsec)[-_][\w-]{16,}"), "***"),
    (re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]+\w"), "***"),
)
_Error = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]

_bound: ContextVar[Ids | None] = ContextVar("ids of a log line", default=None)


@contextmanager
def bound(**ids: str) -> Iterator[None]:
    """Every line of the block, and of tasks begun in it, carries these ids."""
    token = _bound.set({**(_bound.get() or {}), **ids})
    try:
        yield
    finally:
        _bound.reset(token)


def set_up(
    process: str,
    *,
    level: str,
    form: Format,
    path: Path | None = None,
    says_maths: bool = False,
    **ids: str,
) -> None:
    """Log from now on as `process`, to stderr or to a file, also what nobody caught.

    `ids` are on every line. `says_maths` shows what errors of Python and torch say: for a process
    in which no request is handled.
    """
    handler = _Handler(sys.stderr if path is None else path.open("a"))
    text = form == "text" or (form == "auto" and handler.stream.isatty())
    shown = _OF_MATHS if says_maths else _PLAIN
    handler.setFormatter((Text if text else Lines)(process, ids, shown))
    root = logging.getLogger()
    for old in [one for one in root.handlers if type(one) in (logging.StreamHandler, _Handler)]:
        root.removeHandler(old)
    root.addHandler(handler)
    _set_levels(level.upper())
    if path is None:  # else a person is at stderr
        _catch_what_nobody_caught()


def _set_levels(level: str) -> None:
    chosen = logging.getLevelNamesMapping()[level]
    logging.getLogger().setLevel(max(chosen, logging.INFO))
    for name in _OURS:
        logging.getLogger(name).setLevel(chosen)
    for name in _CHATTY:
        logging.getLogger(name).setLevel(max(chosen, logging.WARNING))


def _catch_what_nobody_caught() -> None:
    log = logging.getLogger(__name__)

    def uncaught(kind: type[BaseException], error: BaseException, trace: Any) -> None:
        if not issubclass(kind, KeyboardInterrupt):
            log.critical("ended by %s", kind.__name__, exc_info=(kind, error, trace))

    def in_thread(args: threading.ExceptHookArgs) -> None:
        if args.exc_value is not None:
            uncaught(args.exc_type, args.exc_value, args.exc_traceback)

    def warn(_: Any, category: type[Warning], filename: str, line: int, *__: object) -> None:
        log.warning("%s at %s:%s", category.__name__, filename, line)

    sys.excepthook = uncaught
    threading.excepthook = in_thread
    warnings.showwarning = warn  # type: ignore[assignment]


class _Handler(logging.StreamHandler[TextIO]):
    """Never writes down what it could not format, and stops nobody where it cannot write."""

    def handleError(self, record: logging.LogRecord) -> None:
        with suppress(OSError, ValueError):  # the disk is full, or the stream closed
            self.stream.write(line(logging.ERROR, f"a line of {record.name} was lost") + "\n")


class Lines(JsonFormatter):
    """One JSON object a line."""

    def __init__(
        self,
        process: str,
        ids: Ids | None = None,
        shown: tuple[type[BaseException], ...] = _PLAIN,
    ) -> None:
        super().__init__(json_ensure_ascii=False)
        self._process, self._ids, self._shown = process, ids or {}, shown

    def formatException(self, exc_info: _Error) -> str:
        return described(exc_info[1], self._shown) if exc_info[1] is not None else ""

    def add_fields(
        self,
        log_data: dict[str, Any],
        record: logging.LogRecord,
        message_dict: dict[str, Any],
    ) -> None:
        log_data |= {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "process": self._process,
            "pid": record.process,
            "logger": record.name,
            "message": _message(record),
            **self._ids,
            **(_bound.get() or {}),
            **{name: vars(record)[name] for name in _EXTRAS if name in vars(record)},
        }
        if trace := message_dict.get("exc_info"):
            log_data["exception"] = trace


class Text(Lines):
    """The same for people: time, level, logger, message, ids."""

    def jsonify_log_record(self, log_data: dict[str, Any]) -> str:
        return as_text(log_data)


def as_text(said: Mapping[str, Any]) -> str:
    """A line's fields as people read them."""
    ids = " ".join(f"{name}={said[name]}" for name in _EXTRAS if name in said)
    head = " ".join(str(said.get(name, "")) for name in ("time", "level", "process", "message"))
    trace = f"\n{said['exception']}" if "exception" in said else ""
    return f"{head} [{ids}]{trace}" if ids else f"{head}{trace}"


def line(level: int, text: str, **ids: str) -> str:
    """A line as this process would log it, to be written into somebody else's log."""
    record = logging.LogRecord(__name__, level, "", 0, "%s", (text,), None)
    handlers = [one for one in logging.getLogger().handlers if type(one) is _Handler]
    form = handlers[0].formatter if handlers else None
    vars(record).update(ids)
    return (form or Lines("worker")).format(record)


def is_json() -> bool:
    """Whether this process writes JSON lines to stderr."""
    for one in logging.getLogger().handlers:
        if type(one) is _Handler and one.stream is sys.stderr:
            return type(one.formatter) is Lines
    return False


def said_in(raw: str) -> str:
    """What a line of a log says to people: its message and error, or all of one without fields."""
    try:
        said = json.loads(raw)
    except ValueError:
        return raw.strip()
    if not isinstance(said, dict) or "message" not in said:
        return raw.strip()
    first = str(said.get("exception", "")).partition("\n")[0]
    return f"{said['message']}: {first}" if first else str(said["message"])


def for_people(log: str) -> str:
    """A whole log with every JSON line as text; other lines stay."""
    return "".join(_for_people(raw) for raw in log.splitlines(keepends=True))


def _for_people(raw: str) -> str:
    try:
        said = json.loads(raw)
    except ValueError:
        return raw
    return as_text(said) + "\n" if isinstance(said, dict) and "message" in said else raw


def _message(record: logging.LogRecord) -> str:
    if record.name == "asyncio":  # it writes the exception and its arguments into the message
        found = re.match(r"[\w ]*", str(record.msg))
        text = found.group() if found else ""
    elif record.exc_info and record.name.partition(".")[0] not in _OURS:
        text = str(record.msg)
    else:
        text = record.getMessage()
    return struck(text)


def struck(text: str) -> str:
    """The text without passwords in URLs, keys, tokens and mail addresses, and not too long."""
    for pattern, instead in _STRUCK:
        text = pattern.sub(instead, text)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def described(error: BaseException, shown: tuple[type[BaseException], ...] = _PLAIN) -> str:
    """An exception and what caused it: types and places; what it says only if `shown` or ours."""
    lines: list[str] = []
    following: BaseException | None = error
    for _ in range(_CHAIN):
        if following is None:
            break
        lines.append(f"{type(following).__name__}{_said(following, shown)}")
        frames = traceback.extract_tb(following.__traceback__)[-_DEEPEST:]
        lines += [f"  {_place(frame.filename)}:{frame.lineno} in {frame.name}" for frame in frames]
        hidden = following.__suppress_context__
        following = following.__cause__ or (None if hidden else following.__context__)
    return "\n".join(lines)


def _place(filename: str) -> str:
    """A source file without the folders that say only where it is installed."""
    _, _, installed = filename.rpartition("/site-packages/")
    return (installed or filename).removeprefix(_ROOT)


def _said(error: BaseException, shown: tuple[type[BaseException], ...]) -> str:
    if isinstance(error, InstructLoopError) and error.status >= 500:  # others quote the client
        return f": {struck(error.message)}"
    if isinstance(error, OSError):
        return f": {error.strerror or 'no reason given'}"
    if isinstance(error, shown):
        return f": {struck(str(error))}"
    return " (what it says is withheld)"
