"""Files below one directory, in which a former session may have left anything."""

from __future__ import annotations

import contextlib
import errno
import os
import stat

from clsecure.privileged.unpacker.records import UnpackError, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from clsecure.privileged.unpacker.records import Stream

DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
NEW_FILE_FLAGS = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC


class Tree:
    """A directory below which files are made and removed without following a symlink."""

    def __init__(self, path: bytes) -> None:
        self.fds = [os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)]
        self.parts: list[bytes] = []

    def close(self) -> None:
        """Close all descriptors."""
        while self.fds:
            os.close(self.fds.pop())

    def parent(self, path: bytes, *, make: int | None) -> tuple[int, bytes]:
        """Return the directory and the last component of a path; ``make`` is the mode of new directories."""
        *parts, name = path.split(b"/")
        if any(part in (b"", b".", b"..") for part in (*parts, name)) or b"\0" in path:
            raise UnpackError(f"not a path: {shown(path)}")
        while self.parts != parts[: len(self.parts)]:
            self.parts.pop()
            os.close(self.fds.pop())
        for part in parts[len(self.parts) :]:
            if make is not None:
                with contextlib.suppress(FileExistsError):
                    os.mkdir(part, make, dir_fd=self.fds[-1])
            self.fds.append(os.open(part, DIRECTORY_FLAGS, dir_fd=self.fds[-1]))
            self.parts.append(part)
        return self.fds[-1], name

    def remove(self, path: bytes) -> None:
        """Remove a file, and the directories above that it leaves empty, as git does."""
        try:
            parent, name = self.parent(path, make=None)
            found = os.stat(name, dir_fd=parent, follow_symlinks=False)
            if stat.S_ISDIR(found.st_mode):
                os.rmdir(name, dir_fd=parent)  # a submodule's, empty
            else:
                os.unlink(name, dir_fd=parent)
            while self.parts:
                name = self.parts.pop()
                os.close(self.fds.pop())
                os.rmdir(name, dir_fd=self.fds[-1])
        except OSError as error:
            if error.errno not in (errno.ENOENT, errno.ENOTDIR, errno.ENOTEMPTY, errno.ELOOP):
                raise

    def write(self, path: bytes, mode: int, stream: Stream, *, make: int = 0o777, sha256: str = "") -> bool:
        """Put a file in place of whatever has its name, all of it or nothing.

        :param mode: exactly these permission bits.
        :param sha256: what the content must have; False is returned when it does not.
        """
        parent, name = self.parent(path, make=make)
        temporary = b".clsecure-" + os.urandom(8).hex().encode("ascii")
        descriptor = os.open(temporary, NEW_FILE_FLAGS, 0o600, dir_fd=parent)
        try:
            try:
                digest = stream.into(descriptor)
                os.fchmod(descriptor, mode)
            finally:
                os.close(descriptor)
            if sha256 and digest != sha256:
                os.unlink(temporary, dir_fd=parent)
                return False
            try:
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
            except IsADirectoryError:
                os.rmdir(name, dir_fd=parent)  # a submodule's, empty
                os.rename(temporary, name, src_dir_fd=parent, dst_dir_fd=parent)
        except BaseException:
            with contextlib.suppress(OSError):
                os.unlink(temporary, dir_fd=parent)
            raise
        return True

    def symlink(self, path: bytes, target: bytes) -> None:
        """Put a symlink in place of a file or nothing."""
        parent, name = self.parent(path, make=0o777)
        try:
            os.unlink(name, dir_fd=parent)
        except FileNotFoundError:
            pass
        except IsADirectoryError:
            os.rmdir(name, dir_fd=parent)
        os.symlink(target, name, dir_fd=parent)

    def exists(self, path: bytes) -> bool:
        """Tell whether anything has this name; what it is reached through must be directories."""
        try:
            parent, name = self.parent(path, make=None)
            os.stat(name, dir_fd=parent, follow_symlinks=False)
        except FileNotFoundError:
            return False
        return True
