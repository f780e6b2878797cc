"""`winnow bulk`: rerank files of millions of queries."""

import contextlib
import sys
from pathlib import Path
from typing import Annotated

import typer

from winnow.cli import options
from winnow.cli.terminal import put_away_on_interrupt, shown, write, write_json


def bulk(
    inputs: Annotated[
        list[Path],
        typer.Option("--input", "-i", metavar="PATH", help="A file or a folder: Parquet, JSONL or a TREC run."),
    ],
    output: Annotated[Path, typer.Option("--output", "-o", metavar="FOLDER", help="Where the parts are written.")],
    model: options.Model,
    query_column: Annotated[str, typer.Option(metavar="NAME", help="Column of the query, a text.")] = "query",
    documents_column: Annotated[
        str, typer.Option(metavar="NAME", help="Column of the documents, a list of texts.")
    ] = "documents",
    instruction_column: Annotated[
        str | None, typer.Option(metavar="NAME", help="Column of an instruction for each row.")
    ] = None,
    drop: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="Leave this column out of the output; once for each.")
    ] = None,
    collection: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Texts of a run: corpus.jsonl and queries.jsonl, as in BEIR."),
    ] = None,
    corpus: Annotated[Path | None, typer.Option(help='Documents of a run: JSONL with "_id", "title", "text".')] = None,
    queries: Annotated[Path | None, typer.Option(help='Queries of a run: JSONL with "_id" and "text".')] = None,
    top_k: Annotated[int | None, typer.Option("--top-k", "-k", help="How many to keep of each row; all.")] = None,
    concurrency: Annotated[
        int | None, typer.Option(help="How many workers, each with an engine; by default one for each GPU, or one.")
    ] = None,
    num_cpus: Annotated[float, typer.Option(help="Processors of each worker.")] = 1,
    num_gpus: Annotated[
        float | None, typer.Option(help="GPUs of each worker; by default as many as the engine uses.")
    ] = None,
    part_rows: Annotated[int, typer.Option(help="Rows of a part of the output.")] = 256,
    max_errors: Annotated[int, typer.Option(help="Stop when more rows and documents than this have failed.")] = 100,
    instruction: options.Instruction = None,
    raw_scores: Annotated[bool, typer.Option("--raw-scores", help="Write logits instead of scores in 0…1.")] = False,
    calibration: Annotated[
        str | None, typer.Option(metavar="PATH", help="Write probabilities, by what `winnow calibrate` wrote.")
    ] = None,
    score_cache: Annotated[
        Path | None, typer.Option(metavar="FOLDER", help="Keep each pair's score here, too: no pair is scored twice.")
    ] = None,
    template: options.Template = None,
    recipe: options.Recipe = None,
    base_model: options.BaseModel = None,
    max_length: options.MaxLength = None,
    on_overflow: options.OnOverflow = options.OverflowPolicy.TRUNCATE,
    engine: options.EngineName = "auto",
    url: options.Urls = None,
    api_key: options.ApiKey = None,
    engine_arg: options.EngineArguments = None,
    json_output: options.AsJson = False,
) -> None:
    """Rerank files of millions of queries, on all GPUs of this machine or of a Ray cluster.

    A row of Parquet or JSONL has a query and a list of documents. The output has the same rows, with "ranking"
    (positions of the documents, best first) and "scores"; of a run it is a run. What is interrupted is continued by the
    same command. Rows that cannot be ranked are in _errors.jsonl.

    Examples:
      winnow bulk -m Qwen/Qwen3-Reranker-0.6B --input candidates.parquet --output reranked --top-k 10

      winnow bulk -m Qwen/Qwen3-Reranker-0.6B --input run.bm25.trec --collection scifact --output reranked

      winnow bulk -m Qwen/Qwen3-Reranker-0.6B --input candidates/ --output reranked --concurrency 16
        --num-cpus 0.5 --url http://gpu-1:8000 --url http://gpu-2:8000

    It joins the Ray cluster that `ray start` made on this machine, or that of RAY_ADDRESS; without one it starts Ray.
    """
    from winnow.bulk import rerank_files  # here, so that --help is instant

    # Ray prints to standard output that a worker died: there is only the report.
    with put_away_on_interrupt(), contextlib.redirect_stdout(sys.stderr):
        report = rerank_files(
            inputs,
            output,
            model=model,
            query_column=query_column,
            documents_column=documents_column,
            instruction_column=instruction_column,
            drop=drop or (),
            collection=collection,
            corpus=corpus,
            queries=queries,
            top_k=top_k,
            concurrency=concurrency,
            num_cpus=num_cpus,
            num_gpus=num_gpus,
            part_rows=part_rows,
            max_errors=max_errors,
            progress=True,
            **options.engine_settings(engine, url, api_key, engine_arg),
            instruction=instruction,
            raw_scores=raw_scores,
            calibration=calibration,
            score_cache=score_cache,
            template=template,
            recipe=recipe,
            base_model=base_model,
            max_length=max_length,
            on_overflow=on_overflow.value,
        )
    if json_output:
        write_json(report.as_dict())
        return
    costs = report.costs
    write(
        f"{shown(str(output))}: {costs.rows} rows in {report.parts} parts"
        + (f", of which {report.parts_before} parts were done before" if report.parts_before else "")
        + f"\n{costs.pairs} pairs, {costs.prompt_tokens} prompt tokens ({costs.cached_tokens} in the engine's prefix "
        f"cache), {costs.cache_hits} scores from the score cache\n"
        f"{costs.truncated} documents truncated, {costs.failed} failed, {report.errors} errors in all\n"
    )
    if report.pairs_per_second is not None:
        write(f"{report.pairs_per_second:.1f} pairs/s in {report.seconds:.1f} s, loading included\n")
