"""The one place that catches, prints and decides the exit status."""

from __future__ import annotations

import dataclasses
import errno
import importlib
import io
import os
import sys
from collections.abc import Callable, Sequence
from typing import TypeVar

from clsecure import logs
from clsecure.cli.options import Invocation, TextOptions
from clsecure.cli.parsing.parse import parse, wants_json
from clsecure.cli.screen import Screen, wants_colour
from clsecure.cli.verbs import Verb
from clsecure.errors import EXIT_FAILURE, EXIT_INTERRUPTED, ClsecureError, UsageError
from clsecure.interrupts import EndedBySignal
from clsecure.settings.sources import Layers, gather
from clsecure.settings.values import output
from clsecure.settings.values.output import OutputFormat
from clsecure.settings.values.words import boolean

_Value = TypeVar("_Value")
_log = logs.get("cli")

# These work for root: setup needs it, the others touch nothing. And they don't read the settings file:
# they must work when it is broken.
_WITHOUT_SETTINGS = frozenset({Verb.SETUP, Verb.DOCTOR, Verb.COMPLETION, Verb.HELP, Verb.VERSION})
_MODULES = {Verb.IMPORT: "import_"}  # a keyword can't be the name of a module


class _InterruptedError(ClsecureError):
    """Ctrl-C while no agent was running."""

    exit_code = EXIT_INTERRUPTED


class _EndedError(ClsecureError):
    """A signal asked for the end."""

    def __init__(self, end: EndedBySignal) -> None:
        super().__init__(end.brief)
        self.exit_code = end.exit_code  # type: ignore[misc]  # each signal has its own


def main(argv: Sequence[str]) -> int:
    """Run one command line.

    :param argv: the words after the program's name.
    :return: the exit status: the agent's own, or 123 to 125, or 128 + N when ended by signal N.
    """
    if not _descriptors_are_open():
        return EXIT_FAILURE
    # Names that this locale can't write are shown escaped, not a reason to fail.
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    as_json, verbose = wants_json(argv, os.environ), False
    try:
        invocation = _prepare(parse(argv))
        as_json, verbose = invocation.output is OutputFormat.JSON, invocation.verbose
        status = _execute(invocation)
    except KeyboardInterrupt:
        status = _report(_InterruptedError("interrupted"), as_json=as_json, verbose=False)
    except EndedBySignal as end:
        status = _report(_EndedError(end), as_json=as_json, verbose=False)
    except ClsecureError as error:
        status = _report(error, as_json=as_json, verbose=verbose)
    except OSError as error:
        status = _report(_os_error(error), as_json=as_json, verbose=verbose, cause=error)
    except Exception as error:  # noqa: BLE001  # the last resort
        status = _report(
            _internal_error(error, verbose=verbose), as_json=as_json, verbose=verbose, cause=error
        )
    finally:
        logs.close()
    return _flush(status)


def _prepare(invocation: Invocation) -> Invocation:
    """Find out how to speak, and refuse root."""
    from_file = invocation.verb not in _WITHOUT_SETTINGS
    if from_file and os.geteuid() == 0:
        raise UsageError(
            "clsecure does not run as root",
            details="It works in your repository, with your git and for your user.",
            resolution="run it as a normal user; only 'clsecure setup' needs root",
        )
    if isinstance(invocation.options, TextOptions):
        return invocation
    layers = gather(invocation.flags, file=from_file)
    return dataclasses.replace(
        invocation,
        layers=layers,
        output=_said(layers, "output", output.output, OutputFormat.HUMAN),
        verbose=_said(layers, "verbose", boolean, False),  # noqa: FBT003
    )


def _said(layers: Layers, key: str, reader: Callable[[str], _Value], default: _Value) -> _Value:
    """Read one setting without the model, which takes longer to import than ``list`` to answer."""
    entry = layers.strongest(key)
    if entry is None:
        return default
    try:
        return reader(entry.text)
    except ValueError as error:
        raise UsageError(f"{entry.source}: {key} {error}", resolution=f"correct {key} there") from None


def _execute(invocation: Invocation) -> int:
    if isinstance(invocation.options, TextOptions):
        sys.stdout.write(invocation.options.text)
        return 0
    from clsecure.cli.ui import make_ui

    if invocation.verbose:
        logs.show(_to_stderr)
    ui = make_ui(output=invocation.output, verbose=invocation.verbose)
    name = _MODULES.get(invocation.verb, invocation.verb.value)
    command = importlib.import_module(f"clsecure.cli.commands.{name}")
    status: int = command.execute(invocation, ui)
    return status


def _report(error: ClsecureError, *, as_json: bool, verbose: bool, cause: BaseException | None = None) -> int:
    from clsecure.cli import render

    trace = _traceback(cause or error)
    _log.error("failed", brief=error.brief, details=error.details, traceback=trace)
    if as_json:
        try:
            render.write_json(render.error_document(error))
        except OSError:
            render.show_error(error, _screen())
    else:
        render.show_error(error, _screen())
    if verbose and cause is not None:
        for line in trace.split("\n"):
            _screen().line(line)
    return error.exit_code


def _os_error(error: OSError) -> ClsecureError:
    if error.errno in {errno.EPIPE, errno.EBADF, errno.EIO} and error.filename is None:
        return ClsecureError("the result could not be written", details=error.strerror)
    where = f": {os.fsdecode(error.filename)}" if isinstance(error.filename, str | bytes) else ""
    return ClsecureError(
        f"{error.strerror or type(error).__name__}{where}",
        resolution="free some space and run it again"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}
        else None,
    )


def _internal_error(error: Exception, *, verbose: bool) -> ClsecureError:
    return ClsecureError(
        f"internal error: {type(error).__name__}: {error}",
        resolution="this is a bug; please report it with the lines below"
        if verbose
        else "this is a bug; run it again with --verbose to see where",
    )


def _traceback(error: BaseException) -> str:
    import traceback

    return "".join(traceback.format_exception(error)).rstrip("\n")


def _screen() -> Screen:
    return Screen(colour=wants_colour(2, os.environ), animate=False)


def _to_stderr(line: bytes) -> None:
    os.write(2, line)


def _descriptors_are_open() -> bool:
    """Tell whether 0, 1 and 2 are there; say so on what is, and let nothing else take their numbers."""
    names = ("standard input", "standard output", "standard error")
    closed = []
    for fd, name in enumerate(names):
        try:
            os.fstat(fd)
        except OSError:
            closed.append(name)
            os.open(os.devnull, os.O_RDWR)  # the lowest free number: this one
    if closed:
        _screen().line(f"{' and '.join(closed)} is closed", label="clsecure: ")
    return not closed


def _flush(status: int) -> int:
    """Write out what is left in python's own buffers, where a failure would come after the last catch."""
    for stream, fd in ((sys.stdout, 1), (sys.stderr, 2)):
        try:
            stream.flush()
        except (OSError, ValueError):
            status = status or EXIT_FAILURE
            # What is still in the buffer would be tried again at exit, with a message of python's own.
            with open(os.devnull, "wb") as null:  # noqa: PTH123
                os.dup2(null.fileno(), fd)
    return status
