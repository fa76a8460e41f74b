"""Structured logs in which nothing can identify a patient: an allow-list of keys, and a shape for each value.

A key that is not in ``KEYS``, or a value that does not have its key's shape, is left out and its key named under
``dropped``. Exceptions appear by class, place in the code and the line of a ``DicomnodeError``; never by their text.
Messages of libraries are reduced to logger and level, at every log level, because they quote data; pynetdicom's are
left out, because what failed with which peer is told by an error of ours.
"""

from __future__ import annotations

import logging
import math
import re
import sys
import threading
import traceback
from collections.abc import Callable, MutableMapping
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, TextIO

import structlog
from pydicom.datadict import keyword_dict

from dicomnode.errors import DicomnodeError


class Shape(Enum):
    """What a value may look like."""

    NUMBER = "number"
    WORD = "word"  # of a closed set of ours: lower case, digits, - and _
    CODE = "code"  # hexadecimal: a DIMSE status, a hash
    CLASS = "class"  # name of an exception class that exists in this process
    KEYWORD = "keyword"  # of the DICOM data dictionary
    NAME = "name"  # what the operator called something in the settings
    PLACE = "place"  # file.py:123
    PSEUDONYM = "pseudonym"  # of the vault
    UID = "uid"  # under 2.25, as pseudonymous UIDs are
    LINE = "line"  # the line of a DicomnodeError, which by contract identifies nobody


class Key(NamedTuple):
    """A key that may be logged."""

    shapes: tuple[Shape, ...]
    meaning: str


_N, _W = (Shape.NUMBER,), (Shape.WORD,)

# The registry. docs/metrics.md lists each key; a test fails where one lacks its documentation or its entry.
KEYS: dict[str, Key] = {
    "job": Key(_N, "row of a study on its way through the node"),
    "row": Key(_N, "row of an instance in the spool"),
    "study_row": Key(_N, "row of a study in the spool"),
    "item": Key(_N, "row of the quarantine"),
    "answer": Key(_N, "row of an answer"),
    "result": Key(_N, "row of a result (of a rejected association: PS3.8 result)"),
    "source": Key((Shape.NUMBER, Shape.WORD), "source of a rejection (PS3.8), or of an object"),
    "version": Key(_N, "how many times an instance came with other bytes"),
    "instances": Key(_N, "number of instances"),
    "held": Key(_N, "number of kinds of objects held in quarantine"),
    "masked": Key(_N, "number of instances that passed and in which text was blanked"),
    "faces": Key(_N, "number of instances that passed and from which a face may be recognised"),
    "studies": Key(_N, "number of studies"),
    "patients": Key(_N, "number of patients"),
    "series": Key(_N, "number of series"),
    "slices": Key(_N, "number of slices"),
    "skipped": Key(_N, "number left out"),
    "cases": Key(_N, "number of cases"),
    "vectors": Key(_N, "number of vectors"),
    "tail": Key(_N, "vectors newer than the snapshot"),
    "dim": Key(_N, "length of a vector"),
    "count": Key(_N, "number of whatever the event is about"),
    "bytes": Key(_N, "size in bytes"),
    "seconds": Key(_N, "duration, or time until the next try, in seconds"),
    "attempts": Key(_N, "tries so far"),
    "resends": Key(_N, "times a result was sent again on request"),
    "port": Key(_N, "TCP port the node listens on"),
    "web_port": Key(_N, "TCP port of the web side"),
    "pid": Key(_N, "process of the node"),
    "slot": Key(_N, "number of a receiver or worker process"),
    "orphan_files": Key(_N, "files without a row found by the sweep"),
    "finished_removals": Key(_N, "removals finished by the sweep"),
    "stray_instances": Key(_N, "rows without a study found by the sweep"),
    "old_jobs": Key(_N, "finished jobs cleared by the sweep"),
    "missing_files": Key(_N, "rows whose file is gone"),
    "segments": Key(_N, "segments of the vector store"),
    "files": Key(_N, "number of files"),
    "stored": Key(_N, "instances stored by a receiver"),
    "aborted": Key(_N, "associations aborted when a receiver stopped"),
    "failures": Key(_N, "times in a row that a process of the node died"),
    "exit_code": Key(_N, "exit code of a process of the node"),
    "restart_in_s": Key(_N, "seconds until a process of the node is started again"),
    "epoch": Key(_N, "epoch of a training"),
    "epochs_done": Key(_N, "epochs done before a training was resumed"),
    "eta_s": Key(_N, "seconds until a training is done, if all its epochs take what the last ones took"),
    "loss": Key(_N, "training loss"),
    "validation": Key(_N, "loss on images kept apart to stop a training early"),
    "accuracy": Key(_N, "share of training images classified rightly, under augmentation"),
    "map": Key(_N, "mean average precision of a training's network"),
    "recall": Key(_N, "measured recall of a snapshot"),
    "recall_lower": Key(_N, "lower bound of that recall"),
    "step": Key(_W, "step of the workflow"),
    "role": Key((Shape.NAME,), "role of an AE title or of a process"),
    "state": Key(_W, "state of a row"),
    "outcome": Key(_W, "what became of it"),
    "verdict": Key(_W, "verdict of an answer"),
    "kind": Key((Shape.WORD, Shape.CLASS), "kind of a result's object or of refused images, or class of an exception"),
    "reason": Key(
        (Shape.WORD, Shape.NUMBER), "one of the words of docs/quarantine.md, or why an association was rejected"
    ),
    "code": Key(_W, "stable code of an error"),
    "status": Key((Shape.CODE, Shape.NUMBER, Shape.WORD), "DIMSE or HTTP status, or status of a finding"),
    "model_id": Key((Shape.CODE,), "hash of a model pack"),
    "device": Key((Shape.PLACE, Shape.WORD), "where networks run: cpu, cuda:0"),
    "backend": Key(_W, "kind of index"),
    "now": Key(_W, "what is used instead"),
    "attribute": Key((Shape.KEYWORD,), "keyword of a DICOM attribute, never its value"),
    "child": Key((Shape.NAME,), "process of the node"),
    "receiver": Key((Shape.NAME,), "receiver process"),
    "snapshot": Key((Shape.NAME,), "name of an index snapshot"),
    "calling": Key((Shape.NAME,), "AE title of a system that was rejected"),
    "called": Key((Shape.NAME,), "AE title that it called"),
    "peer": Key((Shape.NAME,), "name of a peer in the settings"),
    "ae_title": Key((Shape.NAME,), "AE title of ours"),
    "subject": Key((Shape.PSEUDONYM,), "pseudonym of a patient"),
    "study_uid": Key((Shape.UID,), "pseudonymous Study Instance UID"),
    "error": Key((Shape.CLASS,), "class of an exception"),
    "line": Key((Shape.LINE,), "line of a DicomnodeError"),
    "where": Key((Shape.PLACE,), "file and line of the code where an exception was raised"),
}
_OURS = frozenset({"event", "level", "logger", "time", "dropped"})

_PATTERNS = {
    Shape.WORD: re.compile(r"[a-z][a-z0-9_-]{0,39}"),
    Shape.CODE: re.compile(r"[0-9A-F]{4}|[0-9a-f]{8,64}"),
    Shape.NAME: re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+ -]{0,63}"),
    Shape.PLACE: re.compile(r"[a-z_][A-Za-z0-9_/.]{0,80}:[0-9]{1,6}"),
    Shape.PSEUDONYM: re.compile(r"(?=.*[0-9])(?=.*[A-Za-z])[A-Za-z0-9-]{8,64}"),
    Shape.UID: re.compile(r"2\.25\.[0-9]{1,39}"),
    Shape.LINE: re.compile(r"[^\x00-\x1f\x7f]{1,300}"),
}
_EVENT = re.compile(r"[a-z][a-z0-9_]{0,63}")
_LIBRARIES = (
    "dbos",
    "uvicorn",
    "uvicorn.error",
    "uvicorn.access",
    "pydicom",
    "deid",
    "sqlalchemy",
    "alembic",
)

EventDict = MutableMapping[str, Any]


def configure_logging(
    level: str = "info", json: bool | None = None, *, stream: TextIO | None = None, libraries: bool = True
) -> None:
    """Set up logging of this process: ours through the allow-list, libraries by logger and level only.

    Parameters
    ----------
    level : str
        "debug", "info", "warning" or "error": how much of our own events is written. Libraries are written from
        warning up whatever the level.
    json : bool, optional
        JSON lines; default: unless the stream is a terminal.
    stream : text stream, optional
        Where to write; default standard error as it is now.
    libraries : bool
        Whether it is told that a library had something to say: in the node's log, not on the screen of a command.
    """
    stream = stream or sys.stderr
    terminal = stream.isatty()
    as_json = not terminal if json is None else json
    renderer: Callable[..., Any] = (
        structlog.processors.JSONRenderer(ensure_ascii=False)
        if as_json
        else structlog.dev.ConsoleRenderer(colors=terminal, sort_keys=False)
    )
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            _describe_exception,
            keep_allowed,
            _add_logger_and_time,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=_LoggerFactory(stream),
        cache_logger_on_first_use=False,
    )
    _reduce_libraries(_LibraryHandler(level=logging.WARNING) if libraries else logging.NullHandler())
    sys.excepthook = _process_failed
    threading.excepthook = _thread_failed


def keep_allowed(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """structlog processor: leave out what is not in ``KEYS`` or has not its key's shape, and name it in ``dropped``.

    The names of left-out keys are kept where they look like names in code; an event that does not becomes
    "unnamed_event".
    """
    kept: EventDict = {}
    dropped: set[str] = set()
    for name, value in event_dict.items():
        if name == "event":
            is_event = isinstance(value, str) and _EVENT.fullmatch(value)
            kept["event"] = value if is_event else "unnamed_event"
        elif name in ("level", "logger"):
            kept[name] = value
        elif value is None and name in KEYS:
            kept[name] = None
        elif name in KEYS and any(has_shape(value, shape) for shape in KEYS[name].shapes):
            kept[name] = value.value if isinstance(value, Enum) else value
        else:
            dropped.add(name if _EVENT.fullmatch(name) else "unnamed")
    if dropped:
        kept["dropped"] = sorted(dropped)
    return kept


def has_shape(value: object, shape: Shape) -> bool:
    """Whether a value may be logged as this shape."""
    if shape is Shape.NUMBER:
        return isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value))
    text = value.value if isinstance(value, Enum) else value
    if not isinstance(text, str):
        return False
    if shape is Shape.CLASS:
        return _is_exception_class(text)
    if shape is Shape.KEYWORD:
        return text in keyword_dict
    return _PATTERNS[shape].fullmatch(text) is not None


def _is_exception_class(name: str) -> bool:
    seen: set[type] = set()
    todo: list[type] = [BaseException]
    while todo:
        cls = todo.pop()
        if cls.__name__ == name:
            return True
        if cls not in seen:
            seen.add(cls)
            todo.extend(type.__subclasses__(cls))
    return False


def _describe_exception(_logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    """Replace ``exc_info`` by class, place and, for errors of ours, code and line. Stack dumps are left out."""
    event_dict.pop("stack_info", None)
    info = event_dict.pop("exc_info", None)
    if info is True:
        info = sys.exc_info()
    exc = info[1] if isinstance(info, tuple) else info
    if isinstance(exc, BaseException):
        event_dict.update(describe(exc))
    return event_dict


def describe(exc: BaseException) -> dict[str, str]:
    """What may be logged of an exception: ``error``, ``where``; of a ``DicomnodeError`` also ``code`` and ``line``."""
    said = {"error": type(exc).__name__}
    frames = traceback.extract_tb(exc.__traceback__)
    if frames:
        said["where"] = f"{Path(frames[-1].filename).name}:{frames[-1].lineno}"
    if isinstance(exc, DicomnodeError):
        said |= {"code": exc.code, "line": exc.line[:300]}
    return said


def _add_logger_and_time(logger: Any, _method: str, event_dict: EventDict) -> EventDict:
    event_dict.setdefault("logger", getattr(logger, "name", ""))
    stamped = structlog.processors.TimeStamper(fmt="iso", utc=True, key="time")(logger, "", event_dict)
    return {k: stamped[k] for k in ("time", "level", "logger", "event")} | dict(stamped)


class _NamedLogger(structlog.WriteLogger):
    """Writes one line a call, as one write, so that lines of several processes do not mix."""

    def __init__(self, name: str, file: TextIO) -> None:
        super().__init__(file)
        self.name = name


class _LoggerFactory:
    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __call__(self, *args: Any) -> _NamedLogger:
        name = args[0] if args and isinstance(args[0], str) else "dicomnode"
        return _NamedLogger(name, self._stream)


class _LibraryHandler(logging.Handler):
    """Tells that a library had something to say, at which level, and the class of the exception it may carry."""

    def emit(self, record: logging.LogRecord) -> None:
        log = structlog.get_logger(".".join(record.name.split(".")[:2]))
        exc = record.exc_info[1] if record.exc_info else None
        said = describe(exc) if exc is not None else {}
        log.log(max(record.levelno, logging.WARNING), "library_message", **said)


def _reduce_libraries(handler: logging.Handler) -> None:
    """One handler at the root and on loggers that would bring their own; Python warnings go the same way."""
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(logging.WARNING)
    for name in _LIBRARIES:
        library = logging.getLogger(name)
        library.handlers = [handler]  # DBOS adds a console handler of its own only where there is none
        library.propagate = False
        library.setLevel(logging.WARNING)
    pynetdicom = logging.getLogger("pynetdicom")
    pynetdicom.handlers = [logging.NullHandler()]
    pynetdicom.propagate = False
    logging.getLogger("uvicorn.access").handlers = [logging.NullHandler()]  # its lines hold links
    logging.raiseExceptions = False  # else a handler that fails prints the record's arguments
    logging.captureWarnings(capture=True)


def _process_failed(kind: type[BaseException], exc: BaseException, _trace: TracebackType | None) -> None:
    if issubclass(kind, KeyboardInterrupt):
        return
    structlog.get_logger("dicomnode").error("process_failed", exc_info=exc)


def _thread_failed(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None and not isinstance(args.exc_value, SystemExit):
        structlog.get_logger("dicomnode").error("thread_failed", exc_info=args.exc_value)


def as_markdown() -> str:
    """The table of keys in docs/metrics.md."""
    lines = ["| key | value | meaning |", "|---|---|---|"]
    lines += [f"| `{n}` | {' or '.join(s.value for s in k.shapes)} | {k.meaning} |" for n, k in KEYS.items()]
    return "\n".join(lines) + "\n"
