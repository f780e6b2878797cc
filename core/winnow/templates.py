"""Score templates: find, check and render them. The only file that knows Jinja.

A template is rendered once per instruction with markers in place of the contents, and the result is split at the
markers
into segments: literal text, which may hold control tokens, and contents, which may not. `winnow.prompts` turns segments
into token ids.
"""

import json
import logging
import re
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from functools import lru_cache
from importlib.resources import files
from pathlib import Path
from string import Formatter
from typing import Any, Literal

import jinja2
import jinja2.ext
import jinja2.meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from winnow.errors import TemplateError

logger = logging.getLogger(__name__)

FieldName = Literal["query", "document", "instruction"]
FIELDS: tuple[FieldName, ...] = ("query", "document", "instruction")
RESERVED_KWARGS = frozenset(
    {*FIELDS, "prompt", "messages", "tools", "documents", "add_generation_prompt", "tokenize", "chat_template"}
)

_BUILT_IN = "Winnow's built-in"
_RENDER_SECONDS = 2.0
_MARKERS: dict[FieldName, str] = {name: f"\u2983winnow {name} 7f3Kq0\u2984" for name in FIELDS}
# What the second probe puts around the markers: whitespace shows a trim, the rest shows escaping, case folding and
# cuts.
_PADDING = " \n\t"
_AWKWARD = "Aß <b>&amp;</b> \"q\" 'x' \\n {{ y }} \u00e9\U0001f600 " + "long " * 500


@dataclass(frozen=True, slots=True)
class Content:
    """A place in the prompt where the caller's text stands.

    Attributes:
        field: Whose text it is.
        strip: True if the template strips whitespace at both ends of the text.
    """

    field: FieldName
    strip: bool = False

    def of(self, text: str) -> str:
        """`text` as the template would write it."""
        return text.strip() if self.strip else text


Segment = str | Content


@dataclass(frozen=True, slots=True)
class ScoreTemplate:
    """A prompt template and where it came from.

    Attributes:
        source: Jinja source or, for format-string parts, the four parts.
        origin: Where it was found, for messages to the user.
    """

    source: str | Mapping[str, str] = field(hash=False)
    origin: str

    def segments(
        self,
        *,
        with_instruction: bool,
        template_kwargs: Mapping[str, Any] | None = None,
        special_tokens: Mapping[str, str] | None = None,
    ) -> tuple[Segment, ...]:
        """The prompt, split into literal text and contents.

        Args:
            with_instruction: Whether the caller gives an instruction.
            template_kwargs: More variables for the template. Their text counts as part of the template: control tokens
                in it are control tokens.
            special_tokens: The tokenizer's named special tokens, such as `bos_token`.

        Raises:
            TemplateError: The template is broken, reaches for what the sandbox forbids, runs too long, changes the
                contents, or does not place the query and the document (the latter exactly once).
        """
        if isinstance(self.source, str):
            variables = {**(special_tokens or {}), **checked_template_kwargs(template_kwargs)}
            segments = _jinja_segments(self.source, self.origin, with_instruction, variables)
        else:
            if template_kwargs:
                raise TemplateError(f"template_kwargs need a Jinja template; {self.origin} is made of format strings.")
            segments = _format_string_segments(self.source, self.origin)
        placed = [segment.field for segment in segments if isinstance(segment, Content)]
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

    @property
    def drops_final_newline(self) -> bool:
        """True if the source ends with a newline, which Jinja does not render. Built-in templates mean it so."""
        return isinstance(self.source, str) and self.source.endswith("\n") and not self.origin.startswith(_BUILT_IN)


TemplateLike = str | Path | Mapping[str, str] | ScoreTemplate


def checked_template_kwargs(template_kwargs: Mapping[str, Any] | None) -> dict[str, Any]:
    """Copy `template_kwargs`.

    Raises:
        TemplateError: A name is one that Winnow fills in.
    """
    taken = RESERVED_KWARGS & (template_kwargs or {}).keys()
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
        files("winnow_templates").joinpath(f"{name}.jinja").read_text(encoding="utf-8"), f"{_BUILT_IN} {name!r}"
    )


def from_user(template: TemplateLike, what: str = "template=") -> ScoreTemplate:
    """Read a template that a user gave: a built-in name, a path, Jinja source, or format-string parts.

    Args:
        template: The name of a built-in, the path of a file, Jinja source (anything with `{{`, `{%` or a line break),
            or a
            mapping with any of `prefix`, `suffix`, `query_template`, `document_template`.
        what: Where the user gave it, for messages.

    Raises:
        TemplateError: It is none of these.
    """
    if isinstance(template, ScoreTemplate):
        return template
    if isinstance(template, Mapping):
        unknown = template.keys() - _PARTS.keys()
        if unknown:
            raise TemplateError(
                f"Format-string templates have the parts {', '.join(_PARTS)}; got {', '.join(sorted(unknown))}."
            )
        return ScoreTemplate(dict(template), f"the format strings in {what}")
    if isinstance(template, Path) or not re.search(r"\{\{|\{%|\n", template):
        if str(template) in built_in_names():
            return built_in(str(template))
        path = Path(template).expanduser()
        if not path.is_file():
            raise TemplateError(
                f"{what} {str(template)!r} is neither a file, nor Jinja source, nor a built-in template "
                f"({', '.join(built_in_names())})."
            )
        return ScoreTemplate(path.read_text(encoding="utf-8"), f"the file {path}")
    return ScoreTemplate(template, f"the Jinja source in {what}")


def is_score_template(source: str, special_tokens: Mapping[str, str] | None = None) -> bool:
    """Whether a chat template found in a model folder was written for query and document.

    A chat template inherited from a base model is not: it drops the roles `query` and `document`, or it writes whatever
    role it meets into the prompt, so that ordinary chat roles change what it renders.
    """
    template = ScoreTemplate(source, "a chat template")
    try:
        segments = template.segments(with_instruction=False, special_tokens=special_tokens)
    except TemplateError:
        return False
    if [part.field for part in segments if isinstance(part, Content)].count("query") != 1:
        return False
    try:
        as_chat = _jinja_segments(
            source, "a chat template", False, dict(special_tokens or {}), roles=("user", "assistant")
        )
    except TemplateError:
        return True  # it needs the roles `query` and `document`
    placed = {part.field for part in as_chat if isinstance(part, Content)}
    return placed != {"query", "document"} or as_chat == segments


def find_in_model_folder(
    folder: Path, config: Mapping[str, Any], special_tokens: Mapping[str, str] | None = None
) -> ScoreTemplate | None:
    """The score template that a model brings along, or None.

    Looked for in this order: `score_template` in the config (vLLM's `hf_overrides` included), `score_template.jinja`,
    then
    `chat_template.jinja` and the chat template in tokenizer_config.json, these two only if they were written for query
    and document.

    Args:
        folder: The model's folder.
        config: The model's configuration.
        special_tokens: The tokenizer's named special tokens.
    """
    if config.get("score_template"):
        return from_user(config["score_template"], "score_template of the model's config")
    own = folder / "score_template.jinja"
    if own.is_file():
        return ScoreTemplate(own.read_text(encoding="utf-8"), f"the file {own}")
    chat = folder / "chat_template.jinja"
    sources = [(chat.read_text(encoding="utf-8"), f"the file {chat}")] if chat.is_file() else []
    tokenizer_config = folder / "tokenizer_config.json"
    if tokenizer_config.is_file():
        in_config = json.loads(tokenizer_config.read_text(encoding="utf-8")).get("chat_template")
        if isinstance(in_config, list):  # several, by name
            in_config = {entry.get("name"): entry.get("template") for entry in in_config}.get("default")
        if isinstance(in_config, str):
            sources.append((in_config, f"chat_template in {tokenizer_config}"))
    for source, origin in sources:
        if is_score_template(source, special_tokens):
            return ScoreTemplate(source, origin)
        logger.debug("%s is a chat template, not a score template: not used", origin)
    return None


# --- Jinja ------------------------------------------------------------------------------------------------------------


@lru_cache(maxsize=1)
def _environment() -> ImmutableSandboxedEnvironment:
    """The environment of chat templates in transformers (`utils/chat_template_utils.py`), less its `generation` tag."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[jinja2.ext.loopcontrols]
    )

    def raise_exception(message: str) -> None:
        raise jinja2.TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: int | None = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys)

    def strftime_now(pattern: str) -> str:
        return datetime.now().astimezone().strftime(pattern)

    environment.filters["tojson"] = tojson
    environment.globals["raise_exception"] = raise_exception
    environment.globals["strftime_now"] = strftime_now
    return environment


@lru_cache(maxsize=64)
def _compile(source: str) -> jinja2.Template:
    return _environment().from_string(source)


def render(
    source: str,
    values: Mapping[FieldName, str],
    variables: Mapping[str, Any] | None = None,
    *,
    roles: tuple[str, str] = ("query", "document"),
    structured: bool = False,
) -> str:
    """Render a Jinja score template the way transformers' `apply_chat_template` does.

    Args:
        source: The template.
        values: Text of each field; an instruction that is absent is not defined in the template.
        variables: More variables.
        roles: Roles of the first two messages.
        structured: Give message contents as `[{"type": "text", "text": ...}]`, as templates of multimodal models
            expect.

    Raises:
        jinja2.TemplateError: The template is broken or did what the sandbox forbids.
        TimeoutError: It ran too long.
    """

    def content(text: str) -> Any:
        return [{"type": "text", "text": text}] if structured else text

    messages = [
        {"role": roles[0], "content": content(values["query"])},
        {"role": roles[1], "content": content(values["document"])},
    ]
    given: dict[str, Any] = {"query": values["query"], "document": values["document"]}
    if "instruction" in values:
        messages.append({"role": "system", "content": content(values["instruction"])})
        given |= {"instruction": values["instruction"], "prompt": values["instruction"]}
    with _time_limit(_RENDER_SECONDS):
        return _compile(source).render(
            {
                "messages": messages,
                "tools": None,
                "documents": None,
                "add_generation_prompt": False,
                **(variables or {}),
                **given,
            }
        )


@contextmanager
def _time_limit(seconds: float) -> Iterator[None]:
    """Stop Python code in this thread at the next line once `seconds` are over: the sandbox does not bound loops."""
    deadline = time.monotonic() + seconds

    def trace(*_: Any) -> Callable[..., Any]:
        if time.monotonic() > deadline:
            raise TimeoutError
        return trace

    before = sys.gettrace()
    if before is not None:  # a debugger or a coverage tool is at work: leave it in peace
        yield
        return
    sys.settrace(trace)
    try:
        yield
    finally:
        sys.settrace(None)


def _jinja_segments(
    source: str,
    origin: str,
    with_instruction: bool,
    variables: Mapping[str, Any],
    roles: tuple[str, str] = ("query", "document"),
) -> tuple[Segment, ...]:
    names = FIELDS if with_instruction else FIELDS[:2]

    def rendered(values: Mapping[FieldName, str], structured: bool) -> str:
        try:
            return render(source, values, variables, roles=roles, structured=structured)
        except TimeoutError:
            raise TemplateError(
                f"The template from {origin} ran for more than {_RENDER_SECONDS:g} s: does it loop forever?"
            ) from None
        except jinja2.TemplateSyntaxError as error:
            line = source.splitlines()[error.lineno - 1] if source else ""
            raise TemplateError(
                f"The template from {origin} has a syntax error in line {error.lineno}: {error.message}\n    {line}"
            ) from error
        except jinja2.exceptions.SecurityError as error:
            raise TemplateError(f"The template from {origin} does what the sandbox forbids: {error}") from error
        except Exception as error:  # templates run arbitrary expressions: any error is the template's
            raise TemplateError(
                f"The template from {origin} failed to render: {type(error).__name__}: {error}"
            ) from error

    markers = {name: _MARKERS[name] for name in names}
    # Templates of multimodal models read message contents as lists of parts and place nothing, or fail, on plain
    # strings.
    for structured in (False, True):
        try:
            probe = rendered(markers, structured)
        except TemplateError:
            if structured or "messages" not in _variables_of(source):
                raise
            continue
        if all(markers[name] in probe for name in FIELDS[:2]):
            break
    padded = rendered({name: _PADDING + marker + _PADDING for name, marker in markers.items()}, structured)

    parts: list[Segment] = []
    pattern = "|".join(re.escape(marker) for marker in markers.values())
    by_marker = {marker: name for name, marker in markers.items()}
    at = 0
    for piece in re.split(f"({pattern})", probe):
        if piece not in by_marker:
            if piece:
                parts.append(piece)
            at += len(piece)
            continue
        whole = _PADDING + piece + _PADDING
        strip = not padded.startswith(whole, at)
        parts.append(Content(by_marker[piece], strip))
        at += len(piece if strip else whole)

    segments = tuple(parts)
    for value in (_PADDING + "{}" + _PADDING, _AWKWARD + "{}"):
        values = {name: value.replace("{}", marker) for name, marker in markers.items()}
        expected = "".join(part if isinstance(part, str) else part.of(values[part.field]) for part in segments)
        if rendered(values, structured) != expected:
            raise TemplateError(
                f"The template from {origin} changes the query, document or instruction (a filter such as upper, "
                "truncate or tojson, or a condition on their text). Winnow needs them placed as they are: "
                "prepare the text before you pass it in, and bound it with max_query_tokens or max_document_tokens."
            )
    return segments


def _variables_of(source: str) -> set[str]:
    try:
        return jinja2.meta.find_undeclared_variables(_environment().parse(source))
    except jinja2.TemplateSyntaxError:
        return set()


# --- format strings ---------------------------------------------------------------------------------------------------

_PARTS = {"prefix": "", "query_template": "{query}", "document_template": "{document}", "suffix": ""}
_OLDER_NAMES: dict[str, FieldName] = {"doc": "document", "instruct": "instruction", "task": "instruction"}


def _format_string_segments(parts: Mapping[str, str], origin: str) -> tuple[Segment, ...]:
    """Join the parts in order; where a template names `{prefix}` or `{suffix}`, that part stands there instead."""
    filled = {**_PARTS, **parts}
    body = filled["query_template"] + filled["document_template"]
    named = {name for _, name, _, _ in _parse(body, origin) if name in ("prefix", "suffix")}
    whole = ("" if "prefix" in named else "{prefix}") + body + ("" if "suffix" in named else "{suffix}")
    segments: list[Segment] = []
    for literal, name, spec, conversion in _parse(whole, origin):
        if literal:
            segments.append(literal)
        if name is None:
            continue
        if spec or conversion:
            raise TemplateError(f"{{{name}}} in {origin} must be a plain placeholder, without a format or conversion.")
        if name in ("prefix", "suffix"):
            if filled[name]:
                segments.append(filled[name])
            continue
        known = _OLDER_NAMES.get(name, name)
        if known not in FIELDS:
            raise TemplateError(
                f"{{{name}}} in {origin} is not a placeholder Winnow fills: use {{query}}, {{document}} or "
                f"{{instruction}}."
            )
        segments.append(Content(known))
    return tuple(segments)


def _parse(text: str, origin: str) -> list[tuple[str, str | None, str | None, str | None]]:
    try:
        return list(Formatter().parse(text))
    except ValueError as error:
        raise TemplateError(
            f"A format string in {origin} is broken: {error}. Write literal braces as {{{{ and }}}}."
        ) from error


def _hint(source: str | Mapping[str, str]) -> str:
    if isinstance(source, str):
        return (
            " A score template uses {{ query }} and {{ document }}, or the messages with the roles query and document."
        )
    return " Use {query} in query_template and {document} in document_template."
