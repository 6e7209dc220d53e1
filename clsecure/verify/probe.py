"""The host's end of a probe: orders go, replies come, each in time and bounded.

Whoever sits at the other end may lie, flood, hang or be gone. Each of these is an error; none makes this
wait.
"""

from __future__ import annotations

import binascii
import itertools
import json
import os
import select
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from clsecure.errors import VerificationError
from clsecure.verify.tried import Report

REPLY_LIMIT = 1 << 20
SECONDS = 20.0
"""How long the whole battery may take; it takes a fraction of one."""
RUN_SECONDS = 10.0
_GRACE = 5.0
"""What a probe needs besides to end what it has run."""
_CHUNK = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class Ran:
    """What a program inside left; hostile.

    :param status: 128+N for signal N; None when its time was over.
    """

    status: int | None
    stdout: bytes
    stderr: bytes


class Probe:
    """One probe, over two descriptors that stay the caller's.

    :param orders: where it reads.
    :param replies: where it writes.
    :param first: number of the first order; a reply with another number is nobody's.
    """

    def __init__(self, orders: int, replies: int, *, first: int = 1) -> None:
        self.orders = orders
        self.replies = replies
        self._numbers = itertools.count(first)
        self._rest = b""
        os.set_blocking(orders, False)

    def battery(self, order: Mapping[str, object], *, seconds: float = SECONDS) -> Report:
        """Let it try everything.

        :raises VerificationError: it does not answer, or with nonsense.
        """
        return Report.parse(self.ask(order, seconds=seconds))

    def run(self, command: str | Sequence[str], *, seconds: float = RUN_SECONDS) -> Ran:
        """Run a line of the shell's, or an argument vector.

        :raises VerificationError: it does not answer, or with nonsense.
        """
        what = {"command": command} if isinstance(command, str) else {"argv": list(command)}
        reply = self.ask({"do": "run", **what, "seconds": seconds}, seconds=seconds + _GRACE)
        try:
            status, late = reply["status"], reply["late"]
            out, err = (
                binascii.a2b_base64(str(reply[name]), strict_mode=True) for name in ("stdout", "stderr")
            )
        except (KeyError, ValueError) as error:
            raise _nonsense(str(error)) from error
        if isinstance(status, bool) or not isinstance(status, int | None) or (status is None) is not late:
            raise _nonsense("a status that is none")
        return Ran(status=status, stdout=out, stderr=err)

    def ask(self, order: Mapping[str, object], *, seconds: float) -> dict[str, object]:
        """Give one order and return the reply to it."""
        number = next(self._numbers)
        deadline = time.monotonic() + seconds
        self._say(json.dumps({"number": number, **order}).encode() + b"\n", deadline)
        try:
            reply = json.loads(self._line(deadline))
        except (ValueError, RecursionError) as error:
            raise _nonsense(str(error)) from error
        if not isinstance(reply, dict) or reply.get("number") != number:
            raise _nonsense("the reply belongs to no order")
        if "error" in reply:
            raise VerificationError(
                "the probe inside could not do what it was told", details=str(reply["error"])
            )
        return reply

    def _say(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            try:
                view = view[os.write(self.orders, view) :]
            except BlockingIOError:
                if not select.select([], [self.orders], [], max(0.0, deadline - time.monotonic()))[1]:
                    raise _silent() from None
            except OSError as error:
                raise _gone(str(error)) from error

    def _line(self, deadline: float) -> bytes:
        data = bytearray(self._rest)
        while b"\n" not in data:
            if not select.select([self.replies], [], [], max(0.0, deadline - time.monotonic()))[0]:
                raise _silent()
            try:
                chunk = os.read(self.replies, _CHUNK)
            except OSError as error:
                raise _gone(str(error)) from error
            if not chunk:
                raise _gone(bytes(data[:200]).decode("utf-8", "replace"))
            data += chunk
            if len(data) > REPLY_LIMIT:
                raise VerificationError("the probe inside says more than it was asked")
        line, _, self._rest = bytes(data).partition(b"\n")
        return line


def _nonsense(details: str) -> VerificationError:
    return VerificationError("the probe inside gave no reply that makes sense", details=details)


def _silent() -> VerificationError:
    return VerificationError("the probe inside did not answer in time")


def _gone(details: str) -> VerificationError:
    return VerificationError("the probe inside gave no report: it is gone", details=details or None)
