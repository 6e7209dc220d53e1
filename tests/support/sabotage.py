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

USER, NAMESPACE, CONTAINER = ("user",), ("namespace",), ("container",)
LOCAL, EVERY = (*USER, *NAMESPACE), (*USER, *NAMESPACE, *CONTAINER)

LAUNCHER, PROFILE = "privileged/launcher.py", "privileged/firejail.profile"
MODES, VIEW, SANDBOX, FACTS, REMAINS = (
    f"privileged/root/{name}.py" for name in ("modes", "view", "sandbox", "facts", "remains")
)
PROCESSES, ENGINE, USERSPACE = (f"privileged/root/{name}.py" for name in ("processes", "engine", "userspace"))
KERNEL = "privileged/root/kernel.py"
LOCAL_BACKEND = "backends/local.py"
LOCAL_BACKEND, DOCKER = "backends/local.py", "backends/container/docker.py"
PODMAN, CONTAINERS = "backends/container/podman.py", "backends/container/spec.py"


@dataclass(frozen=True, slots=True, kw_only=True)
class Patch:
    """One replacement of text in one file of the package.

    :param file: its path below ``clsecure/``.
    :param old: what is there, exactly once: a patch that no longer fits is an error, not a test of nothing.
    """

    file: str
    old: str
    new: str


def after(file: str, old: str, *lines: str) -> Patch:
    """Return the patch that adds lines behind what is there."""
    return Patch(file=file, old=old, new="".join([old, *(f"{line}\n" for line in lines)]))


def unseen(*words: str) -> Patch:
    """Have the helper leave the mounts out whose line holds one of these."""
    return Patch(
        file=FACTS,
        old='mountinfo = [line.rstrip("\\n") for line in file]',
        new=f'mountinfo = [line.rstrip("\\n") for line in file if not any(w in line for w in {words!r})]',
    )


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
    :param environ: what the person's environment is to hold besides.
    """

    person: Person
    mode: str
    place: Path
    environ: dict[str, str] = field(default_factory=dict)


Breakage = Callable[[Scene], AbstractContextManager[Person]]
"""Breaks something, and gives the person for whom it is broken; leaving mends it."""


Meanwhile = Callable[[Person, Path], AbstractContextManager[None]]
"""Does something to a person's machine while their session runs; leaving undoes it."""


@contextlib.contextmanager
def nothing(_person: Person, _repository: Path) -> Iterator[None]:
    """Only wait: the session is to be ended by what is seen of it."""
    yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Replaced:
    """The breakage that is other code.

    :param over: files that lie over the machine's as well.
    :param first: shell commands of root's, in the namespaces of that one command.
    :param own_network: among them a network of its own, with nothing in it.
    """

    patches: tuple[Patch, ...]
    over: Mapping[str, Path] = field(default_factory=dict)
    first: str = ""
    own_network: bool = False

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
        yield overlaid(scene.person, layers, first=self.first, own_network=self.own_network)


def replaced(
    *patches: Patch, over: Mapping[str, Path] | None = None, first: str = "", own_network: bool = False
) -> Replaced:
    """Return the breakage that is other code."""
    return Replaced(patches=patches, over=over or {}, first=first, own_network=own_network)


# The launcher can't do without no_new_privs what only root could: it says that it did.
LYING = (
    Patch(file=LAUNCHER, old="libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0", new="False"),
    Patch(file=LAUNCHER, old='abi = landlock(orders["writable"])', new="abi = landlock_abi()"),
    Patch(file=LAUNCHER, old="filtered = seccomp()", new="filtered = True"),
)
LOADED = """        import importlib.util
        spec = importlib.util.spec_from_file_location("launcher", f"{self.pieces}/launcher.py")
        launcher = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(launcher)
"""
# And where it is root still, all of it is done.
_BY_ROOT = f"""{LOADED}
        launcher.landlock([self.entry["home"], *(m[0] for m in self.request.mounts if not m[1])])
        launcher.seccomp()
"""
BECOMES = "        become(self.entry, empty_bounding_set=True)\n        # The change of"
RAISABLE = (
    *LYING,
    Patch(file=MODES, old=BECOMES, new=f"{_BY_ROOT}{BECOMES}"),
    Patch(file=MODES, old="        prctl(PR_SET_NO_NEW_PRIVS, 1)\n        main =", new="        main ="),
)
"""Everything of user mode is there but no_new_privs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sabotage:
    """One row of the table: how a check is made to fail.

    It is run by ``clsecure verify``, or where that has nothing to look at, by a session.

    :param how: what is broken, in words; with the check's id it names the test.
    :param also: other checks that this breaks, too, each with the reason why it cannot but.
    :param perhaps: those that it breaks depending on what this machine has.
    :param options: what it is started with besides its mode.
    :param session: a session's; its agent waits until the session is ended, or until this was done meanwhile,
        on the machine, with the repository.
    """

    check_id: str
    modes: tuple[str, ...]
    how: str
    broken: Breakage
    also: Mapping[str, str] = field(default_factory=dict)
    perhaps: Mapping[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    session: Meanwhile | None = None

    def explains(self, failed: set[str]) -> bool:
        """Tell whether these are the checks that have to fail, and no others."""
        certain = {self.check_id, *self.also}
        return certain <= failed <= certain | set(self.perhaps)
