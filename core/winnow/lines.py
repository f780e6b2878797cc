"""Lines of text files, numbered, so that an error names file and line."""

import json
from collections.abc import Iterable, Iterator
from typing import Any

import regex

AS_IT_IS: dict[str, Any] = {"encoding": "utf-8", "errors": "surrogateescape"}
"""How to open a file for `numbered_lines`: a byte that is no UTF-8 becomes a character that it can name."""

_NO_UTF8 = regex.compile("[\udc80-\udcff]")
# How files of other encodings begin that say so.
_OTHER_ENCODINGS = {
    "UTF-32": (b"\xff\xfe\0\0", b"\0\0\xfe\xff"),
    "UTF-16": (b"\xff\xfe", b"\xfe\xff"),
}


def numbered_lines(text: Iterable[str], name: str) -> Iterator[tuple[int, str]]:
    """The lines that are not blank, with their numbers, without byte-order marks.

    Args:
        text: The lines of a file that was opened with `AS_IT_IS`.
        name: What errors call the file.

    Raises:
        ValueError: A line is no UTF-8, or holds a NUL.
    """
    for number, line in enumerate(text, 1):
        start = line[:4].encode(errors="surrogateescape") if number == 1 else b""
        for encoding, marks in _OTHER_ENCODINGS.items():
            if start.startswith(marks):
                raise ValueError(
                    f"{name} is {encoding}, and Winnow reads UTF-8. Convert it, as with `iconv -f {encoding} -t UTF-8`."
                )
        if (found := _NO_UTF8.search(line)) is not None:
            raise ValueError(
                f"{name}, line {number}: the byte 0x{ord(found[0]) - 0xDC00:02x} after {found.start()} characters is "
                "no UTF-8. Convert the file from its encoding, as with `iconv -f ISO-8859-1 -t UTF-8`."
            )
        if "\0" in line:
            raise ValueError(
                f"{name}, line {number}: a NUL byte, which no text holds. If the file is UTF-16, convert it, as with "
                "`iconv -f UTF-16 -t UTF-8`."
            )
        kept = line.removeprefix("\ufeff").rstrip("\r\n")  # files that were joined have the mark inside, too
        if kept.strip():
            yield number, kept


def json_object(line: str, where: str, wanted: str) -> dict[str, Any]:
    """The JSON object of a line.

    Args:
        line: The line.
        where: What errors call it: file and line.
        wanted: What errors say that it must be, a sentence.

    Raises:
        ValueError: It is no JSON object.
    """
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not JSON ({error}). {wanted}") from None
    if not isinstance(record, dict):
        raise ValueError(f"{where}: not a JSON object. {wanted}")
    return record
