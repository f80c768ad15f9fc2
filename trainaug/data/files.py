"""Reading files that users supply: paths, text, JSON and arrays, with messages that name the file.

Whatever is wrong with a file is a ValueError that begins with its path.
"""

from __future__ import annotations

import json
import os
import re
import stat
import unicodedata
from collections import Counter
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from trainaug.data.paths import expanded
from trainaug.data.placeholders import SHORT, what_it_is

__all__ = [
    "FilePath",
    "MissingFileError",
    "as_path",
    "has_text",
    "has_words",
    "open_file",
    "read_json",
    "read_lines",
    "read_npy",
    "read_text",
    "stripped",
]

#: A path as users give it: text or a ``pathlib.Path``.
FilePath = str | os.PathLike[str]
BOM = "\ufeff"
LONGEST_HEADER = 10_000  # bytes, of a .npy file; NumPy reads no longer headers
UTF16_32 = (b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff")  # their byte order marks
# White space, control characters, what Unicode calls default ignorable, and blank letters.
_BLANK = (
    r"\s\x00-\x1f\x7f-\x9f\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f"
    r"\u202a-\u202e\u2060-\u206f\u2800\u3164\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufffb"
    r"\U0001d173-\U0001d17a\U000e0000-\U000e0fff"
)
_VISIBLE = re.compile(rf"[^{_BLANK}]")


class MissingFileError(FileNotFoundError, ValueError):
    """There is no such file."""


def as_path(path: FilePath) -> Path:
    """Return a path as a ``Path``, with a leading ``~`` replaced by the home folder.

    Args:
        path: Text or a ``pathlib.Path``.

    Raises:
        TypeError: If it is neither.
        ValueError: If it is empty or contains a NUL character.
    """
    text = os.fspath(path) if isinstance(path, (str, os.PathLike)) else path
    if not isinstance(text, str):
        raise TypeError(f"a path must be text or a pathlib.Path, got {path!r}")
    if not text or "\0" in text:
        raise ValueError(f"a path must not be empty or hold a NUL character, got {text!r}")
    return expanded(text)


def open_file(path: Path) -> BinaryIO:
    """Open a regular file for reading.

    Args:
        path: The file.

    Returns:
        Its bytes as a stream, to be closed by the caller.

    Raises:
        MissingFileError: If there is no such file; the message says if it is a link of git-annex.
        ValueError: If it is a folder or a device, or may not be read.
    """
    try:
        mode = path.stat().st_mode
        if stat.S_ISREG(mode):
            return path.open("rb")
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MissingFileError(f"{path}: no such file{_link(path)}") from error
    except OSError as error:
        raise ValueError(f"{path}: cannot be read: {error.strerror}") from error
    kind = "a folder" if stat.S_ISDIR(mode) else "a device or a pipe"
    raise ValueError(f"{path}: is {kind}, expected a file")


def _link(path: Path) -> str:
    """Return words for a message if a missing file is a link, else nothing."""
    if not path.is_symlink():
        return ""
    target = str(path.readlink())
    if "annex/objects" in target.replace("\\", "/"):
        return ", but a link of git-annex: run `git annex get`"
    return f", but a link to {target!r}, which is missing"


def read_text(path: Path, what: str = "UTF-8 text") -> str:
    """Read a text file.

    Args:
        path: The file.
        what: What it must be, for messages.

    Returns:
        The text without a byte order mark, with line ends unchanged.

    Raises:
        MissingFileError: If there is no such file.
        ValueError: If it is not a file of UTF-8 text, but a pointer to one or an error page, say.
    """
    with open_file(path) as stream:
        data = stream.read()
    if reason := what_it_is(data, json_too=what != "JSON"):
        raise ValueError(f"{path}: not {what}: it is {reason}")
    if data.startswith(UTF16_32):
        raise ValueError(f"{path}: not {what}: it is UTF-16 or UTF-32, save it as UTF-8")
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}: not {what}: byte 0x{data[error.start]:02x} in line {line} is not UTF-8"
            " (Latin-1 perhaps): save it as UTF-8"
        ) from error
    if "\0" in text:
        line = text.count("\n", 0, text.index("\0")) + 1
        raise ValueError(f"{path}: not {what}: NUL character in line {line} (UTF-16 perhaps)")
    return text.lstrip(BOM)


def read_lines(path: Path) -> list[str]:
    """Read the lines of a text file.

    Args:
        path: The file.

    Returns:
        The lines, ended by line feeds only: ``str.splitlines`` also splits at carriage returns,
        U+0085 and U+2028, which occur inside sentences, so that the lines of two files would no
        longer correspond.

    Raises:
        MissingFileError: If there is no such file.
        ValueError: As `read_text`, and if all lines end in carriage returns alone.
    """
    text = read_text(path)
    if "\n" not in text and "\r" in text.strip():
        raise ValueError(f"{path}: lines end in carriage returns alone, save it with line feeds")
    text = text.removesuffix("\n")
    return text.split("\n") if text else []


def stripped(text: str) -> str:
    """Remove white space and byte order marks from both ends of a text.

    Such marks occur inside files that were concatenated.

    Args:
        text: Any text.

    Returns:
        The rest of the text.

    Example:
        >>> stripped(" \\ufeffa b\\r")
        'a b'
    """
    text = text.strip()
    while text.startswith(BOM) or text.endswith(BOM):
        text = text.strip(BOM).strip()
    return text


def has_text(text: str) -> bool:
    """Tell whether a text has a visible character.

    Args:
        text: Any text.

    Returns:
        False if it has only white space, control characters and what Unicode calls default
        ignorable.

    Example:
        >>> has_text("."), has_text(" \\u200b\\xa0")
        (True, False)
    """
    return _VISIBLE.search(text) is not None


def has_words(text: str) -> bool:
    """Tell whether a text has a letter, a digit or a symbol; punctuation describes no picture.

    Args:
        text: Any text.

    Returns:
        False whenever `has_text` is false.

    Example:
        >>> has_words("a mug ."), has_words(" .")
        (True, False)
    """
    return any(unicodedata.category(c)[0] in "LNS" for c in _VISIBLE.findall(text))


def read_json(path: Path) -> object:
    """Read a JSON file as RFC 8259 defines it.

    Args:
        path: The file.

    Returns:
        Its contents: dicts, lists, text, numbers, booleans and None.

    Raises:
        MissingFileError: If there is no such file.
        ValueError: If it is not JSON in UTF-8, is nested too deeply for Python, or contains a
            repeated key in an object, NaN or Infinity.
    """
    text = read_text(path, "JSON")
    try:
        content: object = json.loads(
            text, object_pairs_hook=_distinct, parse_constant=_refused_constant
        )
    except RecursionError as error:
        raise ValueError(f"{path}: not JSON that can be read: nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"{path}: not JSON: {error}") from error
    return content


def _distinct(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """Return an object of JSON as a dict, or raise a ValueError if a key is repeated."""
    distinct = dict(pairs)
    if len(distinct) < len(pairs):
        [(twice, _)] = Counter(key for key, _ in pairs).most_common(1)
        raise ValueError(f"key {twice!r} occurs twice in an object")
    return distinct


def _refused_constant(name: str) -> object:
    raise ValueError(f"{name} is no number of JSON")


def read_npy(path: Path) -> NDArray[Any]:
    """Map a ``.npy`` file into memory, without unpickling or allocating what its header claims.

    Args:
        path: The file.

    Returns:
        The array, read-only, in the file's type and byte order.

    Raises:
        MissingFileError: If there is no such file.
        ValueError: If it is not a complete plain array.
    """
    with open_file(path) as stream:
        head = stream.read(SHORT + 1)
    if not head.startswith(b"\x93NUMPY") or len(head) < 12:
        known = what_it_is(head) if len(head) > 12 else None
        reason = known or f"something that begins with {head[:20]!r}"
        raise ValueError(f"{path}: not a plain array: it is {reason}")
    if int.from_bytes(head[8 : 10 if head[6] == 1 else 12], "little") > LONGEST_HEADER:
        raise ValueError(f"{path}: not a plain array: its header is too long")
    try:
        with np.errstate(over="ignore"):  # a huge shape is refused in any case
            rows = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # a damaged header fails in a dozen ways
        raise ValueError(f"{path}: not a plain array: {error!r}") from error
    surplus = path.stat().st_size - rows.offset - rows.nbytes
    if surplus:
        raise ValueError(f"{path}: not a plain array: {surplus} bytes follow it")
    return rows
