"""The whole export: a request on standard input, the stream on standard output."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time

from clsecure.privileged.exporter.files import ExportError, text_of
from clsecure.privileged.exporter.homesize import HomeSize
from clsecure.privileged.exporter.outgoing import record, write_unit
from clsecure.privileged.exporter.request import Request
from clsecure.privileged.exporter.unit import Unit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

TEMPORARY = ".clsecure-export-"


def export(request: Request, temp: str, out: BinaryIO) -> None:
    """Compute all units, inner ones first (a gitlink names what comes home of them), then write them."""
    deadline = time.monotonic() + request.seconds
    size = HomeSize(os.environ.get("HOME") or "/nonexistent", temp)
    units = {asked.path: Unit(asked, request) for asked in request.units}
    finals: dict[bytes, bytes] = {}
    for path in sorted(units, key=lambda p: (-len(p.split(b"/")) if p else 0, p)):
        unit = units[path]
        try:
            unit.collect(temp, deadline, finals)
        except ExportError as error:
            where = f"submodule {text_of(path)}: " if path else ""
            raise ExportError(where + str(error)) from error
        if not unit.absent:
            finals[path] = unit.final
    for unit in units.values():
        write_unit(out, unit)
    record(out, {"type": "end", "size": 0, "units": len(units), "home_size": size.value()})


def free(directory: str) -> int:
    """Return the bytes that can still be written there: the agent may have filled its home."""
    room = os.statvfs(directory)
    return room.f_bavail * room.f_frsize


def place_for_work(request: Request) -> str:
    """A directory of our own; what a killed export left beside it is taken away."""
    wanted, workspace = request.temp, os.fsdecode(request.workspace)
    if wanted is not None:
        try:
            for name in os.listdir(wanted):
                path = os.path.join(wanted, name)
                if name.startswith(TEMPORARY) and not (workspace + "/").startswith(path + "/"):
                    shutil.rmtree(path, ignore_errors=True)
            if free(wanted) >= free(tempfile.gettempdir()):
                return tempfile.mkdtemp(prefix=TEMPORARY, dir=wanted)
        except OSError:
            pass  # the agent may have made its home read-only: there is memory
    return tempfile.mkdtemp(prefix=TEMPORARY)


def main() -> int:
    """Read the request, write the stream."""
    os.umask(0o077)
    out = sys.stdout.buffer
    request = Request(json.loads(sys.stdin.buffer.readline(1 << 20)))
    temp = place_for_work(request)
    try:
        export(request, temp, out)
        out.flush()
    except (ExportError, OSError, subprocess.SubprocessError) as error:
        words = str(error)[:4000].encode("ascii", "backslashreplace").decode("ascii")
        record(out, {"type": "error", "size": 0, "message": words})
        out.flush()
        sys.stderr.write(f"export: {words}\n")
        return 1
    finally:
        shutil.rmtree(temp, ignore_errors=True)
    return 0
