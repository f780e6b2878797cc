"""A score template becomes segments: its own text, and the places of query, document and instruction."""

from winnow.templates.rendering import Layout, Origin, TemplateLimitError, rendered, rendered_chat
from winnow.templates.score_template import (
    ScoreTemplate,
    TemplateLike,
    built_in,
    from_file,
    from_user,
    is_file,
    read_template,
)
from winnow.templates.segments import Content, FieldName, PlainText, Segment, fields_of
from winnow.templates.writer import as_jinja

__all__ = [
    "Content",
    "FieldName",
    "Layout",
    "Origin",
    "PlainText",
    "ScoreTemplate",
    "Segment",
    "TemplateLike",
    "TemplateLimitError",
    "as_jinja",
    "built_in",
    "fields_of",
    "from_file",
    "from_user",
    "is_file",
    "read_template",
    "rendered",
    "rendered_chat",
]
