"""The LangChain cross encoder: pairs in, scores out, for code that needs a `BaseCrossEncoder`."""

import logging

from langchain_core.cross_encoders import BaseCrossEncoder

from winnow.types import finite
from winnow_langchain.settings import WinnowSettings

logger = logging.getLogger(__name__)


class WinnowCrossEncoder(WinnowSettings, BaseCrossEncoder):
    """Scores pairs of query and text with a reranker model on vLLM, for `CrossEncoderReranker` and its like.

    Where you may choose, take `WinnowRerank`: it is traced, natively async, and keeps the scores.
    A blank text scores 0.0 (with `raw_scores` the least float32), and so does one that `on_error="skip"` passed over.
    """

    def score(self, text_pairs: list[tuple[str, str]]) -> list[float]:
        """Score pairs, all in one pass over the GPU; the pairs of one query share its prefix.

        Args:
            text_pairs: Pairs of query and text.

        Returns:
            A finite score a pair, in order.

        Raises:
            ValueError: A pair is not two texts, or a query is blank.
            DocumentError: A text cannot be scored, and `on_error` is "raise".
            ConfigurationError: The model or the template cannot be used.
            EngineError: The engine failed.
            TimeoutError: The deadline passed.
        """
        positions: dict[str, list[int]] = {}
        for at, pair in enumerate(text_pairs):
            if isinstance(pair, str) or len(pair) != 2:
                raise ValueError(f"text_pairs[{at}] must be a query and a text, but is {pair!r}")
            positions.setdefault(pair[0], []).append(at)
        if not positions:
            return []
        rankings = self._reranker.rank_many(
            [(query, [text_pairs[at][1] for at in where], self.instruction) for query, where in positions.items()],
            deadline=self.deadline,
        )
        scores = [0.0] * len(text_pairs)
        for ranking, where in zip(rankings, positions.values(), strict=True):
            for hit in ranking:
                scores[where[hit.index]] = finite(hit.score)
        if failed := sum(ranking.stats.failed for ranking in rankings):
            logger.warning("%d of %d texts could not be scored.", failed, len(text_pairs))
        return scores
