"""Break a sandbox on purpose, for one command alone, in a mount namespace of its own.

The machine's installation is never touched: a patched copy of a root-owned piece is mounted over the
installed one, and over the checkout's, since a start compares them byte for byte.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path

from clsecure.installation import PIECES
from tests.support.overlaid import overlaid
from tests.support.person import CHECKOUT, Person
from tests.support.shared_setup import DIRECTORY

PACKAGE = CHECKOUT / "clsecure"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One replacement of text in one file of the package.

    :param file: its path below ``clsecure/``.
    :param old: what is there, exactly once: a patch that no longer fits is an error, not a test of nothing.
    """

    file: str
    old: str
    new: str


def patched(patches: tuple[Patch, ...]) -> dict[str, str]:
    """Return the files that patches change, with their new text.

    :raises AssertionError: what is to be replaced is not there, or more than once.
    """
    texts: dict[str, str] = {}
    for patch in patches:
        text = texts.get(patch.file) or (PACKAGE / patch.file).read_text()
        assert text.count(patch.old) == 1, f"{patch.file} has {text.count(patch.old)} times: {patch.old!r}"
        texts[patch.file] = text.replace(patch.old, patch.new)
    return texts


def places(file: str) -> list[str]:
    """Return where a file of the package is seen: in the checkout, and installed, where it is a piece."""
    installed = [str(DIRECTORY / piece.target) for piece in PIECES if piece.source == file]
    return [str(PACKAGE / file), *installed]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scene:
    """Where something is to be broken.

    :param place: an empty directory of the test's own, root's.
    """

    person: Person
    mode: str
    place: Path


Breakage = Callable[[Scene], AbstractContextManager[Person]]
"""Breaks something, and gives the person for whom it is broken; leaving mends it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """The breakage that is other code.

    :param over: files and directories that lie over the machine's as well.
    """

    patches: tuple[Patch, ...]
    over: Mapping[str, Path] = field(default_factory=dict)

    @contextlib.contextmanager
    def __call__(self, scene: Scene) -> Iterator[Person]:
        """Write the patched copies; whoever the person's programs are then sees them."""
        layers = dict(self.over)
        for number, (file, text) in enumerate(patched(self.patches).items()):
            copy = scene.place / str(number)
            copy.write_text(text)
            # As the piece is installed: a start looks at owner and permissions, too.
            copy.chmod(next((piece.mode for piece in PIECES if piece.source == file), 0o644))
            layers |= dict.fromkeys(places(file), copy)
        yield overlaid(scene.person, layers)


def replaced(*patches: Patch, over: Mapping[str, Path] | None = None) -> Replaced:
    """Return the breakage that is other code."""
    return Replaced(patches=patches, over=over or {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """One row of the table: how a check is made to fail.

    :param how: what is broken, in words; with the check's id it names the test.
    :param also: other checks that this breaks, too, each with the reason why it cannot but.
    :param options: what ``clsecure verify`` is started with besides its mode.
    """

    check_id: str
    modes: tuple[str, ...]
    how: str
    broken: Breakage
    also: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()

    @property
    def expected(self) -> set[str]:
        """The ids of all checks that are to fail, and no others."""
        return {self.check_id, *self.also}
