"""The largest file of an image or a video, and the error about one that cannot be used."""

MAX_BYTES = 20 << 20


class MediumError(Exception):
    """An image or a video cannot be used; the message is the reason, to be followed by a full stop."""
