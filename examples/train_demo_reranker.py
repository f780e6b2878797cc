"""Train one of the demo's two rerankers: a LoRA adapter that makes a reranker of a small model.

    python examples/training_data.py                                   # writes the training data
    python examples/train_demo_reranker.py                             # SmolLM2, which answers yes or no
    python examples/train_demo_reranker.py --student cross-encoder     # all-MiniLM-L6-v2 with a score head

It learns from groups of a query and eight documents, scored by a teacher. Within a group it learns the teacher's order
(listwise distillation), and of each document whether it is relevant: a score of 0.5 means "more likely than not".

It takes an NVIDIA GPU if there is one: both were trained on one H100 in three minutes, at the same time. On two CPU
cores the language model learns from some 4 pairs of query and document per second, the cross encoder from some 40.
Interrupt it when you like: the same command goes on where it was.
"""

import dataclasses
import hashlib
import itertools
import json
import math
import random
import signal
import time
from collections.abc import Iterator, Sequence
from enum import StrEnum
from functools import lru_cache
from pathlib import Path
from threading import Event
from typing import Annotated

import torch
import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from torch.nn import functional
from transformers.utils import logging

import demo_model
from demo_students import CrossEncoderStudent, LanguageModelStudent, Student, write_whole
from winnow.prompts import Prompt

CACHE = demo_model.CACHE / "training"
DATA = [CACHE / "groups.jsonl", CACHE / "groups.mixed.jsonl"]  # short documents first, then also long ones
DOCUMENT_TOKENS = 288  # documents are cut to this
DROP_INSTRUCTION = 0.2  # how often the prompt has the template's own instruction instead
BATCH = 8  # groups of each step
WARM_UP = 0.02  # share of all pairs, the first ones, in which the learning rate rises
DECAY = 0.3  # share of all pairs, the last ones, in which it falls
CALIBRATION = 0.3  # weight of the loss that looks at each document alone
MARGINS = 0.1  # weight of the loss that looks at all differences between documents


class StudentName(StrEnum):
    """Which model is trained."""

    LLM = "llm"
    CROSS_ENCODER = "cross-encoder"


PAIRS = {StudentName.LLM: 25_120, StudentName.CROSS_ENCODER: 96_608}
RATE = {StudentName.LLM: 1e-3, StudentName.CROSS_ENCODER: 7e-4}
"""With these, and the data as it is by default, the adapters in `examples/models` were trained."""


@dataclasses.dataclass(frozen=True, slots=True)
class Group:
    """A query and documents of different relevance.

    Attributes:
        query: The query.
        instruction: What counts as relevant.
        documents: The documents.
        teacher: The teacher's logit of each.
        relevant: Whether each is relevant, where that is known.
    """

    query: str
    instruction: str | None
    documents: list[str]
    teacher: list[float]
    relevant: list[bool | None]


@dataclasses.dataclass(slots=True)
class State:
    """How far the training is.

    Attributes:
        pairs: Pairs of query and document that were learnt from.
        epoch: How often the data was begun, less one.
        place: Groups of this epoch that were used.
        data: Digest of the file that is learnt from. If it changes, a new epoch begins.
    """

    pairs: int = 0
    epoch: int = 0
    place: int = 0
    data: str = ""


def read_groups(file: Path) -> list[Group]:
    """The groups of a file that `training_data.py` wrote."""
    names = [field.name for field in dataclasses.fields(Group)]
    with file.open(encoding="utf-8") as lines:
        rows = map(json.loads, lines)
        return [Group(**{name: row[name] for name in names}) for row in rows]


def loss_of(logits: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """The loss of a group: how far the student's order is from the teacher's, and its scores from the teacher's.

    The first part is mostly about the best document. The variance is the mean square of how far the differences between
    documents are from the teacher's, which says of all others what is better than what.

    Args:
        logits: The student's, shape (documents,).
        teacher: The teacher's, of the same shape.
    """
    order = functional.kl_div(logits.log_softmax(0), teacher.softmax(0), reduction="sum")
    each = functional.binary_cross_entropy_with_logits(logits, teacher.sigmoid())
    margins = (logits - teacher.clamp(min=-4)).var()  # how bad a bad document is does not matter
    return order + CALIBRATION * each + MARGINS * margins


def quality(student: Student, groups: Sequence[Group]) -> dict[str, float]:
    """How the student ranks groups that it has not learnt from.

    Returns:
        Mean nDCG with the teacher's probabilities as gains, the share of groups whose best document is a relevant one,
        the share of judged documents whose score is on the right side of 0.5, and the share of pairs of documents that
        the student has in the teacher's order.
    """
    gains, best, right, agree = [], [], [], []
    with torch.inference_mode():
        for group in groups:
            prompts = student.prompts(group.query, group.documents, group.instruction, DOCUMENT_TOKENS)
            scores = student.logits([prompts])[0].tolist()
            by_score = sorted(range(len(scores)), key=lambda at: -scores[at])
            gain = torch.tensor(group.teacher).sigmoid()
            discount = 1 / torch.arange(2, len(scores) + 2).log2()
            ideal = (gain.sort(descending=True).values * discount).sum()
            gains.append(float((gain[by_score] * discount).sum() / ideal))
            agree += [
                scores[one] > scores[other]
                for one, other in itertools.permutations(range(len(scores)), 2)
                if group.teacher[one] > group.teacher[other] + 0.5
            ]
            best.append(group.relevant[by_score[0]] is not False)
            right += [
                (score > 0) is fact for score, fact in zip(scores, group.relevant, strict=True) if fact is not None
            ]
    return {"ndcg": _mean(gains), "best": _mean(best), "right": _mean(right), "agree": _mean(agree)}


class Training:
    """A training run in a folder, which has all that is needed to go on with it.

    Args:
        student: What is trained.
        folder: The run's folder: the adapter, state.pt, and log.jsonl.
        data: Files of training data. Each is learnt from for an equal share of the pairs, one after another.
        pairs: Pairs of query and document until the end.
        batch: Groups of each step.
        rate: The highest learning rate.
        seed: Seed of the order of the data and of the instructions left out.
    """

    def __init__(
        self, student: Student, folder: Path, data: Sequence[Path], *, pairs: int, batch: int, rate: float, seed: int
    ):
        self.student, self.folder, self.pairs, self.batch, self.rate = student, folder, pairs, batch, rate
        self.seed = seed
        self.data = [(hashlib.sha256(file.read_bytes()).hexdigest(), read_groups(file)) for file in data]
        self._order = lru_cache(1)(self._order_of)
        self.state = State(data=self.data[0][0])
        self.optimizer = torch.optim.AdamW(student.trained.values(), lr=rate, weight_decay=0.01)
        if (folder / "state.pt").is_file():
            self._load()

    def steps(self) -> Iterator[dict[str, float]]:
        """Learn until the end. Each step yields its loss."""
        while self.state.pairs < self.pairs:
            groups = list(self._next())
            for setting in self.optimizer.param_groups:
                setting["lr"] = self.rate * self._share_of_rate()
            device = self.student.model.device
            teachers = [torch.tensor(group.teacher, device=device) for group, _ in groups]
            logits = self.student.logits([prompts for _, prompts in groups])
            loss = torch.stack([loss_of(*both) for both in zip(logits, teachers, strict=True)]).mean()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(self.student.trained.values(), 1.0)
            self.optimizer.step()
            self.optimizer.zero_grad()
            self.state.pairs += sum(map(len, logits))
            yield {"pairs": self.state.pairs, "loss": loss.item()}

    def save(self) -> None:
        """Write the adapter, and the state from which `Training` goes on."""
        self.student.save(self.folder)
        content = {
            "state": dataclasses.asdict(self.state),
            "weights": self.student.trained,
            "optimizer": self.optimizer.state_dict(),
        }
        write_whole(self.folder / "state.pt", lambda file: torch.save(content, file))

    def _load(self) -> None:
        content = torch.load(self.folder / "state.pt", map_location=self.student.model.device, weights_only=True)
        self.state = State(**content["state"])
        self.optimizer.load_state_dict(content["optimizer"])
        with torch.no_grad():
            for name, weight in self.student.trained.items():
                weight.copy_(content["weights"][name])

    def _next(self) -> Iterator[tuple[Group, list[Prompt]]]:
        """The next groups, each with its prompts."""
        digest, groups = self.data[min(self.state.pairs * len(self.data) // self.pairs, len(self.data) - 1)]
        for _ in range(self.batch):
            if self.state.data != digest or self.state.place == len(groups):
                self.state.epoch, self.state.place, self.state.data = self.state.epoch + 1, 0, digest
            group = groups[self._order(self.state.epoch, len(groups))[self.state.place]]
            chance = self._random(self.state.epoch, self.state.place)
            instruction = None if chance.random() < DROP_INSTRUCTION else group.instruction
            yield group, self.student.prompts(group.query, group.documents, instruction, DOCUMENT_TOKENS)
            self.state.place += 1

    def _order_of(self, epoch: int, groups: int) -> list[int]:
        return self._random(epoch).sample(range(groups), groups)

    def _random(self, *place: int) -> random.Random:
        """Random numbers of a place in the data, the same in every run."""
        return random.Random(f"{self.seed}:{place}")  # noqa: S311 - no secret

    def _share_of_rate(self) -> float:
        """It rises at first, stays, and falls to nothing at the end."""
        done = self.state.pairs / self.pairs
        return min(1.0, max(done / WARM_UP, 0.01), max((1 - done) / DECAY, 0.01))


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / max(len(values), 1)


def main(
    student: Annotated[StudentName, typer.Option(help="Which model learns.")] = StudentName.LLM,
    data: Annotated[
        list[Path], typer.Option(help="Groups to learn from; of several files first from the first.")
    ] = DATA,
    dev: Annotated[Path | None, typer.Option(help="Groups to measure the quality on; none by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder, where the adapter goes.")] = None,
    pairs: Annotated[
        int | None, typer.Option(help="Pairs of query and document to learn from; by default as in examples/models.")
    ] = None,
    batch: Annotated[int, typer.Option(help="Groups of each step.")] = BATCH,
    rate: Annotated[float | None, typer.Option(help="Highest learning rate; by default as in examples/models.")] = None,
    seed: Annotated[int, typer.Option(help="Seed of everything that is random.")] = 0,
    save_minutes: Annotated[float, typer.Option(help="Minutes between saves.")] = 5,
    dev_groups: Annotated[int, typer.Option(help="How many groups of --dev are used.")] = 100,
    dev_minutes: Annotated[float, typer.Option(help="Minutes between measurements.")] = 20,
    threads: Annotated[int | None, typer.Option(help="Threads of PyTorch; by default a thread for each core.")] = None,
) -> None:
    """Train one of the demo's rerankers. Run it again to go on with an interrupted run."""
    if threads:
        torch.set_num_threads(threads)
    torch.manual_seed(seed)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    folder = out or CACHE / student.value
    pairs = pairs or PAIRS[student]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    learner: Student = (
        LanguageModelStudent(demo_model.language_model(), for_gpu=device.type == "cuda")
        if student is StudentName.LLM
        else CrossEncoderStudent(demo_model.encoder(), for_gpu=device.type == "cuda")
    )
    learner.to(device)
    folder.mkdir(parents=True, exist_ok=True)
    training = Training(learner, folder, data, pairs=pairs, batch=batch, rate=rate or RATE[student], seed=seed)
    held_out = read_groups(dev)[:dev_groups] if dev else []
    stop = Event()  # a step is not interrupted
    for name in (signal.SIGINT, signal.SIGTERM):
        signal.signal(name, lambda *_: stop.set())
    groups = sum(len(groups) for _, groups in training.data)
    print(f"{student} on {device}: {groups:,} groups; {training.state.pairs:,} pairs are done")
    columns = ("{task.description}", "loss {task.fields[loss]:.3f}", "{task.fields[speed]:.1f} pairs/s")
    with (
        Progress(*map(TextColumn, columns), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()) as progress,
        (folder / "log.jsonl").open("a", encoding="utf-8") as log,
    ):
        task = progress.add_task(student.value, total=pairs, completed=training.state.pairs, loss=math.nan, speed=0)
        saved = measured = begun = time.monotonic()
        first = training.state.pairs
        losses: list[float] = []
        for step in training.steps():
            losses = [*losses[-49:], step["loss"]]
            now = time.monotonic()
            speed = (training.state.pairs - first) / (now - begun)
            progress.update(task, completed=training.state.pairs, loss=_mean(losses), speed=speed)
            at_end = training.state.pairs >= pairs or stop.is_set()
            if at_end or now - saved > 60 * save_minutes:
                training.save()
                note: dict[str, float] = {"pairs": training.state.pairs, "loss": _mean(losses), "pairs/s": speed}
                if held_out and not stop.is_set() and (at_end or now - measured > 60 * dev_minutes):
                    note |= quality(learner, held_out)
                    measured = time.monotonic()
                log.write(json.dumps({name: round(value, 4) for name, value in note.items()}) + "\n")
                log.flush()
                saved = time.monotonic()
            if stop.is_set():
                break
    print(folder)


if __name__ == "__main__":
    typer.run(main)
