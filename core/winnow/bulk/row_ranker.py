"""Rank the rows of a part with one reranker."""

from collections.abc import Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any

from winnow.bulk.rows import BulkCosts, RankedRow, Request, Row
from winnow.errors import ConfigurationError, DocumentError
from winnow.ranking import Reranker, RerankerConfig, checked_top_k
from winnow.types import RankedDocument, Ranking, finite

# A row with more documents is ranked in pieces, and joined again: one of a million documents must not make so many
# results and prompts at once.
_PIECE = 2048

# Settings of a reranker that mean something else, or nothing, for a million rows.
_NOT_HERE = {
    "on_error": "a document that cannot be scored ranks last, and its reason is among the errors",
    "deadline": "a deadline is for one call, and this work takes as long as it takes",
}


def bulk_config(model: str, settings: Mapping[str, Any]) -> RerankerConfig:
    """The settings of the reranker that each worker makes.

    Raises:
        ConfigurationError: A setting is wrong, or is not for work in bulk.
        TypeError: There is no such setting.
    """
    for name, why in _NOT_HERE.items():
        if name in settings:
            raise ConfigurationError(f"{name} cannot be set here: {why}.")
    config = RerankerConfig(model, **settings, on_error="skip")
    if not isinstance(config.engine, str):
        raise ConfigurationError("engine must be a name here: each worker makes an engine of its own.")
    return config


class RowRanker:
    """Ranks rows with one reranker, which it makes.

    Args:
        config: The reranker's settings.
        top_k: How many documents of each row are kept; None for all.
    """

    def __init__(self, config: RerankerConfig, top_k: int | None = None):
        self._top_k = checked_top_k(top_k)
        self._reranker = Reranker(**vars(config))

    def rank(self, requests: Sequence[Request]) -> list[RankedRow]:
        """Rank rows, in one pass over the engine.

        Returns:
            The result of each row, in order. A row whose query cannot be scored has a `problem`.

        Raises:
            WinnowError: As `Reranker.rank_many`.
        """
        pieces = [
            (query, documents[begin : begin + _PIECE], instruction)
            for query, documents, instruction in requests
            for begin in range(0, len(documents), _PIECE)
        ]
        try:
            rankings = iter(self._reranker.rank_many(pieces))
        except DocumentError as error:
            if len(requests) == 1:
                return [RankedRow(problem=str(error))]
            return [ranked for request in requests for ranked in self.rank([request])]  # to find the bad one
        return [self._joined(len(documents), rankings) for _, documents, _ in requests]

    def rank_rows(self, rows: Sequence[Row]) -> list[RankedRow]:
        """Rank those rows that can be ranked.

        Returns:
            The result of each row, in order. A row with a `problem` keeps it.

        Raises:
            WinnowError: As `Reranker.rank_many`.
        """
        found = iter(self.rank([row.request for row in rows if row.request is not None]))
        return [RankedRow(problem=row.problem) if row.request is None else next(found) for row in rows]

    def close(self) -> None:
        """Free the engine."""
        self._reranker.close()

    def _joined(self, documents: int, rankings: Iterator[Ranking]) -> RankedRow:
        """The ranking of a row, joined from those of its pieces: they are the next in `rankings`."""
        hits: list[tuple[int, RankedDocument]] = []
        costs = BulkCosts(rows=1)
        for begin in range(0, documents, _PIECE):
            ranking = next(rankings)
            hits += [(begin + hit.index, hit) for hit in sorted(ranking, key=attrgetter("index"))]
            stats = ranking.stats
            costs += BulkCosts(
                pairs=stats.documents,
                prompt_tokens=stats.prompt_tokens,
                cached_tokens=stats.cached_tokens,
                cache_hits=stats.cache_hits,
                truncated=stats.truncated,
                failed=stats.failed,
            )
        best = sorted(hits, key=lambda one: -one[1].logit)[: self._top_k]  # ties keep the input's order
        return RankedRow(
            ranking=[index for index, _ in best],
            scores=[finite(hit.score) for _, hit in best],
            failed={index: hit.error for index, hit in hits if hit.error is not None},
            costs=costs,
        )
