"""The command line: it reads arguments and prints; the work is done by the modules it calls.

No command catches errors: `winnow.cli.terminal` does for all of them.
"""

import logging
from enum import StrEnum
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from winnow.cli.bulk import bulk
from winnow.cli.calibrate import calibrate
from winnow.cli.documents import as_json, read_documents, what_to_know
from winnow.cli.evaluation import evaluate_files
from winnow.cli.options import (
    ApiKey,
    AsJson,
    BaseModel,
    EngineArguments,
    EngineName,
    Instruction,
    MaxLength,
    Model,
    OnOverflow,
    OverflowPolicy,
    Recipe,
    Template,
    Urls,
    engine_settings,
)
from winnow.cli.serve import serve
from winnow.cli.terminal import LogFormatter, one_line, put_away_on_interrupt, run, shown, write, write_json, write_note


class Commands(TyperGroup):
    """The commands, whose every error becomes one line and an exit code."""

    def main(self, *args: Any, **options: Any) -> Any:
        """Run a command, and end the process."""
        run(partial(super().main, *args, **{**options, "standalone_mode": False}))


app = typer.Typer(cls=Commands, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


class ConvertMethod(StrEnum):
    """Values of --method."""

    FROM_2_WAY_SOFTMAX = "from_2_way_softmax"
    NO_POST_PROCESSING = "no_post_processing"


def _show_version(wanted: bool) -> None:
    if wanted:
        write(f"winnow-rerank {version('winnow-rerank')}\n")
        raise typer.Exit


@app.callback()
def main(
    _: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show it and exit.")
    ] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Log what Winnow decides, on stderr.")] = False,
) -> None:
    """Rerank documents with an LLM reranker, exact to the last prompt token."""
    handler = logging.StreamHandler()
    handler.setFormatter(LogFormatter())
    logging.basicConfig(level=logging.WARNING, handlers=[handler])
    logging.getLogger("winnow").setLevel(logging.INFO if verbose else logging.WARNING)


@app.command()
def rank(
    file: Annotated[str, typer.Argument(help='Documents: a line each, or JSONL with "text" ("-" reads stdin).')],
    model: Model,
    query: Annotated[str, typer.Option("--query", "-q", help="What is searched for.")],
    instruction: Instruction = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="How many to print; all by default.")] = None,
    threshold: Annotated[float | None, typer.Option(help="Least score to print.")] = None,
    deadline: Annotated[float | None, typer.Option(help="Seconds after which to give up, loading included.")] = None,
    raw_scores: Annotated[bool, typer.Option("--raw-scores", help="Print logits instead of scores in 0…1.")] = False,
    calibration: Annotated[
        str | None, typer.Option(metavar="PATH", help="Print probabilities, by what `winnow calibrate` wrote.")
    ] = None,
    template: Template = None,
    recipe: Recipe = None,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    on_overflow: OnOverflow = OverflowPolicy.TRUNCATE,
    engine: EngineName = "auto",
    url: Urls = None,
    api_key: ApiKey = None,
    engine_arg: EngineArguments = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object with results and stats.")] = False,
) -> None:
    """Print the documents in order of relevance to the query, best first.

    Examples:
      winnow rank -m Qwen/Qwen3-Reranker-0.6B -q "capital of China" -k 3 passages.txt

      cat passages.jsonl | winnow rank -m Qwen/Qwen3-Reranker-0.6B -q "capital of China" --json -

      winnow rank -m Qwen/Qwen3-Reranker-0.6B -q "capital of China" --url http://gpu-1:8000 passages.txt

      winnow rank -m Qwen/Qwen3-Reranker-8B -q "capital of China" --engine vllm
        --engine-arg tensor_parallel_size=2 --engine-arg gpu_memory_utilization=0.8 passages.txt

    Settings may be given as environment variables, too, such as WINNOW_DTYPE=float16 or WINNOW_URL.
    """
    from winnow.ranking import Reranker  # here, so that --help is instant

    records = read_documents(file)
    with (
        put_away_on_interrupt(),
        Reranker(
            model,
            **engine_settings(engine, url, api_key, engine_arg),
            recipe=recipe,
            base_model=base_model,
            instruction=instruction,
            template=template,
            max_length=max_length,
            on_overflow=on_overflow.value,
            raw_scores=raw_scores,
            calibration=calibration,
            deadline=deadline,
        ) as reranker,
    ):
        texts = [record["text"] for record in records]
        ranking = reranker.rank(query, texts, top_k=top_k, score_threshold=threshold, progress=True)
    if json_output:
        write_json(as_json(query, ranking, records))
        return
    write(
        "".join(
            f"{place}\t{hit.score:.4f}\t[{hit.index}]\t{shown(one_line(hit.text or ''))}\n"
            for place, hit in enumerate(ranking, 1)
        )
    )
    for note in what_to_know(ranking):
        write_note(note)


app.command()(bulk)
app.command()(calibrate)
app.command("eval")(evaluate_files)
app.command()(serve)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face Hub.")],
    query: Annotated[str | None, typer.Option("--query", "-q", help="Query of the pair that is shown.")] = None,
    document: Annotated[str | None, typer.Option("--document", "-d", help="Its document.")] = None,
    instruction: Instruction = None,
    template: Template = None,
    recipe: Recipe = None,
    base_model: BaseModel = None,
    json_output: AsJson = False,
) -> None:
    """Show how a model is prompted and what is wrong with it; exit code 1 if it cannot be used. Loads no weights.

    Example:
      winnow doctor Qwen/Qwen3-Reranker-0.6B --instruction "Find the passage that answers the question"
    """
    from winnow.cli.doctor import DOCUMENT, QUERY, examine
    from winnow.cli.doctor_report import print_report

    found = examine(
        model,
        recipe=recipe,
        base_model=base_model,
        template=template,
        instruction=instruction,
        query=QUERY if query is None else query,
        document=DOCUMENT if document is None else document,
    )
    if json_output:
        write_json(found.as_dict())
    else:
        print_report(found)
    if found.problems:
        raise typer.Exit(1)


@app.command()
def convert(
    model: Annotated[str, typer.Argument(help="A folder, or a name on the Hugging Face Hub.")],
    out: Annotated[Path, typer.Argument(help="The folder to write; it must not exist, or be empty.")],
    method: Annotated[ConvertMethod | None, typer.Option(help="By default what the labels say.")] = None,
    labels: Annotated[str | None, typer.Option(help='"no,yes" or "yes"; by default those of the family.')] = None,
    recipe: Recipe = None,
    base_model: BaseModel = None,
    template: Template = None,
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the Hub.")] = None,
    verify: Annotated[bool, typer.Option("--verify", help="Score pairs with both, and fail if they differ.")] = False,
) -> None:
    """Write a causal reranker as a sequence-classification checkpoint, which loads anywhere without settings.

    A LoRA adapter is merged into its base first.

    Examples:
      winnow convert Qwen/Qwen3-Reranker-0.6B qwen3-reranker-seq-cls --verify

      winnow convert my-adapter my-reranker --base-model Qwen/Qwen3-Reranker-0.6B --verify
    """
    from winnow.convert import convert as write_converted

    with put_away_on_interrupt():
        done = write_converted(
            model,
            out,
            method=method.value if method else None,
            labels=labels.split(",") if labels else None,
            recipe=recipe,
            template=template,
            revision=revision,
            base_model=base_model,
            verify=verify,
            progress=True,
        )
    write(f"{shown(str(done.folder))}: score head with {shown(done.formula)}, {done.bytes / 1e6:.1f} MB\n")
    if done.difference is not None:
        write(f"largest difference of a logit in float32: {done.difference:.1e}\n")
