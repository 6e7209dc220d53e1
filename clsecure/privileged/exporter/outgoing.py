"""The stream to the host: records of one line of JSON each, with their bytes behind them."""

from __future__ import annotations

import base64
import json
import os
import shutil

from clsecure.privileged.exporter.files import ExportError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import BinaryIO

    from clsecure.privileged.exporter.request import Json
    from clsecure.privileged.exporter.unit import Unit

LINE = 65536


def record(out: BinaryIO, fields: Json) -> None:
    """Write one line; its bytes follow."""
    line = json.dumps(fields, separators=(",", ":")).encode("ascii") + b"\n"
    if len(line) > LINE:
        raise ExportError("a record is too long")
    out.write(line)


def write_unit(out: BinaryIO, unit: Unit) -> None:
    """Write the records of one unit."""
    history, refusals, counts = unit.history, unit.refusals, unit.counts
    record(out, {
        "type": "unit", "size": 0, "path": _b64(unit.asked.path), "tip": _text(history.tip),
        "tree": _text(unit.tree), "uncommitted": _text(unit.uncommitted), "rewritten": history.rewritten,
        "unborn": history.unborn, "absent": unit.absent,
        "other_refs": [{"name": _b64(name), "id": _text(commit)} for name, commit in history.others],
        "refused": [{"path": _b64(path), "why": why} for path, why in refusals.named],
        "refused_more": refusals.more,
        "untracked": counts.untracked, "deleted": counts.deleted, "ignored": counts.ignored,
    })  # fmt: skip
    if unit.pack is None:
        return
    with open(unit.pack, "rb") as file:
        record(out, {"type": "pack", "size": os.fstat(file.fileno()).st_size})
        shutil.copyfileobj(file, out, 1 << 20)
    for oid, (path, size) in sorted(unit.lfs.items()):
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            record(out, {"type": "lfs", "size": size, "oid": oid})
            shutil.copyfileobj(file, out, 1 << 20)


def _b64(data: bytes) -> str:
    return base64.b64encode(data).decode("ascii")


def _text(value: bytes | None) -> str | None:
    return None if value is None else value.decode("ascii")
