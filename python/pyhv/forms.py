"""Forms: the text fields and the files that a client has sent."""

from __future__ import annotations

import errno
import io
import os
import re
import secrets
import shutil
import stat
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from pyhv.http import FirstOfMany

if TYPE_CHECKING:
    from pyhv._native import Upload

__all__ = ["FormData", "UploadedFile", "UploadedFiles", "safe_filename"]

_MAX_NAME = 255  # bytes of a file's name: what Linux, macOS and Windows all take
_MAX_SUFFIX = 64  # bytes of it that are kept when it has to be cut
_NUMBERS = 1000  # names with a number that are tried before one at random
_DRIVE = re.compile(r"^[A-Za-z]:")
_RESERVED = re.compile(r"(?:con|prn|aux|nul|(?:com|lpt)[0-9\u00b9\u00b2\u00b3]|conin\$|conout\$)", re.IGNORECASE)
_FORBIDDEN = re.compile(r'[<>:"|?*]')
#: Control characters, line ends, what turns the direction of text ("gpj.exe" shown as "exe.jpg"), lone surrogates.
_INVISIBLE = re.compile("[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


class FormData(FirstOfMany[str]):
    """The text fields of a form. `form["x"]` is the first value of `x`; `get_all` has all, `pairs` keeps the order."""

    __slots__ = ()


class UploadedFile:
    """A file of a form, in memory or in a temporary file, which is deleted when nobody holds this object any more.

    Made by pyHV. Any thread; `read`, `open` and `save` read and write files, and block for as long as that takes.
    """

    __slots__ = ("__weakref__", "_lock", "_upload")

    def __init__(self, upload: Upload) -> None:
        self._upload = upload
        # Held while the temporary file is moved or opened.
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        """The name of the form's field."""
        return self._upload.name

    @property
    def filename(self) -> str:
        """The name of the file as sent, to be shown and nothing else: it may be a path, or worse. See `save`."""
        return self._upload.filename

    @property
    def content_type(self) -> str:
        """The type as sent, not checked; "application/octet-stream" if none was."""
        return self._upload.content_type

    @property
    def size(self) -> int:
        """Bytes."""
        return self._upload.size

    def read(self) -> bytes:
        """The whole content. Blocks while a temporary file is read."""
        with self.open() as content:
            return content.read()

    def open(self) -> BinaryIO:
        """A new file object for reading the content, from its beginning. Waits while another thread saves the file."""
        with self._lock:
            return self._open()

    def save(self, directory: str | os.PathLike[str], filename: str | None = None, overwrite: bool = False) -> Path:
        """Saves the file in a directory, and returns its path.

        :param directory: one that is there.
        :param filename: the name; None: the one that the client sent. Both go through `safe_filename`, so the file is
            never outside of `directory`.
        :param overwrite: replace a file of that name (a symbolic link itself, not what it points to). Otherwise a name
            that is taken gets a number: "photo.jpg", "photo-1.jpg", ... .

        A temporary file is moved if it is on the same file system, else copied; later reads take it from where it was
        first saved. Raises OSError. Blocks for the copy or write: for large files, call it on a thread of your own.
        """
        directory = Path(directory)
        name = safe_filename(self.filename if filename is None else filename)
        with self._lock:
            if overwrite:
                target = directory / name
                made, descriptor = _claim(directory, f".pyhv-{secrets.token_hex(8)}")
            else:
                target, descriptor = _claim(directory, name)
                made = target
            try:
                with open(descriptor, "wb") as file:
                    if not self._move(target, os.fstat(descriptor).st_mode):
                        with self._open() as content:
                            shutil.copyfileobj(content, file, 1 << 20)
                        file.close()
                        if overwrite:
                            os.replace(made, target)
                        return target
            except BaseException:
                made.unlink(missing_ok=True)
                raise
            if overwrite:
                made.unlink()
            return target

    def _move(self, target: Path, mode: int) -> bool:
        """Moves the temporary file; False if there is none, or it is on another file system."""
        content = self._upload.content()
        if isinstance(content, bytes) or not self._upload.is_temporary:
            return False
        # Temporary files are for nobody else to read; a saved one is as any new file of the program.
        os.chmod(content, stat.S_IMODE(mode))
        try:
            os.replace(content, target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            return False
        self._upload.moved(os.path.abspath(target))
        return True

    def _open(self) -> BinaryIO:
        content = self._upload.content()
        return io.BytesIO(content) if isinstance(content, bytes) else open(content, "rb")

    def __repr__(self) -> str:
        return f"<UploadedFile {self.name}: {self.filename!r}, {self.content_type}, {self.size} bytes>"


class UploadedFiles(FirstOfMany[UploadedFile]):
    """The files of a form by the names of their fields. `files["x"]` is the first of `x`; `get_all` has all."""

    __slots__ = ()


def safe_filename(name: str) -> str:
    """A name for a new file, made of one that is not to be trusted: with it a path stays in its directory.

    Only the last component counts, with the separators of all systems. Gone are drive letters, control characters and
    those that turn the direction of text, leading dots and spaces, and trailing ones; what Windows does not take
    becomes "_". At most 255 bytes, the suffix kept. "upload" if nothing is left. Any thread; does not block.
    """
    name = _DRIVE.sub("", name.replace("\\", "/").rsplit("/", 1)[-1], count=1)
    name = _FORBIDDEN.sub("_", _INVISIBLE.sub("", name)).lstrip(" .").rstrip(" .")
    if _RESERVED.fullmatch(name.split(".", 1)[0].rstrip(" ")):
        name = f"_{name}"
    return _fitting(name or "upload")


def _fitting(name: str, tag: str = "") -> str:
    """The name with a tag before its suffix, cut to what file systems take."""
    stem, suffix = os.path.splitext(name)
    if len(suffix.encode()) > _MAX_SUFFIX:
        stem, suffix = name, ""
    room = _MAX_NAME - len(tag.encode()) - len(suffix.encode())
    # Cut inside a character: the rest of it goes too.
    stem = stem.encode()[:room].decode("utf-8", "ignore")
    return f"{stem}{tag}{suffix}" if tag or suffix else stem.rstrip(" .")


def _names(name: str) -> Iterator[str]:
    yield name
    for number in range(1, _NUMBERS):
        yield _fitting(name, f"-{number}")
    while True:
        yield _fitting(name, f"-{secrets.token_hex(8)}")


def _claim(directory: Path, name: str) -> tuple[Path, int]:
    """A new, empty file of that name, or of one with a number. A symbolic link of the name counts as taken."""
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    for candidate in _names(name):
        path = directory / candidate
        try:
            return path, os.open(path, flags, 0o666)
        except FileExistsError:
            continue
        except PermissionError:
            # Windows says so of a directory.
            if not path.is_dir():
                raise
    raise AssertionError("there is always another name")
