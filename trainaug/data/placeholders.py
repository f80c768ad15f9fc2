"""Recognise what was stored in place of the expected file: a pointer, error page or other format.

Reference: Git LFS specification (pointer files); git-annex, "internals/pointer_file"; DVC, ".dvc
files"; the magic numbers are those of each format's own documentation.
"""

from __future__ import annotations

import json
import re

__all__ = ["what_it_is"]

_BLANK = rb"(?:\xef\xbb\xbf)?\s*"
# Patterns for the beginning of a file, and what a file with that beginning is.
_BEGINNINGS = tuple(
    (re.compile(pattern, re.DOTALL), name)
    for pattern, name in (
        (rb"\x1f\x8b", "gzip data: unpack it first"),
        (rb"PK(\x03\x04|\x05\x06)", "a zip archive (or .npz)"),
        (rb"\x28\xb5\x2f\xfd|[\x50-\x5f]\x2a\x4d\x18", "zstd data: unpack it first"),
        (rb"BZh[1-9](1AY&SY|\x17\x72\x45\x38)", "bzip2 data: unpack it first"),
        (rb"\xfd7zXZ\0", "xz data: unpack it first"),
        (rb"\x04\x22\x4d\x18", "lz4 data: unpack it first"),
        (rb"\x1f[\x9d\xa0]", "compress (.Z) data: unpack it first"),
        (rb"7z\xbc\xaf\x27\x1c", "a 7z archive"),
        (rb"Rar!\x1a\x07", "a rar archive"),
        (rb".{257}ustar", "a tar archive"),
        (rb"\x93NUMPY", "a NumPy array (.npy)"),
        (rb"\x89HDF\r\n", "an HDF5 file"),
        (rb"\x89PNG\r\n|\xff\xd8\xff|GIF8[79]a", "a picture"),
        (rb"%PDF-", "a PDF document"),
        (rb"SQLite format 3\0", "an SQLite database"),
        (rb"PAR1[\x15\0]", "a Parquet file"),
        (rb"\x80[\x02-\x05][\x00-\x9f]", "a Python pickle, which is not read"),
        (rb"\0\0[\x08-\x0e][\x01-\x08]\0", "an IDX file that is not gzipped"),
        (rb"\0GITCRYPT\0", "locked by git-crypt"),
        (rb"\0\x05\x16[\x00\x07]", "a companion file of macOS (._ name)"),
        (
            _BLANK + rb"version https?://(git-lfs|hawser)\.github\.com/",
            "a Git LFS pointer: run `git lfs pull`",
        ),
        (
            _BLANK + rb"[^\s<>{}]*[/\\]annex[/\\]objects[/\\]",
            "a git-annex pointer: run `git annex get`",
        ),
        (
            _BLANK + rb"(#[^\n]*\n\s*)*(outs|deps|md5|frozen|wdir|desc|meta):.{0,4000}"
            rb"\b(md5|hash|etag|path): ",
            "a DVC pointer: run `dvc pull`",
        ),
        (_BLANK + rb"# xet version \d", "an Xet pointer"),
        (
            _BLANK + rb"((<\?xml[^>]*>|<!--.{0,4000}?-->)\s*)*(?i:<!doctype\s+html|"
            rb"<(html|head|body|meta|script|style|center|div|table|h[1-6])[\s>])",
            "an HTML page, perhaps of an error",
        ),
        (_BLANK + rb"(<\?xml[^>]*>\s*)?<(?i:Error)>", "an XML message of an error"),
    )
)
_JSON = re.compile(_BLANK + rb"[{\[]")
_STATUS = re.compile(
    rb"(?i)(http(/\d(\.\d)?)? |error:? )?([45]\d\d[:.]? +)?"
    rb"((entry|file|page|repository) not found|not found|bad request|unauthorized|forbidden"
    rb"|(access|permission) denied|gone|too many requests|internal server error|bad gateway"
    rb"|service unavailable|gateway time-?out|invalid username or password)[.!]?"
)
SHORT = 1 << 16  # bytes; no error message is longer


def what_it_is(data: bytes, *, json_too: bool = True) -> str | None:
    """Say what a file is if it is not of the expected format.

    Args:
        data: The file, or its first 65 537 bytes or more.
        json_too: Whether to recognise JSON; give False if JSON was expected.

    Returns:
        Words that continue "it is"; None if nothing is recognised.

    Example:
        >>> what_it_is(b"version https://git-lfs.github.com/spec/v1\\noid sha256:0")
        'a Git LFS pointer: run `git lfs pull`'
        >>> what_it_is(b"A sentence.")
    """
    for pattern, name in _BEGINNINGS:
        if pattern.match(data[:SHORT]):
            return name
    if _STATUS.fullmatch(data[:200].strip()):
        return f"the message {data[:60].decode(errors='replace').strip()!r}"
    return "a JSON document" if json_too and _is_json(data) else None


def _is_json(data: bytes) -> bool:
    """Tell whether the first line, or a short file as a whole, is JSON with keys and values."""
    if not _JSON.match(data):
        return False
    first = data.lstrip(b"\xef\xbb\xbf").lstrip().partition(b"\n")[0]
    for text in (first, *([data] if len(data) <= SHORT else [])):
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict) or (isinstance(value, list) and "{" in str(value)[:2]):
            return True
    return False
