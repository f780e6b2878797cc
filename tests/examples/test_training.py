"""The training of the demo's rerankers, on tiny random models: what is learnt is what Winnow and PEFT load."""

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from demo_students import CrossEncoderStudent, LanguageModelStudent, Student  # noqa: E402
from tiny_families import FAMILIES  # noqa: E402
from train_demo_reranker import Training, quality, read_groups  # noqa: E402
from winnow import Reranker  # noqa: E402

QUERY, INSTRUCTION = "Which metal is liquid at room temperature?", "Find the passage that answers the question"


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Threads that wait for each other make tiny models slow where the machine is busy."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def students(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Callable[..., Student]]:
    """What makes each student, in float32."""
    encoder = FAMILIES["ms-marco-minilm-l6-v2"](tmp_path_factory.mktemp("models") / "ms-marco-minilm-l6-v2")
    return {
        "llm": partial(LanguageModelStudent, Path(tiny_model), torch.float32, first_layer=1),
        "cross-encoder": partial(CrossEncoderStudent, encoder, torch.float32),
    }


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory, passages: list[str]) -> list[Path]:
    """Two files of groups in which the relevant document is the one that begins with the query's word."""
    words, groups = ("metal", "river", "planet"), []
    for at in range(24):
        documents = [f"{word} {passages[(at + shift) % len(passages)][:40]}" for shift, word in enumerate(words)]
        word = words[at % 3]
        relevant = [document.startswith(word) for document in documents]
        group = {"query": word, "instruction": INSTRUCTION, "documents": documents, "relevant": relevant}
        groups.append(json.dumps(group | {"teacher": [4.0 if fact else -4.0 for fact in relevant]}) + "\n")
    files = [tmp_path_factory.mktemp("data") / name for name in ("groups.jsonl", "groups.mixed.jsonl")]
    for file, lines in zip(files, (groups, groups[6:]), strict=True):
        file.write_text("".join(lines), encoding="utf-8")
    return files


def changed(student: Student) -> Student:
    """A student whose LoRA does something; at first it is zero."""
    torch.manual_seed(1)
    with torch.no_grad():
        for weight in student.trained.values():
            weight.copy_((torch.randn_like(weight) * 0.1).bfloat16())
    return student


@pytest.mark.parametrize("for_gpu", [False, True])
@pytest.mark.parametrize("name", ["llm", "cross-encoder"])
def test_a_group_has_the_logits_of_its_pairs(
    name: str, for_gpu: bool, students: dict[str, Callable[..., Student]], passages: list[str]
) -> None:
    """The documents of a group go through the model together, and none of them sees another."""
    student = changed(students[name]())
    prompts = student.prompts(QUERY, [*passages[:5], passages[0][:20]], INSTRUCTION, 64)
    with torch.inference_mode():
        together = changed(students[name](for_gpu=for_gpu)).logits([prompts])[0]
        alone = torch.cat([student.logits([[prompt]])[0] for prompt in prompts])
    assert together.std() > 1e-3
    torch.testing.assert_close(together, alone, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", ["llm", "cross-encoder"])
def test_peft_and_winnow_score_as_the_student(
    name: str, students: dict[str, Callable[..., Student]], passages: list[str], tmp_path: Path
) -> None:
    """The adapter is one that PEFT loads; merged by PEFT it is a model that Winnow ranks with."""
    peft = pytest.importorskip("peft")
    student = changed(students[name]())
    student.save(tmp_path / "adapter")
    fresh = students[name]()
    fresh.load(tmp_path / "adapter")
    base = fresh.checkpoint.folder
    kind = peft.AutoPeftModelForCausalLM if name == "llm" else peft.AutoPeftModelForSequenceClassification
    config = peft.PeftConfig.from_pretrained(tmp_path / "adapter")
    config.base_model_name_or_path = str(base)
    config.save_pretrained(tmp_path / "adapter")
    merged = kind.from_pretrained(
        tmp_path / "adapter", dtype=torch.float32, **({} if name == "llm" else {"num_labels": 1})
    )
    folder = tmp_path / "qwen3-reranker-merged"
    merged.merge_and_unload().save_pretrained(folder)
    for file in base.glob("*token*"):
        (folder / file.name).write_bytes(file.read_bytes())
    with torch.inference_mode():
        expected = student.logits([student.prompts(QUERY, passages[:4], INSTRUCTION, None)])[0].sigmoid()
        reread = fresh.logits([fresh.prompts(QUERY, passages[:4], INSTRUCTION, None)])[0].sigmoid()
    torch.testing.assert_close(reread, expected)
    instruction = INSTRUCTION if name == "llm" else None
    with Reranker(str(folder), engine="transformers", instruction=instruction) as reranker:
        scores = torch.tensor(reranker.score(QUERY, passages[:4]))
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["llm", "cross-encoder"])
def test_it_learns_and_goes_on_where_it_was(
    name: str, students: dict[str, Callable[..., Student]], data: list[Path], tmp_path: Path
) -> None:
    def train(folder: str, pairs: int, stop: int | None = None) -> Student:
        torch.manual_seed(0)
        student = students[name]()
        training = Training(student, tmp_path / folder, data, pairs=pairs, batch=4, rate=5e-3, seed=0)
        for step in training.steps():
            if step["pairs"] == stop:
                break
        training.save()
        assert training.state.data == training.data[0 if stop else 1][0]
        return student

    before = quality(students[name](), read_groups(data[0]))
    through = train("through", 360)
    train("broken", 360, stop=180)
    resumed = train("broken", 360)
    for one, other in zip(through.trained.values(), resumed.trained.values(), strict=True):
        torch.testing.assert_close(one, other)
    after = quality(through, read_groups(data[0]))
    assert after["best"] > before["best"] + 0.2
    assert after["ndcg"] > before["ndcg"]
