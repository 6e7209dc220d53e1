"""What the host puts out for a probe inside: things that are really there, and that the user can reach.

What the probe says of itself is worth little. Who connected to a listener is known here, and that each bait
can be had at all is shown by the same probe, run outside as the user.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import secrets
import shutil
import socket
import stat
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from clsecure import process
from clsecure.process import Command
from clsecure.verify import calls
from clsecure.verify.ears import Ears, listening
from clsecure.verify.services import services

METADATA = ("169.254.169.254", "fd00:ec2::254")
"""Where clouds tell a machine its secrets."""
PRIVATE = ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10")
_TEMPORARY = ("/var/tmp", "/dev/shm")  # noqa: S108  # besides what TMPDIR names
_YOUNG = 60.0
"""Seconds in which one may be on its way still."""
_WORDS_LIMIT = 4000


@dataclass(frozen=True, slots=True, kw_only=True)
class Bait:
    """What was put out.

    :param files: label to a file or directory of the host's.
    :param ears: listeners of ours.
    :param services: label to path of sockets that services of this machine listen on.
    :param marker: a word in the argument vector of a process of ours.
    :param own: a directory of the user's.
    :param words: a file that everybody may read and write, and that has no name any more: the standard error
        of probes, which only Landlock keeps from opening it once more.
    :param words_path: where it was.
    """

    files: Mapping[str, str]
    ears: Ears
    services: Mapping[str, str]
    marker: str
    own: str
    words: int
    words_path: str

    def order(
        self,
        *,
        outside: bool = False,
        full: bool = False,
        private: bool = False,
        patience: float | None = None,
    ) -> dict[str, object]:
        """Return what the probe is told to try.

        :param outside: only look at the sockets of services: a connection could start one of them.
        :param full: send a packet to where metadata is, which a packet filter is to refuse. Elsewhere there
            is no way, which is asked without sending anything.
        :param private: to private networks, too.
        :param patience: seconds for all connections together, None for the probe's own.
        """
        services = {label: ("unix", path) for label, path in self.services.items()}
        datagrams = self.ears.places(socket.SOCK_DGRAM)
        far = {label: (family, label) for label, family in zip(METADATA, ("inet", "inet6"), strict=True)}
        nobody = {label: ("inet", f"{label.partition('/')[0][:-1]}9") for label in PRIVATE}
        return {
            "do": "try",
            "files": self.files,
            "word": self.ears.word,
            "sockets": self.ears.places(socket.SOCK_STREAM),
            "datagrams": {label: (family, *place) for label, (family, place) in datagrams.items()},
            "services": {} if outside else services,
            "looked_at": self.services if outside else {},
            "packets": {**(far if full else {}), **(nobody if private else {})},
            "marker": self.marker,
            "own": self.own,
            **calls.ORDER,
            **({} if patience is None else {"patience": patience}),
        }

    def said(self) -> str:
        """Return the last words of a probe, bounded, and forget them."""
        words = os.pread(self.words, _WORDS_LIMIT, 0).decode("utf-8", "replace").strip()
        os.ftruncate(self.words, 0)
        return words


@contextmanager
def put_out(home: Path, state: Path, environ: Mapping[str, str] = MappingProxyType({})) -> Iterator[Bait]:
    """Put everything out, and take it away at the end.

    :param state: a directory of the user's own, below the home where it usually is.
    :param environ: the user's, which says where services listen.
    """
    for place in (tempfile.gettempdir(), *_TEMPORARY):
        _sweep(Path(place), "clsecure-info-*")
    _sweep(state, "info-*")
    with contextlib.ExitStack() as stack:
        shared = Path(tempfile.mkdtemp(prefix="clsecure-info-"))
        stack.callback(shutil.rmtree, shared, ignore_errors=True)
        ears = stack.enter_context(listening(shared))
        own = Path(tempfile.mkdtemp(prefix="info-", dir=state))
        stack.callback(shutil.rmtree, own, ignore_errors=True)
        others = [
            Path(tempfile.mkdtemp(prefix="clsecure-info-", dir=place)) for place in _writable(_TEMPORARY)
        ]
        for directory in others:
            stack.callback(shutil.rmtree, directory, ignore_errors=True)
        for directory in (shared, own, *others):
            # No permission keeps a worker from the one in /tmp; the view must.
            directory.chmod(0o755)
            file = stack.enter_context((directory / "bait").open("w"))
            file.write("bait\n")
            file.flush()
            (directory / "bait").chmod(0o644)
            # Held as long as somebody needs it.
            fcntl.flock(file, fcntl.LOCK_EX)
        words = _nameless(shared / "words")
        stack.callback(os.close, words)
        marker = f"clsecure-info-{secrets.token_hex(8)}"
        stack.enter_context(_marked(marker))
        yield Bait(
            files={"home": str(home), "state": str(own / "bait"), "temporary": str(shared / "bait"),
                   "root's home": "/root", "passwords": "/etc/shadow",
                   **{str(each.parent): str(each / "bait") for each in others}},
            ears=ears,
            services=services(environ),
            marker=marker,
            own=str(own),
            words=words,
            words_path=str(shared / "words"),
        )  # fmt: skip


def _nameless(path: Path) -> int:
    """Return a descriptor of a file that is had by nothing else; not in a file system of memory's own.

    The kernel confines nobody to paths in those that are nowhere mounted, as a pipe's.
    """
    file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    os.fchmod(file, 0o666)
    path.unlink()
    return file


def _sweep(place: Path, pattern: str) -> None:
    """Take away what was left by sessions that were killed: old, the user's own, and held by nobody."""
    with contextlib.suppress(OSError):
        for path in place.glob(pattern):
            if _is_left(path):
                shutil.rmtree(path, ignore_errors=True)


def _is_left(path: Path) -> bool:
    with contextlib.suppress(OSError):
        found = path.lstat()
        young = time.time() - found.st_mtime < _YOUNG
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or young:
            return False
        held = os.open(path / "bait", os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            os.close(held)
        return True
    return False


def _writable(places: Iterable[str]) -> list[str]:
    return [place for place in places if os.access(place, os.W_OK | os.X_OK)]


@contextmanager
def _marked(marker: str) -> Iterator[None]:
    """Hold a process of the user's whose argument vector everybody on this machine can read."""
    child = process.spawn(
        Command(argv=("/bin/sh", "-c", "read -r _", marker)), stdin=process.PIPE, new_session=True
    )
    try:
        yield
    finally:
        child.communicate(timeout=10)
