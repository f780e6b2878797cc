"""The template and the instruction of a request: its own, those of the preset that it names, or the server's.

Templates of requests are not trusted. They are rendered as those are that come with a model: in another process, within
limits of time, memory and size (`winnow.templates.rendering`).
"""

import asyncio
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from winnow.errors import TemplateError
from winnow.models import template_for
from winnow.plain import is_deeper
from winnow.ranking import Reranker
from winnow.service.errors import ServiceError
from winnow.service.options import Options, first_of
from winnow.service.presets import Preset
from winnow.templates import ScoreTemplate, TemplateLike, from_user, read_template

# Templates of requests that are rendered at once: each may take two seconds of a processor, and much memory.
_RENDERED_AT_ONCE = 2

_DEEPEST_KWARGS = 10
_LARGEST_KWARGS = 100_000  # bytes as JSON

_TEMPLATES = ("score_template", "rerank_template", "chat_template")
_KWARGS = ("score_template_kwargs", "rerank_template_kwargs", "chat_template_kwargs")


@dataclass(frozen=True, kw_only=True, slots=True)
class Prompting:
    """How the pairs of a request become prompts; None where the reranker's own setting counts."""

    template: TemplateLike | None
    template_kwargs: Mapping[str, Any] | None
    instruction: str | None


class Prompter:
    """Reads the templates of requests.

    Args:
        reranker: What scores with them.
        allowed: Whether requests may bring templates and template variables.
    """

    def __init__(self, reranker: Reranker, allowed: bool):
        self._reranker = reranker
        self._allowed = allowed
        self._turns = asyncio.Semaphore(_RENDERED_AT_ONCE)

    async def prompting(self, options: Options, preset: Preset) -> Prompting:
        """The template, its variables and the instruction of a request.

        A template that the request brings, or the variables that it gives to another one, are tried here.

        Raises:
            ServiceError: The server takes none, or they are too large.
            TemplateError: The template cannot be used.
        """
        given, kwargs = first_of(options, *_TEMPLATES), first_of(options, *_KWARGS)
        variables = dict(kwargs[1]) if kwargs else {}
        # vLLM's clients give the instruction so, and there it counts more than the field.
        instruction = variables.pop("instruction", options.wanted_instruction)
        if instruction is not None and not isinstance(instruction, str):
            raise ServiceError(400, "The instruction must be a text.", f"body.{kwargs[0] if kwargs else 'instruction'}")
        if instruction is None:
            instruction = preset.instruction
        if given is None and not variables:
            return Prompting(template=preset.template, template_kwargs=preset.template_kwargs, instruction=instruction)
        name = given[0] if given else kwargs[0] if kwargs else ""
        if not self._allowed:
            raise ServiceError(
                400,
                f"This server takes no templates from requests: leave {name} out, or name a preset as the model.",
                f"body.{name}",
            )
        _refuse_large(variables, kwargs[0] if kwargs else name)
        try:
            template = _of_request(given[1], name) if given else self.counting(preset.template)
            if template is None:  # the tokenizer encodes the pair: there is nothing to give variables to
                return Prompting(template=None, template_kwargs=None, instruction=instruction)
            if not given:
                config = self._reranker.config
                own = config.template_kwargs if preset.template_kwargs is None else preset.template_kwargs
                variables = {**(own or {}), **variables}
            if variables:
                template = replace(template, trusted=False)  # its variables are not
            async with self._turns:
                await self._reranker.abind(template, variables, instruction)
        except TemplateError as error:
            raise ServiceError(400, str(error), f"body.{name}") from None
        return Prompting(template=template, template_kwargs=variables, instruction=instruction)

    def counting(self, template: TemplateLike | None) -> ScoreTemplate | None:
        """A template, or the server's in the place of None. If there is none, the tokenizer encodes the pair."""
        chosen = self._reranker.config.template if template is None else template
        if chosen is not None:
            return from_user(chosen)
        checkpoint = self._reranker.checkpoint
        return None if checkpoint is None else template_for(checkpoint, None)


def _of_request(given: Any, name: str) -> ScoreTemplate:
    """The template of a request: Jinja, format strings, or the name of one of Winnow's; never a file of the server."""
    template = read_template(given, f"{name} of the request")
    if template is None:
        raise ServiceError(
            400,
            f"{name} is neither Jinja, nor a format string with {{query}} and {{document}}, nor the name of one of "
            "Winnow's templates.",
            f"body.{name}",
        )
    return template


def _refuse_large(variables: Mapping[str, Any], name: str) -> None:
    if is_deeper(variables, _DEEPEST_KWARGS):
        raise ServiceError(400, f"{name} is nested more than {_DEEPEST_KWARGS} deep.", f"body.{name}")
    if len(json.dumps(variables)) > _LARGEST_KWARGS:
        raise ServiceError(413, f"{name} has more than {_LARGEST_KWARGS:,} bytes.", f"body.{name}")
