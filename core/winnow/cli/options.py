"""Options that several commands have: the model, how it reads, and where it runs."""

from enum import StrEnum
from typing import Annotated, Any

import typer


class OverflowPolicy(StrEnum):
    """Values of --on-overflow."""

    TRUNCATE = "truncate"
    ERROR = "error"
    WINDOW = "window"


def _checked_engine(name: str) -> str:
    from winnow.engines import engine_names  # here, so that --help is instant

    if name not in engine_names():
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, engine_names()))}.")
    return name


Model = Annotated[str, typer.Option("--model", "-m", help="A folder, or a name on the Hugging Face Hub.")]
Instruction = Annotated[str | None, typer.Option(help="What counts as relevant, for models that take it.")]
Template = Annotated[str | None, typer.Option(help="A score template: a built-in's name, or a Jinja file.")]
Recipe = Annotated[str | None, typer.Option(help="The model's family, if its name does not identify it.")]
BaseModel = Annotated[
    str | None,
    typer.Option(envvar="WINNOW_BASE_MODEL", help="The base of a LoRA adapter, if it is not the one that it names."),
]
MaxLength = Annotated[int | None, typer.Option(help="Most tokens of a prompt; the model's limit by default.")]
OnOverflow = Annotated[OverflowPolicy, typer.Option(help="What to do with longer documents.")]
EngineName = Annotated[
    str,
    typer.Option(
        metavar="NAME",
        callback=_checked_engine,
        help="vllm, server or transformers; auto takes vLLM if it runs here, and servers if there is a --url.",
    ),
]
Urls = Annotated[
    list[str] | None, typer.Option("--url", help="Address of a vLLM server; once for each that serves the model.")
]
ApiKey = Annotated[
    str | None, typer.Option(envvar="WINNOW_API_KEY", help="Key of these servers; better not on a command line.")
]
EngineArguments = Annotated[
    list[str] | None,
    typer.Option(
        "--engine-arg",
        metavar="NAME=VALUE",
        help="A setting of the engine, such as dtype=float16; once for each.",
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]


def engine_settings(
    engine: str, url: list[str] | None, api_key: str | None, engine_arg: list[str] | None
) -> dict[str, Any]:
    """The arguments of a `Reranker` that say where it runs."""
    from winnow.engines import AUTO, SERVER, parse_argument

    return {
        "engine": SERVER.name if url and engine == AUTO else engine,
        "url": url or None,
        "api_key": api_key,
        "engine_kwargs": dict(map(parse_argument, engine_arg or [])),
    }
