"""The command line: one module a command group, no logic. Every error is one line, never a traceback."""

from __future__ import annotations

import sys

from dicomnode.errors import EXIT_FAILED, DicomnodeError


def main() -> None:
    """Entry point of ``dicomnode``."""
    from dicomnode.cli.app import app

    try:
        app()
    except DicomnodeError as exc:
        sys.stderr.write(f"error: {exc}\n")
        sys.exit(exc.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
        sys.exit(EXIT_FAILED)


if __name__ == "__main__":
    main()
