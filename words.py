"""Numbers of things and lists of them, as messages say them; at the root, so that every room says them in one way."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

__all__ = ["counted", "left_out", "part_of", "printable", "ranges"]

# Control characters, of which names of files and classes may have some, ends of lines, and marks that turn text around.
_CONTROLS = {
    n: f"\\u{n:04x}"
    for n in (*range(32), *range(127, 160), 0x2028, 0x2029, *range(0x202A, 0x202F), *range(0x2066, 0x206A))
}


def counted(count: int, one: str, many: str = "") -> str:
    """A number of things: `1 image`, `2 images`; `many` where an s is not enough: `1 box is`, `2 boxes are`."""
    return f"{count:,} {one if count == 1 else many or f'{one}s'}"


def part_of(some: int, count: int, what: str) -> str:
    """So many of a number of things, with the verb: `1 of 8 images is`, `2 of 8 images are`."""
    return f"{some:,} of {counted(count, what)} {'is' if some == 1 else 'are'}"


def left_out(others: Mapping[str, int]) -> str:
    """What a source left out, by reason: `special files: 1, links that lead nowhere: 2`."""
    return ", ".join(f"{why}: {count:,}" for why, count in sorted(others.items()))


def ranges(numbers: Iterable[int]) -> str:
    """Ascending whole numbers, those that follow one another as one: `0 to 3, 7`."""
    parts: list[list[int]] = []
    for n in numbers:
        if parts and n == parts[-1][-1] + 1:
            parts[-1] = [parts[-1][0], n]
        else:
            parts.append([n])
    return ", ".join(" to ".join(map(str, ends)) for ends in parts)


def printable(text: str) -> str:
    r"""A line for a terminal: characters that would command it are written as `\u001b`."""
    return text.translate(_CONTROLS)
