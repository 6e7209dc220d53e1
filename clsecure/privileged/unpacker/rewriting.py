"""Portable files: agent files name what is there inside, and git takes them for what they were."""

from __future__ import annotations

import json
import os
import shlex
import stat

from clsecure.privileged.unpacker.records import Stream

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.unpacker.records import Json
    from clsecure.privileged.unpacker.repository import Repository
    from clsecure.privileged.unpacker.tree import Tree


def make_portable(
    repository: Repository, tree: Tree, rules: dict[str, list[Json]], intended: list[bytes], program: str
) -> None:
    """Rewrite files of a work tree by their rules, and give its git the filter that takes it back.

    :param intended: files that the index only announces.
    :param program: the filter.
    """
    from clsecure.privileged import portable  # few repositories need it

    top = os.fsdecode(repository.top)
    if "\n" in top:
        return  # the filter's command can't name it
    names = b"".join(os.fsencode(path) + b"\0" for path in rules)
    # A filter of the repository's own stays: two can't follow each other.
    free = [os.fsdecode(p) for p, value in repository.filters(names) if value in (b"unspecified", b"unset")]
    kept = {path: rules[path] for path in free if _rewrite(tree, path, rules[path])}
    if not kept:
        return
    lines = "".join(f"/{path} filter={portable.FILTER}\n" for path in kept)
    tree.write(b".git/info/attributes", 0o644, Stream.of(lines.encode()))
    tree.write(portable.RULES, 0o644, Stream.of(json.dumps(kept).encode()))
    where = shlex.quote(os.path.join(top, os.fsdecode(portable.RULES)))
    command = f"/usr/bin/python3 -I -S {shlex.quote(program)}"
    repository.configure(
        [
            ("filter", portable.FILTER, "clean", f"{command} clean {where} %f"),
            ("filter", portable.FILTER, "smudge", f"{command} smudge {where} %f"),
        ]
    )
    # git takes another size for a change, whatever a filter makes of the file: let it forget the size.
    known = [path for path in kept if os.fsencode(path) not in intended]
    staged = repository.git("ls-files", "--stage", "-z", "--", *known) if known else b""
    repository.git("update-index", "-z", "--index-info", data=staged)
    repository.git("update-index", "-q", "--refresh")


def _rewrite(tree: Tree, path: str, rules: list[Json]) -> bool:
    """Rewrite one file; False when it is none or says nothing of it."""
    from clsecure.privileged import portable

    try:
        parent, name = tree.parent(os.fsencode(path), make=None)
        fd = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=parent)
    except OSError:
        return False
    with open(fd, "rb") as file:
        mode = os.fstat(fd).st_mode
        data = file.read(portable.LIMIT + 1) if stat.S_ISREG(mode) else b""
    inside = portable.replaced(data, rules)
    if len(data) > portable.LIMIT or inside == data:
        return False
    return tree.write(os.fsencode(path), mode & 0o777, Stream.of(inside))
