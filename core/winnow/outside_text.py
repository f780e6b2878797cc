"""Make text of others safe to show in an error, in the log and on a terminal."""

import html
import logging
import re

_SHOWN = 500  # characters


def shown(text: str, limit: int = _SHOWN) -> str:
    """A text on one line, with everything escaped that a terminal would obey or hide, and cut to a length.

    Args:
        text: Anything. Lone surrogates are fine.
        limit: Most characters that are shown.
    """
    line = escaped(" ".join(text.split())[: limit + 1])
    return line if len(line) <= limit else f"{line[:limit]}…"


def escaped(text: str) -> str:
    """A text with everything escaped that is not printable, line breaks and lone surrogates too."""
    return "".join(one if one.isprintable() else one.encode("unicode_escape").decode() for one in text)


def shown_address(address: str) -> str:
    """A web address without the parts that may hold a password or a key: user information, query and fragment."""
    bare = re.split(r"[?#]", address, maxsplit=1)[0]
    start, _, rest = bare.rpartition("@")
    return shown(f"{start.partition('//')[0]}//***@{rest}" if start else bare)


class SecretMask:
    """Takes a secret out of texts, also where it is written as JSON, HTML and web addresses have it.

    Args:
        secret: What must not be shown, in ASCII; None masks nothing.
    """

    def __init__(self, secret: str | None):
        self._pattern = re.compile("".join(map(_spelled, secret or "")) or r"(?!)", re.IGNORECASE)

    def __call__(self, text: str) -> str:
        """The text with `***` where the secret was."""
        return self._pattern.sub("***", text)


class MaskingFilter(logging.Filter):
    """Masks a secret in log messages of other libraries, which may quote an answer that repeats it."""

    def __init__(self, mask: SecretMask):
        super().__init__()
        self._mask = mask

    def filter(self, record: logging.LogRecord) -> bool:
        """Let the record through, without the key."""
        record.msg, record.args = self._mask(record.getMessage()), ()
        return True


def _spelled(one: str) -> str:
    """A pattern for a character, however it is escaped."""
    code, itself = ord(one), re.escape(one)
    spellings = (rf"\\?{itself}", rf"\\u{code:04x}", rf"\\x{code:02x}", f"%{code:02x}")
    return f"(?:{'|'.join([*spellings, re.escape(html.escape(one)), f'&#0*{code};', f'&#x0*{code:x};'])})"
