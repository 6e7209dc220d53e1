"""What there is of the user's own, as small values: noted before a session, and looked at again after it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import os
import re
import stat
import struct
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from clsecure.errors import ToolError
from clsecure.installation import STATE_DIRECTORY
from clsecure.model import SandboxSpec
from clsecure.workspace.repository import Repository

_ACL = "system.posix_acl_access"
_ACL_VERSION = 2
_ACL_TAGS = {0x02: "user", 0x08: "group"}
_ACL_LIMIT = 64
_FILE_LIMIT = 4 << 20
_ENTRIES = 20_000
_MODULES, _PLACES = 50, 2000
# What is noted is kept in the session's record, which is bounded.
_NAMED, _NAME_LIMIT = 50, 200
_FURTHER = "(further ones)"
_OWNED = 10
_DIGEST = re.compile(r"[0-9a-f]{32}\Z")
_FILES = ("info/attributes", "info/exclude", "info/grafts", "objects/info/alternates", "shallow", "commondir")
# Keys by which git runs a program, or reads more configuration, or the like. Source: git-config(1).
_PROGRAMS = re.compile(
    r"""
    core\.(?:hookspath|fsmonitor|sshcommand|gitproxy|editor|pager|askpass|alternaterefscommand|attributesfile)
    |(?:sequence\.editor|diff\.external|interactive\.difffilter|uploadpack\.packobjectshook|imap\.tunnel)
    |(?:web\.browser|help\.browser|instaweb\.(?:httpd|browser)|include\.path|includeif\..*)
    |(?:credential(?:\..*)?\.helper|gpg(?:\..*)?\.(?:program|defaultkeycommand)|protocol(?:\..*)?\.allow)
    |(?:mergetool|difftool|guitool|browser|man)\..*\.(?:cmd|path)|(?:hook|trailer)\..*\.(?:command|cmd)
    |(?:filter\..*\.(?:clean|smudge|process)|diff\..*\.(?:command|textconv)|merge\..*\.driver)
    |sendemail\.(?:.*\.)?(?:smtpserver|tocmd|cccmd|headercmd|sendmailcmd)
    |(?:remote\..*\.(?:uploadpack|receivepack|vcs))
    |(?:lfs\.(?:customtransfer\..*\.path|standalonetransferagent|extension\..*\.(?:clean|smudge)))
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_HELPER_URL = re.compile(r"[A-Za-z0-9+.-]+::")


@dataclass(frozen=True, slots=True, kw_only=True)
class AclEntry:
    """One named entry of an access control list (acl(5)), after its mask.

    :param who: ``user:UID`` or ``group:GID``.
    :param permissions: 4 read, 2 write, 1 search.
    """

    who: str
    permissions: int

    def names(self, *, uid: int, gid: int) -> bool:
        """Tell whether it gives that account anything."""
        return bool(self.permissions) and self.who in (f"user:{uid}", f"group:{gid}")

    def __str__(self) -> str:
        """As getfacl(1) shows it."""
        bits = zip("rwx", (4, 2, 1), strict=True)
        return f"{self.who}:{''.join(c if self.permissions & bit else '-' for c, bit in bits)}"


@dataclass(frozen=True, slots=True, kw_only=True)
class UserState:
    """The user's home and repository, as far as it is held against what they were.

    :param home_mode: permission bits.
    :param home_acl: who else may come into it.
    :param places: the work tree and the git directories.
    :param parts: HEAD, refs, configuration and the like: name to digest.
    :param hooks: what git would run as a hook, but for files of the work tree: path to digest.
    :param programs: settings of the repository's own by which git runs a program: key to digest.
    """

    home_mode: int
    home_acl: tuple[AclEntry, ...] = ()
    places: tuple[str, ...] = ()
    parts: Mapping[str, str] = field(default_factory=dict)
    hooks: Mapping[str, str] = field(default_factory=dict)
    programs: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def parse(cls, loaded: Any) -> UserState:  # noqa: ANN401  # a JSON document
        """Take in what :func:`dataclasses.asdict` made of one.

        :raises ValueError: it is something else.
        """
        try:
            texts = {name: _digests(loaded[name]) for name in ("parts", "hooks", "programs")}
            entries = [
                AclEntry(who=str(entry["who"]), permissions=_number(entry["permissions"]))
                for entry in loaded["home_acl"]
            ]
            return cls(
                home_mode=_number(loaded["home_mode"]),
                home_acl=tuple(entries),
                places=tuple(str(place) for place in loaded["places"]),
                **texts,
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"not a state of the user's: {error}") from error


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramState:
    """The agent's program in root's own store, hashed in full.

    :param owner: ``root's``, or whose it is.
    """

    sha256: str
    owner: str
    mode: int


def _digests(loaded: Mapping[str, str]) -> dict[str, str]:
    found = {str(name): value for name, value in loaded.items()}
    if not all(isinstance(value, str) and _DIGEST.match(value) for value in found.values()):
        raise TypeError("digests")
    return found


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value <= 0o7777:
        raise TypeError(f"{value!r:.50} is no set of permissions")
    return value


def user_state(repository: Repository, home: Path) -> UserState | None:
    """Note how the user's home and repository stand; None when they can't be read."""
    try:
        modules = _modules(repository)
        programs, parts = _settings(repository, modules)
        return UserState(
            home_mode=stat.S_IMODE(home.stat().st_mode),
            home_acl=_acl(home),
            places=tuple(
                dict.fromkeys(map(str, (repository.top, repository.git_dir, repository.common_dir)))
            ),
            parts=parts | dict(_parts(repository)),
            hooks=_bounded(_hooks(repository, modules)),
            programs=_bounded(programs),
        )
    except (OSError, ToolError):
        return None


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"\0".join(parts)).hexdigest()[:32]


def _bounded(found: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Keep the first by name; one digest stands for all the others."""
    kept: dict[str, str] = {}
    for name, digest in found:
        # The end of a path says more than its beginning.
        short = name[-_NAME_LIMIT:] if len(kept) < _NAMED else _FURTHER
        kept[short] = _digest(kept[short].encode(), digest.encode()) if short in kept else digest
    return kept


def _parts(repository: Repository) -> Iterator[tuple[str, str]]:
    """Give what a user changes all the time: told, never a failure."""
    git = repository.git()
    yield "HEAD", _file(repository.git_dir / "HEAD") or _digest()
    yield "refs", _digest(git.out("for-each-ref", "--format=%(refname) %(objectname)", timeout=60))
    for name in _FILES:
        if (found := _file(repository.common_dir / name)) is not None:
            yield name, found


def _settings(
    repository: Repository, modules: Iterable[Path]
) -> tuple[list[tuple[str, str]], dict[str, str]]:
    """Return the settings of the repository's own that run a program, and all of them as one digest."""
    listed = repository.git().out("config", "--list", "-z", "--show-scope", "--includes", timeout=60)
    words = listed.split(b"\0")
    own = [e for scope, e in zip(words[0::2], words[1::2], strict=False) if scope in (b"local", b"worktree")]
    programs = list(_programs(own))
    for module in modules:
        # Named as a file: git does not go into the submodule for it.
        file = ("config", "--list", "-z", "--includes", "--file", str(module / "config"))
        entries = repository.git().out(*file, timeout=60).split(b"\0")
        name = module.relative_to(repository.common_dir)
        programs += [(f"{name}: {key}", digest) for key, digest in _programs(entries)]
    return programs, {"config": _digest(*own)}


def _programs(entries: Iterable[bytes]) -> Iterator[tuple[str, str]]:
    """Give those settings by which git runs a program."""
    values: dict[str, list[bytes]] = {}
    for entry in entries:
        name, _, value = entry.partition(b"\n")
        key = name.decode("utf-8", "backslashreplace")
        if _PROGRAMS.fullmatch(key) or _names_program(key, value.decode("utf-8", "replace")):
            values.setdefault(key, []).append(value)
    for key in sorted(values):
        yield key, _digest(*values[key])


def _modules(repository: Repository) -> tuple[Path, ...]:
    """Return the git directories of submodules, of theirs too; a bounded number."""
    found: list[Path] = []
    waiting, looked = [repository.common_dir / "modules"], 0
    while waiting and len(found) < _MODULES and looked < _PLACES:
        looked += 1
        place = waiting.pop()
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as names:
            listed = itertools.islice(names, _ENTRIES)
            inside = sorted(each.name for each in listed if each.is_dir(follow_symlinks=False))
            # A name of a submodule may have slashes: what is no git directory leads to some.
            if (place / "config").is_file():
                found.append(place)
                inside = ["modules"] if "modules" in inside else []
            waiting += [place / name for name in reversed(inside)]
    return tuple(found)


def _names_program(key: str, value: str) -> bool:
    """Tell whether a setting that is plain mostly names a program here: ``ext::command``, ``!command``."""
    section = key.partition(".")[0]
    if section == "url":
        return bool(_HELPER_URL.match(key.partition(".")[2]))
    if section == "alias" or (section == "submodule" and key.endswith(".update")):
        return value.startswith("!")
    if section == "pager":
        return value.lower() not in ("", "true", "false", "yes", "no", "on", "off", "0", "1")
    return section in ("remote", "submodule") and bool(_HELPER_URL.match(value))


def _hooks(repository: Repository, modules: Iterable[Path]) -> Iterator[tuple[str, str]]:
    """Give what git would run as a hook. Hooks in the work tree change with every checkout."""
    places = {repository.common_dir / "hooks", *([repository.hooks] if repository.hooks else [])}
    places |= {module / "hooks" for module in modules}
    gits = (repository.git_dir, repository.common_dir)
    for place in sorted(places):
        in_tree = place.is_relative_to(repository.top)
        if in_tree and not any(place.is_relative_to(directory) for directory in gits):
            continue
        with contextlib.suppress(FileNotFoundError, NotADirectoryError), os.scandir(place) as names:
            for each in sorted(names, key=lambda entry: entry.name):
                info = each.stat(follow_symlinks=False)
                if each.name.endswith(".sample") or stat.S_ISDIR(info.st_mode):
                    continue
                if stat.S_ISLNK(info.st_mode) or info.st_mode & 0o111:
                    yield each.path, _file(Path(each.path)) or _digest()


def _file(path: Path) -> str | None:
    """Return a digest of a file, or of what a link says; None when there is none.

    Of a large file size and time stand for the content.
    """
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except OSError as error:
        return _digest(os.fsencode(path.readlink())) if error.errno == errno.ELOOP else _digest(b"closed")
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return _digest(b"special")
        if info.st_size > _FILE_LIMIT:
            return _digest(f"{info.st_size} {info.st_mtime_ns}".encode())
        return _digest(file.read(_FILE_LIMIT))


def _acl(path: Path) -> tuple[AclEntry, ...]:
    """Return the named entries of a directory's access control list, after its mask."""
    try:
        data = os.getxattr(path, _ACL)
    except OSError:
        return ()
    (version,) = struct.unpack_from("<I", data)
    if version != _ACL_VERSION:
        return ()
    entries = list(struct.iter_unpack("<HHI", data[4 : 4 + 8 * _ACL_LIMIT]))
    mask = next((permissions for tag, permissions, _ in entries if tag == 0x10), 7)
    return tuple(
        AclEntry(who=f"{_ACL_TAGS[tag]}:{number}", permissions=permissions & mask & 7)
        for tag, permissions, number in entries
        if tag in _ACL_TAGS
    )


def files_of_worker(repository: Repository, *, uid: int, gid: int) -> tuple[str, ...]:
    """Return files of the worker's at the top of the work tree, and where git keeps what it obeys."""
    common = repository.common_dir
    found: list[str] = []
    places = [repository.top, repository.git_dir, common]
    places += [common / name for name in ("hooks", "info", "logs", "refs", "objects", "worktrees", "modules")]
    places += [common / name for name in ("objects/info", "objects/pack", "refs/heads", "refs/tags")]
    places += [common / "refs/remotes", *([repository.hooks] if repository.hooks else [])]
    with contextlib.suppress(OSError):  # that one is closed, is told by there being no state of the user's
        places += [place for module in _modules(repository) for place in (module, module / "hooks")]
    for place in dict.fromkeys(places):
        with contextlib.suppress(OSError), os.scandir(place) as names:
            for number, each in enumerate(names):
                if number >= _ENTRIES or len(found) >= _OWNED:
                    break
                info = each.stat(follow_symlinks=False)
                if info.st_uid == uid or info.st_gid == gid:
                    found.append(each.path[:_NAME_LIMIT])
    return tuple(found)


def program_state(spec: SandboxSpec) -> ProgramState | None:
    """Hash the agent's program, as root keeps it for this user; None when it is not there."""
    if spec.program is None:
        return None
    path = STATE_DIRECTORY / "agents" / str(os.getuid()) / spec.program.sha256 / "agent"
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError:
        return None
    with os.fdopen(fd, "rb") as file:
        info = os.fstat(fd)
        if not stat.S_ISREG(info.st_mode):
            return None
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    owner = "root's" if info.st_uid == 0 else f"of uid {info.st_uid}"
    return ProgramState(sha256=digest, owner=owner, mode=stat.S_IMODE(info.st_mode))
