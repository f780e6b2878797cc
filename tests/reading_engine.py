"""An engine that keeps what it was asked, for tests of what stands in a prompt."""

from collections.abc import Sequence

from winnow import EngineScore, FakeEngine, Prompt


class ReadingEngine(FakeEngine):
    """A fake that keeps the texts of its prompts, and their priorities.

    Attributes:
        read: The texts.
        priorities: The priority of each call of `score`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.read: list[str] = []
        self.priorities: list[int] = []

    async def score(self, prompts: Sequence[Prompt], *, priority: int = 0) -> list[EngineScore]:
        self.read += [self.checkpoint.tokenizer.decode(prompt.ids) for prompt in prompts]
        self.priorities.append(priority)
        return await super().score(prompts, priority=priority)
