"""The packages of the extra `bulk`, loaded when they are first needed."""

from functools import partial

from winnow.extras import import_from_extra

needed = partial(import_from_extra, "bulk")
