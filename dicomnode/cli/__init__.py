"""The command line: one module a command group, no logic. Every error is one line, never a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from dicomnode.errors import EXIT_FAILED, EXIT_USAGE, DicomnodeError
from dicomnode.models.memory import keep_freed_memory
from dicomnode.models.threads import wait_passively

INTERRUPTED = 130  # 128 + SIGINT, as shells count


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point of ``dicomnode``; exits 0 done, 1 failed or something quarantined, 2 usage."""
    wait_passively()
    if argv is None and sys.argv[1:2] == ["train"]:  # this process is a training's own
        keep_freed_memory()
    sys.exit(_run(argv))


def _run(argv: Sequence[str] | None) -> int:
    import typer

    from dicomnode.cli.app import app
    from dicomnode.cli.options import one_command

    # Typer brings its own copy of click: the base of its errors is found through the one that it exports.
    usage: type[Exception] = next(c for c in typer.BadParameter.__mro__ if c.__name__ == "ClickException")
    try:
        with one_command():
            code = app(args=argv, prog_name="dicomnode", standalone_mode=False)
    except DicomnodeError as exc:
        return _fail(str(exc), exc.exit_code)
    except usage as exc:
        if type(exc).__name__ == "NoArgsIsHelpError":  # the help was asked for by saying nothing
            print(exc)
            return EXIT_USAGE
        return _usage(exc)
    except (KeyboardInterrupt, typer.Abort):
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nothing more is written at exit
        return EXIT_FAILED
    except OSError as exc:
        return _fail(f"{exc.filename or 'the system'}: {exc.strerror or type(exc).__name__}", EXIT_FAILED)
    except Exception as exc:  # noqa: BLE001 - its text may hold anything, a name included: only its place is told
        return _fail(f"a fault of the program: {type(exc).__name__} in {_where(exc)}; please report it", EXIT_FAILED)
    return code if isinstance(code, int) else 0


def _fail(line: str, code: int) -> int:
    sys.stderr.write(f"error: {' '.join(line.split())}\n")
    return code


def _usage(exc: Exception) -> int:
    command = getattr(getattr(exc, "ctx", None), "command_path", "dicomnode")
    message = exc.format_message() if hasattr(exc, "format_message") else str(exc)
    return _fail(f"{command}: {message.rstrip('.')} ({command} --help)", EXIT_USAGE)


def _where(exc: BaseException) -> str:
    """File and line of the innermost frame of our own."""
    place, trace = "", exc.__traceback__
    while trace is not None:
        file = Path(trace.tb_frame.f_code.co_filename)
        if "dicomnode" in file.parts or not place:
            place = f"{file.name}:{trace.tb_lineno}"
        trace = trace.tb_next
    return place


if __name__ == "__main__":
    main()
