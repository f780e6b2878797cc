"""Score templates of users and models: read and check them.

A template is rendered once for each model, with markers in place of the contents, and split at the markers into
segments: literal text, which may hold control tokens, and contents, which may not. `winnow.prompts` turns segments into
token ids. Only `winnow.templates.rendering` uses Jinja; `winnow.models.template_search` searches model folders.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any, TypeVar

from winnow.errors import DocumentError, TemplateError
from winnow.templates import format_strings
from winnow.templates import splitting as template_segments
from winnow.templates.rendering import LARGEST_SOURCE, RESERVED_NAMES, Origin, refuse_size
from winnow.templates.segments import Content, PlainText, Segment, fields_of
from winnow.text import checked

T = TypeVar("T")

_BUILT_IN = "Winnow's built-in"
_ENDS_WITH_LITERAL = re.compile(r"""\{\{-?\s*(["'])[^"']*\1\s*-?\}\}\s*\Z""")


@dataclass(frozen=True, slots=True)
class ScoreTemplate:
    """A prompt template and where it came from.

    Attributes:
        source: Jinja source or, for format-string parts, the four parts.
        origin: Where it was found, for messages to the user.
        instruction: The model's own default for an instruction that the caller does not give; part of the template.
        variables: The model's own defaults for `template_kwargs`.
        system_first: Whether the instruction's message comes before those of query and document.
        trusted: Whether it is the user's, or Winnow's. All others are rendered in a process with limits.
    """

    source: str | Mapping[str, str] = field(hash=False)
    origin: str
    instruction: str | None = None
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)
    system_first: bool = False
    trusted: bool = False

    def segments(
        self,
        *,
        with_instruction: bool,
        template_kwargs: Mapping[str, Any] | None = None,
        special_tokens: Mapping[str, str] | None = None,
        control_tokens: Iterable[str] = (),
    ) -> tuple[Segment, ...]:
        """The prompt, split into literal text and contents.

        Args:
            with_instruction: Whether the caller gives an instruction.
            template_kwargs: More variables for the template.
            special_tokens: The tokenizer's named special tokens, such as `bos_token`.
            control_tokens: Texts that stay text in `template_kwargs`, as in contents.

        Raises:
            TemplateError: The template is broken, uses what the sandbox forbids, runs too long, changes the contents,
                or does not place the query, and the document exactly once.
        """
        origin = Origin(self.origin, self.trusted)
        refuse_size(self.source, origin)
        given = checked_template_kwargs(template_kwargs)
        if isinstance(self.source, str):
            shield = _Shield(control_tokens)
            variables = {**(special_tokens or {}), **self.variables, **shield.cover(given)}
            rendered = template_segments.segments_of(
                self.source,
                origin,
                with_instruction or self.instruction is not None,
                variables,
                system_first=self.system_first,
            )
            segments = shield.uncover(rendered)
        else:
            if given:
                raise TemplateError(f"template_kwargs need a Jinja template; {self.origin} is made of format strings.")
            segments = format_strings.segments_of(self.source, self.origin)
        if not with_instruction and self.instruction is not None:
            segments = _with_default_instruction(segments, self.instruction)
        self._refuse_half_characters(segments)
        placed = fields_of(segments)
        if "query" not in placed:
            raise TemplateError(f"The template from {self.origin} does not place the query.{_hint(self.source)}")
        if placed.count("document") != 1:
            raise TemplateError(
                f"The template from {self.origin} places the document {placed.count('document')} times instead of "
                f"once.{_hint(self.source)}"
            )
        if not with_instruction and "instruction" in placed:
            raise TemplateError(f"The template from {self.origin} needs an instruction: give instruction=...")
        return segments

    def _refuse_half_characters(self, segments: tuple[Segment, ...]) -> None:
        for part in segments:
            try:
                checked("" if isinstance(part, Content) else part.text if isinstance(part, PlainText) else part, "It")
            except DocumentError as error:
                raise TemplateError(f"The template from {self.origin} does not render text. {error}") from None

    @property
    def drops_final_newline(self) -> bool:
        """True if the source ends with a newline, which Jinja does not render, perhaps against the author's intention.

        Built-in templates are right without it, and so are templates that end with an expression of newlines.
        """
        if not isinstance(self.source, str) or self.origin.startswith(_BUILT_IN):
            return False
        return self.source.endswith("\n") and not _ENDS_WITH_LITERAL.search(self.source)


TemplateLike = str | Path | Mapping[str, str] | ScoreTemplate


def checked_template_kwargs(template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy `template_kwargs`.

    Raises:
        TemplateError: A name is one that Winnow fills in.
    """
    taken = RESERVED_NAMES & (template_kwargs or {}).keys()
    if taken:
        raise TemplateError(f"template_kwargs may not set {', '.join(sorted(taken))}: Winnow fills these in.")
    return dict(template_kwargs or {})


def built_in_names() -> list[str]:
    """Names of the templates that come with Winnow, sorted."""
    return sorted(
        entry.name.removesuffix(".jinja")
        for entry in files("winnow_templates").iterdir()
        if entry.name.endswith(".jinja")
    )


def built_in(name: str) -> ScoreTemplate:
    """The built-in template of that name.

    Raises:
        TemplateError: There is none.
    """
    if name not in built_in_names():
        raise TemplateError(f"No built-in template is named {name!r}; there are: {', '.join(built_in_names())}.")
    return ScoreTemplate(
        files("winnow_templates").joinpath(f"{name}.jinja").read_text(encoding="utf-8"),
        f"{_BUILT_IN} {name!r}",
        trusted=True,
    )


def from_user(template: TemplateLike, what: str = "template=") -> ScoreTemplate:
    """Read a template that a user gave: a built-in name, a path, Jinja source, or format strings.

    Args:
        template: The name of a built-in, the path of a file, Jinja source (anything with `{{`, `{%` or a line break),
            a format string with `{query}` and `{document}` (or the older `{doc}`), or a mapping with any of `prefix`,
            `suffix`, `query_template`, `document_template`.
        what: Where the user gave it, for messages.

    Raises:
        TemplateError: It is none of these.
    """
    found = read_template(template, what, trusted=True)
    if found is not None:
        return found
    path = Path(str(template)).expanduser()
    if not is_file(path):
        raise TemplateError(
            f"{what} {str(template)!r} is neither a file, nor Jinja source, nor a format string with {{query}} and "
            f"{{document}}, nor a built-in template ({', '.join(built_in_names())})."
        )
    return from_file(path, trusted=True)


def read_template(template: TemplateLike, what: str, *, trusted: bool = False) -> ScoreTemplate | None:
    """`from_user` without paths: for a path it returns None.

    Args:
        template: As for `from_user`.
        what: Where it was given, for messages.
        trusted: Whether the user gave it.

    Raises:
        TemplateError: A mapping has unknown parts, or parts that are not texts, or a model's template is too long.
    """
    if isinstance(template, ScoreTemplate):
        return template
    if isinstance(template, Mapping):
        unknown = template.keys() - format_strings.PARTS.keys()
        if unknown:
            parts = ", ".join(format_strings.PARTS)
            raise TemplateError(
                f"Format-string templates have the parts {parts}; {what} has {', '.join(map(repr, sorted(unknown)))}."
            )
        for part, text in template.items():
            if not isinstance(text, str):
                raise TemplateError(f"Format strings are texts; {part} in {what} is {text!r:.200}.")
        return ScoreTemplate(dict(template), f"the format strings in {what}", trusted=trusted)
    if isinstance(template, str):
        refuse_size(template, Origin(what, trusted))
        if template in built_in_names():
            return built_in(template)
        is_jinja = re.search(r"\{\{|\{%", template)
        if not is_jinja and format_strings.is_format_string(template):
            halves = {"query_template": template, "document_template": ""}
            return ScoreTemplate(halves, f"the format string in {what}", trusted=trusted)
        if is_jinja or "\n" in template:
            return ScoreTemplate(template, f"the Jinja source in {what}", trusted=trusted)
    return None


def is_file(path: Path) -> bool:
    """Whether there is such a file. The name may be any text, also one that no file can have."""
    try:
        return path.is_file()
    except (OSError, ValueError):
        return False


def from_file(path: Path, *, trusted: bool = False) -> ScoreTemplate:
    """The Jinja template in a file.

    Args:
        path: The file.
        trusted: Whether the user named it. One in a model's folder is not.

    Raises:
        TemplateError: The file is not text.
    """
    try:
        with path.open(encoding="utf-8") as file:
            # One character over the limit is enough to refuse it.
            source = file.read(-1 if trusted else LARGEST_SOURCE + 1)
        return ScoreTemplate(source, f"the file {path}", trusted=trusted)
    except (OSError, UnicodeDecodeError) as error:
        raise TemplateError(f"The template file {path} cannot be read: {error}") from error


def _with_default_instruction(segments: tuple[Segment, ...], instruction: str) -> tuple[Segment, ...]:
    return tuple(
        part.of(instruction) if isinstance(part, Content) and part.field == "instruction" else part for part in segments
    )


def _hint(source: str | Mapping[str, str]) -> str:
    if isinstance(source, str):
        return (
            " A score template uses {{ query }} and {{ document }}, or the messages with the roles query and document."
        )
    return " Use {query} in query_template and {document} in document_template."


class _Shield:
    """Keeps control tokens in `template_kwargs` from becoming control tokens in the prompt.

    While the template is rendered, a private-use character replaces each of them.
    """

    _FIRST = 0xF0000  # Supplementary Private Use Area-A

    def __init__(self, tokens: Iterable[str]):
        self._tokens = list(tokens)
        longest_first = sorted(self._tokens, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._stand_ins = {token: chr(self._FIRST + at) for at, token in enumerate(self._tokens)}

    def cover(self, value: T) -> T:
        """`value` with all control tokens replaced, at any depth."""
        covered: Any = value
        if isinstance(value, str):
            covered = self._pattern.sub(lambda match: self._stand_ins[match[0]], value)
        elif isinstance(value, Mapping):
            covered = {name: self.cover(part) for name, part in value.items()}
        elif isinstance(value, list | tuple):
            covered = [self.cover(part) for part in value]
        return covered  # type: ignore[no-any-return]

    def uncover(self, segments: tuple[Segment, ...]) -> tuple[Segment, ...]:
        """`segments` with the control tokens restored, as plain text."""
        return tuple(piece for part in segments for piece in (self._split(part) if isinstance(part, str) else [part]))

    def _split(self, text: str) -> list[Segment]:
        first, last = chr(self._FIRST), chr(self._FIRST + max(len(self._tokens) - 1, 0))
        pieces: list[Segment] = [
            PlainText(self._tokens[ord(piece) - self._FIRST]) if len(piece) == 1 and first <= piece <= last else piece
            for piece in re.split(f"([{first}-{last}])", text)
            if piece
        ]
        return pieces if self._tokens else [text]
