"""Rerank real text through all three integrations: Haystack, LlamaIndex and LangChain, on one shared engine.

    make demo                                        # or python examples/demo.py
    make demo MODEL=winnow-demo-reranker             # the other model of the two in examples/models
    make demo MODEL=Qwen/Qwen3-Reranker-0.6B         # any reranker: a folder, or a name on the Hugging Face Hub

It shows what BM25 found and what the model makes of it, one query under two instructions, one long document cut and in
windows, and what all this cost. Nothing is downloaded for the two models in examples/models: their bases are packages.
"""

import argparse
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.table import Table
from rich.text import Text

import demo_model

PASSAGES = Path(__file__).with_name("everyday") / "corpus.jsonl"
LOG = demo_model.CACHE / "demo.log"
DEFAULT_MODEL = "winnow-demo-cross-encoder"
QUERY = "Why does the water at the coast come and go?"
CANDIDATES, SHOWN = 20, 6
SAME = 1e-3  # a score computed twice may differ by less, as a batch does

# One word with several meanings: the instruction says which of them is asked for.
WORD = "mouse"
INSTRUCTIONS = ("Retrieve what the word means in everyday English", "Retrieve what the word means in computing")

# A long document that answers QUERY at its end, and what the model may read of it at a time.
LONG_DOCUMENT, DOCUMENT_TOKENS = "harbour", 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model",
        default=DEFAULT_MODEL,
        help=f"one of {', '.join(demo_model.ABOUT)}, a folder, or a name on the Hub (default: %(default)s)",
    )
    parser.add_argument("--query", default=QUERY, help="what to look for (default: %(default)s)")
    parser.add_argument("--picture", type=Path, metavar="FILE", help="draw what moved: .svg, .png or .pdf")
    arguments = parser.parse_args()
    passages = {record["_id"]: record["text"] for record in map(json.loads, PASSAGES.read_text("utf-8").splitlines())}
    with only_the_demo_on_the_screen() as console:
        agree = show(console, arguments.model, arguments.query, passages, arguments.picture)
    sys.exit(not agree)


def show(console: Console, model: str, query: str, passages: Mapping[str, str], picture: Path | None = None) -> bool:
    """Print all parts of the demo. Returns whether the three integrations agree.

    Args:
        console: Where to print.
        model: The reranker, as `demo_model.settings_of` takes it.
        query: What to look for.
        passages: The passages, by name.
        picture: A file to draw the order before and after into.
    """
    with console.status(f"Loading {model}"):
        from demo_integrations import through_haystack, through_langchain, through_llama_index
        from winnow import Reranker

        settings = demo_model.settings_of(model)
        # Holding a reranker of the model keeps its engine for all three integrations; they share it in any case.
        reranker = Reranker(**settings).start()
    with reranker:
        found, haystack = through_haystack(settings, query, passages, CANDIDATES)
        by_integration = {
            "Haystack": haystack,
            "LlamaIndex": through_llama_index(settings, query, found),
            "LangChain": through_langchain(settings, query, found),
        }
        before = [document.id for document in found]
        about = f", {demo_model.ABOUT[model]}" if model in demo_model.ABOUT else ""
        console.print(f"\n[bold]Query:[/] {query}\n[bold]Model:[/] {model}{about}\n")
        console.print(before_table(before, [document.score or 0.0 for document in found], passages))
        console.print(after_table(before, by_integration, passages))
        agree = all(
            mine[0] == theirs[0] and abs(mine[1] - theirs[1]) < SAME
            for hits in by_integration.values()
            for mine, theirs in zip(haystack, hits, strict=True)
        )
        console.print("The three integrations agree.\n" if agree else "[red]The three integrations do not agree.[/]\n")
        if picture is not None:
            draw(picture, model, query, before, dict(haystack), passages)
        console.print(instructions(reranker, list(passages.values())))
        windows = Reranker(**settings, max_document_tokens=DOCUMENT_TOKENS, on_overflow="window")
        cut = Reranker(**settings, max_document_tokens=DOCUMENT_TOKENS)
        console.print(long_document(cut, windows, passages[LONG_DOCUMENT]))
        ranking = reranker.rank(query, [passages[name] for name in before])
        stats = ranking.stats
        console.print(
            f"\n[bold]What a call cost:[/] {stats.unique} documents, {stats.prompt_tokens} tokens "
            f"({stats.cached_tokens} of them from the prefix cache), {stats.elapsed_ms:.0f} ms"
        )
    return agree


def before_table(order: Sequence[str], scores: Sequence[float], passages: Mapping[str, str]) -> Table:
    """What BM25 found, in its order."""
    table = Table("", "BM25", "", title="Before: what BM25 found", title_justify="left")
    for place, (name, score) in enumerate(zip(order, scores, strict=True), 1):
        if place <= SHOWN:
            table.add_row(str(place), f"{score:.2f}", passages[name])
    return table


def after_table(
    before: Sequence[str], by_integration: Mapping[str, Sequence[tuple[str, float]]], passages: Mapping[str, str]
) -> Table:
    """The same passages in the model's order: green where the model calls them relevant."""
    table = Table("", "before", *by_integration, "", title="After: reranked, by integration", title_justify="left")
    for place, hits in enumerate(zip(*by_integration.values(), strict=True), 1):
        name, score = hits[0]
        if place <= SHOWN:
            table.add_row(
                str(place),
                moved(before.index(name) + 1, place),
                *(f"{hit[1]:.4f}" for hit in hits),
                Text(passages[name], style="green" if score >= 0.5 else ""),
            )
    return table


def draw(
    file: Path, model: str, query: str, before: Sequence[str], scores: Mapping[str, float], passages: Mapping[str, str]
) -> None:
    """Draw which passages moved where; those that the model calls relevant are blue."""
    import pictures  # here, because only this needs matplotlib

    figure = pictures.moves(
        before,
        list(scores),
        passages,
        titles=("What BM25 found", "Reranked by Winnow"),
        scores=scores,
        chosen=[name for name, score in scores.items() if score >= 0.5],
        shown=SHOWN,
    )
    figure.suptitle(query)
    version = demo_model.version_of(model) if model in demo_model.ABOUT else ""
    pictures.save(figure, file, f"{model} {version}".strip())


def instructions(reranker: Any, texts: Sequence[str]) -> Group | str:
    """One word under two instructions, and how ranks move; a sentence for a model that takes none."""
    first, second = (reranker.rank(WORD, texts, instruction=text) for text in INSTRUCTIONS)
    places = {hit.index: place for place, hit in enumerate(first, 1)}
    logits = {hit.index: hit.logit for hit in first}
    if all(abs(hit.logit - logits[hit.index]) < SAME for hit in second):
        return "Another instruction changes no score of this model: it reads none. Try MODEL=winnow-demo-reranker.\n"
    table = Table("", "before", "score", "logit moved", "", title_justify="left")
    table.title = f"Query: {WORD}\nInstruction: {INSTRUCTIONS[1]}\nBefore: {INSTRUCTIONS[0]}"
    for place, hit in enumerate(second[:4], 1):
        change = hit.logit - logits[hit.index]
        table.add_row(str(place), moved(places[hit.index], place), f"{hit.score:.4f}", f"{change:+.2f}", hit.text)
    count = sum(places[hit.index] != place for place, hit in enumerate(second, 1))
    return Group(table, f"The instruction changed the rank of {count} of {len(texts)} passages.\n")


def long_document(cut: Any, windows: Any, text: str) -> Table:
    """A document that is longer than the model may read here, cut and in windows."""
    table = Table("", "score", "truncated", "tokens read", "windows", "best window")
    table.title = f"A long document whose end answers “{QUERY}”, {DOCUMENT_TOKENS} tokens at a time"
    for name, reranker in (("truncated", cut), ("windowed", windows)):
        hit = reranker.rank(QUERY, [text])[0]
        best = str(hit.best_window + 1)
        table.add_row(name, f"{hit.score:.4f}", str(hit.truncated), str(hit.document_tokens), str(hit.windows), best)
    return table


def moved(before: int, now: int) -> Text:
    """The place that a passage had, and which way it went."""
    if before == now:
        return Text(f"{before} =", style="dim")
    return Text(f"{before} ▲", style="green") if now < before else Text(f"{before} ▼", style="red")


@contextmanager
def only_the_demo_on_the_screen() -> Iterator[Console]:
    """A console on the screen; what libraries print, their processes too, goes to a file.

    If the demo fails, the error is shown, and where that file is.
    """
    LOG.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    screen = os.fdopen(os.dup(1), "w", encoding="utf-8")
    before = [os.dup(1), os.dup(2)]
    console = Console(file=screen)
    with LOG.open("w", encoding="utf-8") as log:
        for stream in (1, 2):
            os.dup2(log.fileno(), stream)
    try:
        yield console
    except Exception as error:  # noqa: BLE001 - whatever it is, it must reach the screen
        traceback.print_exc()
        console.print(f"[red]{type(error).__name__}:[/]", Text(str(error)), f"\nMore is in {LOG}")
        sys.exit(1)
    finally:
        screen.flush()
        for stream, kept in zip((1, 2), before, strict=True):
            os.dup2(kept, stream)


if __name__ == "__main__":
    main()
