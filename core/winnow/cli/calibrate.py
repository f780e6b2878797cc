"""`winnow calibrate`: judged pairs in, a calibration and a threshold out."""

from collections.abc import Iterable
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

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
from winnow.cli.terminal import put_away_on_interrupt, shown, write, write_json, write_note

if TYPE_CHECKING:
    from winnow.evaluation import JudgedPair


class CalibrationMethod(StrEnum):
    """Values of --method."""

    AUTO = "auto"
    PLATT = "platt"
    ISOTONIC = "isotonic"


def calibrate(
    model: Model,
    pairs: Annotated[
        Path | None,
        typer.Option(help='Judged pairs: JSONL with "query", "document", "label", and perhaps "instruction".'),
    ] = None,
    collection: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Or a judged collection, as `winnow eval` takes it.")
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help='Its documents: JSONL with "_id", "title" and "text".')] = None,
    queries: Annotated[Path | None, typer.Option(help='Its queries: JSONL with "_id" and "text".')] = None,
    qrels: Annotated[Path | None, typer.Option(help="Its judgements, in BEIR's or TREC's format.")] = None,
    run: Annotated[
        Path | None,
        typer.Option(help="What your retriever found: what nobody judged there counts as not relevant."),
    ] = None,
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many of these for each query.")] = 100,
    relevant_from: Annotated[float, typer.Option(help="The least label that counts as relevant.")] = 1,
    method: Annotated[
        CalibrationMethod,
        typer.Option(help="auto: isotonic from 1000 pairs on, if it is clearly better, else platt (a sigmoid)."),
    ] = CalibrationMethod.AUTO,
    precision: Annotated[
        float | None, typer.Option(help="Choose the lowest threshold with this share of relevant documents.")
    ] = None,
    recall: Annotated[
        float | None, typer.Option(help="Choose the highest threshold that keeps this share of the relevant documents.")
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Where to write it: a .json file, or a folder, such as the model's."),
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw how good it is: a .png, .svg or .pdf file.")] = None,
    score_cache: Annotated[
        Path | None, typer.Option(help="A folder to keep scores in: after an interruption, go on from there.")
    ] = None,
    instruction: Instruction = None,
    template: Template = None,
    recipe: Recipe = None,
    base_model: BaseModel = None,
    max_length: MaxLength = None,
    on_overflow: OnOverflow = OverflowPolicy.TRUNCATE,
    engine: EngineName = "auto",
    url: Urls = None,
    api_key: ApiKey = None,
    engine_arg: EngineArguments = None,
    json_output: AsJson = False,
) -> None:
    """Fit a curve that makes probabilities of a model's scores, on judged pairs, and choose a threshold.

    Give the settings that you rerank with: instruction, template and lengths change scores. The pairs should be such as
    the threshold will meet: what your retriever finds. The numbers are held out: each pair is scored by a curve that
    was fitted on other queries. It needs the extra "eval" (scikit-learn, matplotlib).

    Examples:
      winnow calibrate -m Qwen/Qwen3-Reranker-0.6B --pairs judged.jsonl --precision 0.9 -o calibration.json

      winnow calibrate -m Qwen/Qwen3-Reranker-0.6B --collection scifact --run run.bm25.trec --recall 0.95
        --plot reliability.png --score-cache scores -o calibration.json

      winnow rank -m Qwen/Qwen3-Reranker-0.6B --calibration calibration.json --threshold 0.62 -q "..." passages.txt
    """
    from winnow.evaluation import calibrate as fit_calibration
    from winnow.evaluation import check_picture_file, plot_reliability
    from winnow.ranking import Reranker

    if plot is not None:
        check_picture_file(plot)
    judged = _judged(pairs, {"folder": collection, "corpus": corpus, "queries": queries, "qrels": qrels}, run, top_k)
    with (
        put_away_on_interrupt(),
        Reranker(
            model,
            **engine_settings(engine, url, api_key, engine_arg),
            instruction=instruction,
            template=template,
            recipe=recipe,
            base_model=base_model,
            max_length=max_length,
            on_overflow=on_overflow.value,
            on_error="skip",
            score_cache=score_cache,
        ) as reranker,
    ):
        report = fit_calibration(
            reranker,
            judged,
            method=method.value,
            relevant_from=relevant_from,
            precision=precision,
            recall=recall,
            progress=True,
        )
    if json_output:
        write_json(report.as_dict())
    else:
        write(f"{shown(model)}: {report}\n")
    if output is not None:
        write_note(f"wrote {report.calibration.save(output)}")
    if plot is not None:
        plot_reliability(report, plot)
        write_note(f"wrote {plot}")


def _judged(pairs: Path | None, files: dict[str, Path | None], run: Path | None, top_k: int) -> "Iterable[JudgedPair]":
    """The judged pairs of a file, or of a collection."""
    from winnow.evaluation import check_run, pairs_of, read_collection, read_pairs, read_run

    if (pairs is None) == (not any(files.values())):
        raise typer.BadParameter("give --pairs, or --collection, or --corpus, --queries and --qrels")
    if pairs is not None:
        if run is not None:
            raise typer.BadParameter("--run belongs to a collection, not to --pairs")
        return read_pairs(pairs)
    found = None if run is None else read_run(run)
    only = None if found is None else found.documents(top_k)
    folder = files.pop("folder")
    judged = read_collection(folder, **files, only=only)
    if found is not None:
        check_run(found, judged, top_k)
    return pairs_of(judged, found, top_k=top_k)
