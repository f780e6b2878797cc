"""`winnow eval`: a reranker on a judged collection."""

import errno
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer

from winnow.cli import options
from winnow.cli.terminal import json_text, put_away_on_interrupt, write_json

_STDOUT = "-"


def evaluate_files(
    model: options.Model,
    run: Annotated[
        list[Path],
        typer.Option(help="What a retriever found, in TREC's format (query, Q0, document, rank, score, name)."),
    ],
    collection: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="corpus.jsonl, queries.jsonl and qrels/test.tsv or qrels.tsv, as in BEIR."),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help='Documents: JSONL with "_id", "title" and "text".')] = None,
    queries: Annotated[Path | None, typer.Option(help='Queries: JSONL with "_id" and "text".')] = None,
    qrels: Annotated[Path | None, typer.Option(help="Judgements, in BEIR's or TREC's format.")] = None,
    metrics: Annotated[str, typer.Option(help="Metrics of ir_measures (https://ir-measur.es).")] = "nDCG@10 RR@10",
    top_k: Annotated[int, typer.Option("--top-k", "-k", min=1, help="How many documents of a query to rerank.")] = 100,
    limit: Annotated[int | None, typer.Option(min=1, metavar="QUERIES", help="Evaluate only so many.")] = None,
    against: Annotated[
        str | None,
        typer.Option(metavar="RUN|MODEL", help="Compare with this run, too, or with this model's reranking."),
    ] = None,
    score_cache: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Keep scores here: after an interruption the same command goes on."),
    ] = None,
    output: Annotated[
        list[Path] | None, typer.Option(metavar="FILE", help="Write the reranked run; once for each --run.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(metavar="FILE", help="Draw it: .png, .svg, .pdf or .html.")] = None,
    json_file: Annotated[
        str | None, typer.Option("--json", metavar="FILE", help='Write everything as JSON; "-" prints only that.')
    ] = None,
    instruction: options.Instruction = None,
    template: options.Template = None,
    recipe: options.Recipe = None,
    base_model: options.BaseModel = None,
    max_length: options.MaxLength = None,
    on_overflow: options.OnOverflow = options.OverflowPolicy.TRUNCATE,
    engine: options.EngineName = "auto",
    url: options.Urls = None,
    api_key: options.ApiKey = None,
    engine_arg: options.EngineArguments = None,
) -> None:
    """Measure a reranker on judged queries: is it better than the retriever's own order, and is that more than luck?

    Each file may be compressed (.gz). With several --run each is reranked, and the others are compared with the first.

    Examples:
      winnow eval -m Qwen/Qwen3-Reranker-0.6B --collection scifact --run run.bm25.trec --plot scifact.html

      winnow eval -m Qwen/Qwen3-Reranker-0.6B --collection scifact --run run.bm25.trec
        --against BAAI/bge-reranker-v2-m3 --metrics "nDCG@10 RR@10 R@50" --json scifact.json

      winnow eval -m Qwen/Qwen3-Reranker-8B --corpus corpus.jsonl --queries queries.tsv --qrels qrels.trec
        --run run.bm25.trec --score-cache scores --limit 50
    """
    from winnow.cli.evaluation_report import print_report  # here, so that --help is instant
    from winnow.evaluation import Evaluation, Run, check_plot_file, documents_of, evaluate, read_collection, read_run
    from winnow.evaluation import plot as draw
    from winnow.ranking import Reranker

    outputs = output or []
    if outputs and len(outputs) != len(run):
        raise ValueError(f"{len(run)} times --run and {len(outputs)} times --output: give one --output for each --run.")
    for file in (*outputs, plot, json_file if json_file != _STDOUT else None):
        _check_folder(file)
    if plot is not None:
        check_plot_file(plot)

    runs = [read_run(file) for file in run]
    wanted = documents_of(runs, top_k)
    judged = read_collection(collection, corpus=corpus, queries=queries, qrels=qrels, only=wanted)
    options_of_all: dict[str, Any] = {"metrics": metrics, "top_k": top_k, "limit": limit, "progress": True}
    make = partial(
        Reranker,
        **options.engine_settings(engine, url, api_key, engine_arg),
        instruction=instruction,
        max_length=max_length,
        on_overflow=on_overflow.value,
        on_error="skip",  # one bad document must not end hours of work
        score_cache=score_cache,
    )
    other_run = read_run(against) if against is not None and Path(against).is_file() else None
    others: list[list[Run | Evaluation]] = [[] if other_run is None else [other_run] for _ in runs]
    evaluations: list[Evaluation] = []
    with put_away_on_interrupt():
        if against is not None and other_run is None:
            with make(model=against) as other:  # it is closed before the next model is loaded
                others = [[evaluate(other, judged, one, **options_of_all)] for one in runs]
        with make(model=model, template=template, recipe=recipe, base_model=base_model) as reranker:
            for one, compared in zip(runs, others, strict=True):
                evaluations.append(
                    evaluate(reranker, judged, one, against=[*evaluations[:1], *compared], **options_of_all)
                )
        for evaluation, file in zip(evaluations, outputs, strict=False):
            evaluation.run.write(file)
        if plot is not None:
            draw(evaluations, plot)
    found = {"evaluations": [evaluation.as_dict() for evaluation in evaluations]}
    if json_file == _STDOUT:
        write_json(found)
        return
    if json_file is not None:
        Path(json_file).write_text(json_text(found, "utf-8"), encoding="utf-8")
    for evaluation in evaluations:
        print_report(evaluation)


def _check_folder(file: str | Path | None) -> None:
    """Check, before hours of work, that a file has a folder to be written to."""
    if file is not None and not Path(file).parent.is_dir():
        raise FileNotFoundError(errno.ENOENT, "No such folder", str(Path(file).parent))
