"""The command `winnow serve`."""

import logging
import os
from pathlib import Path
from typing import Annotated

import typer

from winnow.cli.options import (
    BaseModel,
    EngineArguments,
    EngineName,
    Instruction,
    MaxLength,
    OnOverflow,
    OverflowPolicy,
    Recipe,
    Template,
    Urls,
    engine_settings,
)
from winnow.cli.terminal import put_away_on_interrupt
from winnow.errors import ConfigurationError

# Keys with commas between them, beside those of --api-key-file.
KEYS_VARIABLE = "WINNOW_SERVE_API_KEYS"


def serve(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face Hub.")],
    host: Annotated[str, typer.Option(help="Address to listen on; 0.0.0.0 for all of this machine's.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port to listen on; 0 for a free one.", min=0, max=65535)] = 8000,
    served_model_name: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Name of the model for clients; once for each.")
    ] = None,
    preset: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=FILE",
            help="Another name of the model, with the template and instruction of a TOML file; once for each.",
        ),
    ] = None,
    request_templates: Annotated[
        bool, typer.Option("--request-templates/--no-request-templates", help="Take templates from requests.")
    ] = True,
    api_key_file: Annotated[
        Path | None,
        typer.Option(help=f"Keys that clients must send, one a line; {KEYS_VARIABLE} has commas between them."),
    ] = None,
    open_metrics: Annotated[bool, typer.Option("--open-metrics", help="Answer /metrics without a key.")] = False,
    max_documents: Annotated[int, typer.Option(help="Most documents of a request.")] = 10_000,
    max_characters: Annotated[int, typer.Option(help="Most characters of a text.")] = 1_000_000,
    max_body_mb: Annotated[int, typer.Option(help="Most MiB of a request's body.")] = 32,
    body_seconds: Annotated[
        float,
        typer.Option(help="Most seconds for a request's header section, for its body, and without taking an answer."),
    ] = 30,
    max_running: Annotated[int, typer.Option(help="Most requests that are scored at once.")] = 64,
    max_waiting: Annotated[int, typer.Option(help="Most requests that wait for that; others get 429.")] = 256,
    max_priority: Annotated[
        int, typer.Option(help="How far from 0 priorities of requests may be; 0 ignores them.")
    ] = 0,
    drain_seconds: Annotated[float, typer.Option(help="How long requests may go on after SIGTERM.")] = 30,
    deadline: Annotated[float | None, typer.Option(help="Most seconds of a request, its wait included.")] = None,
    raw_scores: Annotated[bool, typer.Option("--raw-scores", help="Answer with logits where no request asks.")] = False,
    calibration: Annotated[
        str | None, typer.Option(metavar="PATH", help="Answer with probabilities, by what `winnow calibrate` wrote.")
    ] = None,
    instruction: Instruction = None,
    template: Template = None,
    recipe: Recipe = None,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    on_overflow: OnOverflow = OverflowPolicy.TRUNCATE,
    allow_remote_images: Annotated[
        bool, typer.Option("--allow-remote-images", help="Fetch images of requests from public addresses.")
    ] = False,
    engine: EngineName = "auto",
    url: Urls = None,
    engine_arg: EngineArguments = None,
) -> None:
    """Serve the model to rerank clients over HTTP: Cohere's, Jina's, vLLM's, TEI's, Voyage's, NVIDIA's.

    Examples:
      winnow serve Qwen/Qwen3-Reranker-0.6B

      winnow serve Qwen/Qwen3-Reranker-0.6B --host 0.0.0.0 --api-key-file keys.txt --preset legal=legal.toml

      curl http://127.0.0.1:8000/v1/rerank -H "Content-Type: application/json"
        -d '{"query": "capital of China", "documents": ["Beijing.", "Rice."]}'

    Settings of the engine may be given as environment variables, too, such as WINNOW_DTYPE=float16. WINNOW_API_KEY is
    the key of the servers at --url.
    """
    from winnow.ranking import Reranker  # here, so that --help is instant
    from winnow.service import ServiceConfig, keys_in_file, read_preset
    from winnow.service import serve as run_service

    keys = [key.strip() for key in os.environ.get(KEYS_VARIABLE, "").split(",") if key.strip()]
    if api_key_file is not None:
        keys += keys_in_file(api_key_file)
    config = ServiceConfig(
        served_names=served_model_name or (),
        presets={name: read_preset(Path(file)) for name, file in map(_name_and_file, preset or [])},
        keys=keys,
        open_metrics=open_metrics,
        request_templates=request_templates,
        max_documents=max_documents,
        max_characters=max_characters,
        max_body_bytes=max_body_mb << 20,
        body_seconds=body_seconds,
        max_running=max_running,
        max_waiting=max_waiting,
        max_priority=max_priority,
        drain_seconds=drain_seconds,
    )
    reranker = Reranker(
        model,
        **engine_settings(engine, url, None, engine_arg),
        recipe=recipe,
        base_model=base_model,
        instruction=instruction,
        template=template,
        max_length=max_length,
        on_overflow=on_overflow.value,
        raw_scores=raw_scores,
        calibration=calibration,
        deadline=deadline,
        allow_remote_images=allow_remote_images,
    )
    logging.getLogger("winnow.service").setLevel(logging.INFO)  # one line for each request
    with put_away_on_interrupt():
        run_service(reranker, config, host, port)


def _name_and_file(given: str) -> tuple[str, str]:
    name, equals, file = given.partition("=")
    if not (name and equals and file):
        raise ConfigurationError(f"--preset looks like legal=legal.toml, but got {given!r}")
    return name, file
