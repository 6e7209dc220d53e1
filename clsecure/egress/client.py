"""How a session starts its gateway, gives it the sandbox's listening socket, and learns what went through.

Of a gateway that died in between, its log still says what went through until then.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
from pathlib import Path
from types import TracebackType
from typing import Any

from clsecure import process
from clsecure.egress import wire
from clsecure.egress.control import remove_socket
from clsecure.egress.wire import EgressTotals, GatewayConfig
from clsecure.errors import EgressError
from clsecure.process import Command

_READY_TIME = 30.0
_CLOSE_TIME = 5.0
_ENVIRONMENT = ("SSL_CERT_FILE", "SSL_CERT_DIR")


class Gateway:
    """A running gateway; a context manager that ends it. Made by :func:`start_gateway`.

    :param token: the session's random token: what the agent gets in the place of the credential.
    """

    def __init__(
        self, child: process.Process[bytes], control: socket.socket, *, token: str, config: GatewayConfig
    ) -> None:
        self.token = token
        self.residuals: tuple[str, ...] = ()
        """What the gateway could not take from itself on this machine; known once it serves."""

        self._child = child
        self._control = control
        self._log, self._orders = config.log, config.control
        self._log_start = _size(config.log)
        self._totals: EgressTotals | None = None

    def serve(self, listener: socket.socket, *, port: int | None = None) -> None:
        """Hand a listening socket over and wait until clients are accepted on it.

        The caller's own descriptor is closed: were it left open, the port would outlive the gateway.

        :param port: by which it is reached inside, where that is not the socket's own.
        :raises EgressError: the gateway did not start, or refuses the socket.
        """
        # Where it is gone, what it said before tells why.
        with listener, contextlib.suppress(OSError):
            order = wire.encode({"type": "serve", "port": port})
            socket.send_fds(self._control, [order], [listener.fileno()])
        self.residuals = wire.decode_residuals(self._receive("serving"))

    def alive(self) -> bool:
        """Tell whether the gateway runs. When it does not, the sandbox reaches nothing any more."""
        return self._child.poll() is None

    def close(self) -> EgressTotals:
        """End the gateway and every connection; return what went through. May be called again."""
        if self._totals is None:
            self._totals = self._end()
        return self._totals

    def __enter__(self) -> Gateway:
        """Return itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """End the gateway."""
        self.close()

    def _end(self) -> EgressTotals:
        totals = EgressTotals(complete=False)
        try:
            self._control.send(wire.encode({"type": "close"}))
            message = self._receive("totals", timeout=_CLOSE_TIME)
            totals = wire.decode_totals(message)
        except (OSError, EgressError):
            # Dead or stuck: its counts are lost, its end is not.
            pass
        self._control.close()
        try:
            self._child.wait(timeout=_CLOSE_TIME if totals.complete else 0)
        except process.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if not totals.complete and self._log is not None:
            from clsecure.egress.tally import totals_of_log

            totals = totals_of_log(self._log, start=self._log_start)
        if self._orders is not None:
            # The gateway itself may not remove files.
            with contextlib.suppress(OSError):
                remove_socket(self._orders)
        return totals

    def _receive(self, kind: str, *, timeout: float = _READY_TIME) -> dict[str, Any]:
        self._control.settimeout(timeout)
        try:
            try:
                data = self._control.recv(wire.MAX_MESSAGE)
            except ConnectionResetError:
                # It ended before it read all that was said to it. Its own last words are still there.
                data = self._control.recv(wire.MAX_MESSAGE)
        except TimeoutError as error:
            raise EgressError("The gateway does not answer") from error
        except OSError:
            data = b""
        if not data:
            raise EgressError("The gateway has ended", details="Its network is closed, not open.")
        message = wire.decode(data)
        if message["type"] == "error":
            raise wire.decode_error(message)
        if message["type"] != kind:
            raise EgressError("The gateway and its session don't understand each other")
        return message


def start_gateway(config: GatewayConfig) -> Gateway:
    """Start a gateway and return at once; :meth:`Gateway.serve` waits until it is ready.

    Started from the main thread it dies with this process even when it hangs. From another thread it can't be
    tied like that, since the kernel would end it with the thread: then it ends when its socket closes.

    :raises ToolError: the interpreter can't be started.
    """
    # What the secrets module does, without the 10 ms that importing it costs each start.
    token = os.urandom(32).hex()
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with contextlib.ExitStack() as undo:
        undo.callback(ours.close)
        with theirs:
            child = process.spawn(
                Command(
                    argv=(sys.executable, "-I", str(Path(__file__).with_name("__main__.py"))),
                    env={
                        "PATH": process.SYSTEM_PATH,
                        "LC_ALL": "C.UTF-8",
                        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                    },
                    cwd=Path("/"),
                ),
                stdin=theirs.fileno(),
                # A terminal's Ctrl-C is for the agent; the gateway ends with its session.
                new_session=True,
            )
        in_main_thread = threading.current_thread() is threading.main_thread()
        with contextlib.suppress(BrokenPipeError):
            wire.send_config(ours, wire.encode_config(config, token=token, die_with_parent=in_main_thread))
        undo.pop_all()
    return Gateway(child, ours, token=token, config=config)


def _size(path: Path | None) -> int:
    """Return where the lines of a new gateway begin."""
    try:
        return 0 if path is None else path.stat().st_size
    except OSError:
        return 0
