"""Files and directories: what is mounted, what is the user's own."""

from __future__ import annotations

import os
from pathlib import Path, PurePosixPath

from clsecure.model import Mount

_MAX_PATH = 4096


def mount(text: str, *, relative_to: Path | None = None, home: Path | None = None) -> Mount:
    """Read ``SRC[:DST][:ro|:rw]``. Nothing is looked up: whether the source exists is the plan's question.

    :param relative_to: where a relative source starts (the command line's directory); None refuses one.
    :param home: what ``~/`` stands for; None refuses it.
    """
    parts = text.split(":")
    read_only = True
    if len(parts) > 1 and parts[-1] in {"ro", "rw"}:
        read_only = parts.pop() == "ro"
    if len(parts) not in {1, 2} or not all(parts):
        raise ValueError("must be SOURCE[:TARGET][:ro|:rw]")
    source = _source(parts[0], relative_to=relative_to, home=home)
    target = clean(parts[1] if len(parts) > 1 else os.fspath(source))
    if target == PurePosixPath("/"):
        raise ValueError("must not have the whole file system as its target")
    return Mount(source=source, target=Path(target), read_only=read_only)


def mounts(text: str, *, relative_to: Path | None = None, home: Path | None = None) -> tuple[Mount, ...]:
    """Read several mounts with commas between them."""
    return tuple(
        mount(part.strip(), relative_to=relative_to, home=home) for part in text.split(",") if part.strip()
    )


def own_path(text: str, *, home: Path | None = None) -> Path:
    """Read a file of the user's: absolute, or in the home with ``~/`` before it."""
    return _source(text.strip(), relative_to=None, home=home)


def clean(text: str) -> PurePosixPath:
    """Return an absolute path in its plain form, by its text alone."""
    path = PurePosixPath(text)
    if "\0" in text or not path.is_absolute() or ".." in path.parts or len(os.fsencode(text)) > _MAX_PATH:
        raise ValueError("must name absolute paths without '..'")
    return PurePosixPath("/", *path.parts[1:])


def _source(text: str, *, relative_to: Path | None, home: Path | None) -> Path:
    if home is not None and (text == "~" or text.startswith("~/")):
        text = f"{home}/{text[2:]}"
    if not text.startswith("/"):
        if relative_to is None or text.startswith("~"):
            raise ValueError("must name an absolute source")
        # By text alone: links are the business of who opens the source, once, without following the last.
        text = os.path.normpath(os.path.join(relative_to, text))  # noqa: PTH118
    return Path(clean(text))
