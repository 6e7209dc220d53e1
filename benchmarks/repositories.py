"""Repositories of the same content on every machine."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from tests.support.person import Person

COMMITS = 60
"""More than the 50 that a session gets, so that history is cut."""
_FILES_PER_DIRECTORY = 40
_WHO = b"A Person <person@localhost>"


def generated(person: Person, name: str, files: int) -> Path:
    """Make a repository of ``files`` small files in the person's home, checked out and clean."""
    path = person.home / name
    person.run(["git", "init", "--quiet", str(path)]).check()
    stream = b"".join(_stream(files))
    person.run(["git", "fast-import", "--quiet", "--done"], cwd=path, input=stream, timeout=600).check()
    person.run(["git", "reset", "--quiet", "--hard"], cwd=path, timeout=600).check()
    return path


def _stream(files: int) -> Iterator[bytes]:
    """Yield the input of ``git fast-import``: one commit with all files, then one changed file in each."""
    for number in range(COMMITS):
        yield b"commit refs/heads/main\ncommitter %s %d +0000\n" % (_WHO, 1_700_000_000 + number)
        yield _data(b"Commit %d\n" % number)
        for file in range(files) if number == 0 else [number % files]:
            yield b"M 100644 inline %s\n" % _name(file)
            yield _data(_content(file, number))
    yield b"done\n"


def _name(file: int) -> bytes:
    directory = file // _FILES_PER_DIRECTORY
    return b"packages/%02d/part_%04d/module_%06d.py" % (directory % 25, directory, file)


def _content(file: int, version: int) -> bytes:
    """Return 300 to 1500 bytes that compress about as well as source does."""
    seed = hashlib.sha256(b"%d %d" % (file, version)).hexdigest().encode("ascii")
    lines = [b"value_%d_%s = %d\n" % (n, seed[n : n + 8], file * n) for n in range(10 + file % 41)]
    return b"".join(lines)


def _data(content: bytes) -> bytes:
    return b"data %d\n%s\n" % (len(content), content)
