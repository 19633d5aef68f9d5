"""Read the headers of a tar archive, to find its members. Nothing is ever unpacked to disk.

Formats: POSIX ustar and pax (IEEE Std 1003.1-2017, `pax`), GNU's long names and base-256 numbers. Python's `tarfile`
keeps every member in memory and trusts every size; here everything that is read has a limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from decimal import Decimal, InvalidOperation
from typing import BinaryIO, NamedTuple

__all__ = ["BrokenError", "Member", "members"]

BLOCK = 512
MAX_EXTENDED = 2**20  # bytes of a long name or a pax record
MAX_PADDING = 2**20  # bytes after the end mark
MAX_SECONDS = 2**33
ZEROS = bytes(BLOCK)
REGULAR = frozenset({b"0", b"\0", b"7"})
KINDS = {
    b"1": "links",
    b"2": "links",
    b"3": "special files",
    b"4": "special files",
    b"6": "special files",
    b"S": "sparse files",
}
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ\x00": "xz", b"\x28\xb5\x2f\xfd": "zstandard"}


class BrokenError(Exception):
    """An archive is broken; the text says how, and at which byte."""


class Member(NamedTuple):
    """One member: `other` is its kind if it is not a regular file, else ""."""

    name: str
    offset: int
    size: int
    mtime_ns: int
    other: str


def members(file: BinaryIO, length: int) -> Iterator[Member]:
    """The members of an archive of `length` bytes in their order, without folders.

    Raises:
        BrokenError: it is not a tar archive, is compressed, or ends too early.
    """
    at, count = 0, 0
    known: dict[str, str] = {}  # fields of all following members
    once: dict[str, str] = {}  # fields of the next member only
    while True:
        file.seek(at)
        header = file.read(BLOCK)
        if header == ZEROS:
            _ended(file, at, length)
            return
        if not header:
            raise BrokenError(
                f"ends at byte {at:,}, after {count:,} members, without tar's end mark: truncated, copy it again"
            )
        if len(header) < BLOCK:
            raise BrokenError(f"ends within a header at byte {at:,}, after {count:,} members: truncated, copy it again")
        _check(header, at)
        kind, size = header[156:157], _number(header[124:136], at)
        data = at + BLOCK
        if kind in (b"L", b"K", b"x", b"g"):
            if size > MAX_EXTENDED:
                raise BrokenError(f"has a header of {size:,} bytes at byte {at:,}, where {MAX_EXTENDED:,} is the most")
            extra = file.read(size)
            if len(extra) < size:
                raise BrokenError(
                    f"ends within a header at byte {at:,}, after {count:,} members: truncated, copy it again"
                )
            if kind == b"L":
                once["path"] = _text(extra.split(b"\0", 1)[0])
            elif kind != b"K":
                (once if kind == b"x" else known).update(_records(extra, at))
            at = data + _padded(size)
            continue
        fields = known | once
        once = {}
        name = fields.get("path") or _name(header)
        size = _integer(fields["size"], at) if "size" in fields else size
        if size < 0:
            raise BrokenError(f"has a broken header at byte {at:,}; copy or make it again")
        holds = kind in REGULAR or kind not in (b"1", b"2", b"3", b"4", b"5", b"6")
        if kind == b"S":
            data = _behind_map(file, header, data)
        after = data + (_padded(size) if holds else 0)
        if holds and data + size > length:
            raise BrokenError(
                f"ends at byte {length:,} within {name!r}, which reaches to {data + size:,}: truncated, copy it again"
            )
        if kind != b"5" and not (kind in REGULAR and name.endswith("/")):
            other = "" if kind in REGULAR else KINDS.get(kind, "members of an unknown kind")
            if any(word.startswith("GNU.sparse") for word in fields):
                other = "sparse files"
            count += 1
            yield Member(name, data, size, _time(fields.get("mtime"), header, at), other)
        at = after


def _check(header: bytes, at: int) -> None:
    """Check a header against its checksum."""
    if at == 0:
        packed = next((name for magic, name in PACKED.items() if header.startswith(magic)), None)
        if packed is not None:
            raise BrokenError(f"is compressed ({packed}), so that nothing can be read by its offset; unpack it to .tar")
    try:
        right = _number(header[148:156], at) == sum(header) - sum(header[148:156]) + 8 * 32
    except BrokenError:
        right = False
    if not right:
        raise BrokenError(
            "is no tar archive" if at == 0 else f"has a broken header at byte {at:,}; copy or make it again"
        )


def _ended(file: BinaryIO, at: int, length: int) -> None:
    """Check that after the end mark there is only padding, to the size of a tape record."""
    rest = length - at
    if rest > MAX_PADDING or file.read(rest).strip(b"\0"):
        raise BrokenError(
            f"has an end mark at byte {at:,} of {length:,}: it was not copied to its end, or is several archives in one"
        )


def _behind_map(file: BinaryIO, header: bytes, data: int) -> int:
    """The start of the data of a GNU sparse file, whose map may have more blocks before it."""
    more = header[482:483]
    while more and more != b"\0":
        file.seek(data)
        more = file.read(BLOCK)[504:505]
        data += BLOCK
    return data


def _number(digits: bytes, at: int) -> int:
    """The value of an octal field, or of GNU's base 256."""
    if digits[:1] == b"\x80":
        return int.from_bytes(digits[1:], "big")
    if digits[:1] == b"\xff":
        return int.from_bytes(digits, "big", signed=True)
    try:
        value = int(digits.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        value = -1
    if value < 0:
        raise BrokenError(f"has a broken header at byte {at:,}; copy or make it again")
    return value


def _integer(digits: str, at: int) -> int:
    if not digits.isdecimal() or len(digits) > 20:
        raise BrokenError(f"has a broken pax header before byte {at:,}; make it again")
    return int(digits)


def _time(field: str | None, header: bytes, at: int) -> int:
    """Nanoseconds since 1970; -1 for a time that is out of range."""
    try:
        seconds = Decimal(_number(header[136:148], at)) if field is None else Decimal(field)
    except InvalidOperation:
        raise BrokenError(f"has a broken pax header before byte {at:,}; make it again") from None
    return int(seconds * 10**9) if seconds.is_finite() and abs(seconds) <= MAX_SECONDS else -1


def _records(extra: bytes, at: int) -> dict[str, str]:
    """The relevant `length key=value` lines of a pax header."""
    found = {}
    while extra and extra[:1] != b"\0":
        digits, space, _ = extra.partition(b" ")
        length = int(digits) if digits.isdigit() and len(digits) < 8 else 0
        line = extra[len(digits) + 1 : length - 1]
        word, equals, value = line.partition(b"=")
        if not (space and equals) or length > len(extra) or extra[length - 1 : length] != b"\n":
            raise BrokenError(f"has a broken pax header at byte {at:,}; make it again")
        name = _text(word)
        if name in ("path", "size", "mtime") or name.startswith("GNU.sparse"):
            found[name] = _text(value)
        extra = extra[length:]
    return found


def _name(header: bytes) -> str:
    name = _text(header[:100].split(b"\0", 1)[0])
    # GNU's format has other data at the position of ustar's prefix.
    prefix = _text(header[345:500].split(b"\0", 1)[0]) if header[257:263] == b"ustar\0" else ""
    return f"{prefix}/{name}" if prefix else name


def _text(raw: bytes) -> str:
    return raw.decode("utf-8", "surrogateescape")


def _padded(size: int) -> int:
    return -(-size // BLOCK) * BLOCK
