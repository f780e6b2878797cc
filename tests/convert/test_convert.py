"""`winnow convert`: the checkpoint it writes scores as the original in everything that loads it."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from safetensors import safe_open
from sentence_transformers import CrossEncoder
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer
from typer.testing import CliRunner

from tiny_families import FAMILIES, patch_config, sharded
from tiny_model import build_tiny_reranker
from winnow import ModelRecipe, Reranker
from winnow.cli.main import app
from winnow.convert.conversion import convert
from winnow.errors import ModelError
from winnow.templates.score_template import built_in

QUERY = "what is the capital of China?"
DOCUMENTS = [
    "Beijing is the capital of China.",
    "x",
    "naïve café 日本語 🙂\n  end ",
    "The tide falls twice a day. " * 9,
]
INSTRUCTION = "Find what answers it"
JUDGE_TEMPLATE = "Question: {{ query }}\nAnswer: {{ document }}\nVerdict: "
TRICKY = """Say "yes" or {{ "\\\\no" }}:

{{ query | trim }}{% if instruction %} ({{ instruction }}){% endif %}
{{ document }}

"""
NEEDS_INSTRUCTION = "{{ instruction }}: {{ query }} {{ document }}"
JUDGE: dict[str, Any] = {"recipe": ModelRecipe(family="judge", labels=("Bad", "Good")), "template": JUDGE_TEMPLATE}


# Folder name, what writes the model into it, and the settings that it needs.
MODELS: dict[str, tuple[Callable[[Path], Path], dict[str, Any]]] = {
    "qwen3-reranker-tied": (build_tiny_reranker, {}),
    "qwen3-reranker-untied-sharded": (sharded, {}),
    "mxbai-rerank-base-v2": (FAMILIES["mxbai-rerank-base-v2"], {}),
    "bge-reranker-v2-gemma": (FAMILIES["bge-reranker-v2-gemma"], {}),
    "zerank-2": (FAMILIES["zerank-2"], {}),
    # Its tokenizer begins with BOS and marks the beginning of words.
    "ctxl-rerank-v2-6b": (FAMILIES["ctxl-rerank-v2-instruct-multilingual-6b"], {}),
    # Its tokenizer has no padding token; its template reads variables, not messages.
    "judge": (FAMILIES["judge"], JUDGE),
}


@pytest.fixture(scope="module", params=MODELS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, dict[str, Any]]:
    """A model, what it was converted to, in a folder whose name says nothing, and the original's settings."""
    build, settings = MODELS[request.param]
    folder = tmp_path_factory.mktemp("models") / request.param
    build(folder)
    out = tmp_path_factory.mktemp("converted") / "out"
    convert(folder, out, **settings)
    return folder, out, settings


@pytest.fixture(scope="module")
def qwen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build_tiny_reranker(tmp_path_factory.mktemp("models") / "qwen3-reranker-tiny")


def logits(model: Path, instruction: str | None = None, engine: str = "transformers", **settings: Any) -> list[float]:
    with Reranker(str(model), engine=engine, raw_scores=True, **settings) as reranker:
        return reranker.score(QUERY, DOCUMENTS, instruction=instruction)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    found = {}
    for file in folder.glob("*.safetensors"):
        with safe_open(file, framework="pt") as content:
            found.update({name: content.get_tensor(name) for name in content.keys()})  # noqa: SIM118
    return found


# --- it loads everywhere, and scores the same -------------------------------------------------------------------------


def test_winnow_scores_the_same_without_settings(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, settings = pair
    expected = logits(folder, **settings)
    assert max(expected) - min(expected) > 0.01  # the model tells the documents apart
    assert logits(out) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("side", ["left", "right"])
def test_transformers_scores_the_same_in_padded_batches(pair: tuple[Path, Path, dict[str, Any]], side: str) -> None:
    folder, out, settings = pair
    tokenizer = AutoTokenizer.from_pretrained(out)
    chats = [[{"role": "query", "content": QUERY}, {"role": "document", "content": text}] for text in DOCUMENTS]
    batch = tokenizer.apply_chat_template(
        chats,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        padding=True,
        tokenizer_kwargs={"padding_side": side},
    )
    model = AutoModelForSequenceClassification.from_pretrained(out, dtype=torch.float32).eval()
    assert model.config.num_labels == 1
    with torch.inference_mode():
        found = model(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"]).logits[:, 0].tolist()
    assert found == pytest.approx(logits(folder, **settings), abs=1e-4)


def test_sentence_transformers_prompts_and_scores_the_same(pair: tuple[Path, Path, dict[str, Any]]) -> None:
    folder, out, settings = pair
    model = CrossEncoder(str(out), device="cpu", local_files_only=True, activation_fn=torch.nn.Identity())
    pairs = [(QUERY, text) for text in DOCUMENTS]
    assert model.predict(pairs).tolist() == pytest.approx(logits(folder, **settings), abs=1e-4)
    if "qwen" in folder.name or "zerank" in folder.name:  # a prompt of sentence-transformers is the instruction
        found = model.predict(pairs, prompt=INSTRUCTION).tolist()
        assert found == pytest.approx(logits(folder, INSTRUCTION, **settings), abs=1e-4)
    assert isinstance(model.get_default_activation_fn(), torch.nn.Sigmoid)  # so that its scores are Winnow's


@pytest.mark.usefixtures("needs_vllm")
def test_vllm_scores_the_same_without_overrides(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_ENABLE_V1_MULTIPROCESSING", "0")  # a third of the start-up time less
    folder = sharded(tmp_path / "qwen3-reranker-untied")
    convert(folder, tmp_path / "out")
    with Reranker(str(tmp_path / "out"), engine="vllm", raw_scores=True) as reranker:
        found = reranker.score(QUERY, DOCUMENTS, instruction=INSTRUCTION)
    assert found == pytest.approx(logits(folder, INSTRUCTION), abs=1e-4)


def test_a_cross_encoder_over_a_causal_model(qwen: Path, tmp_path: Path) -> None:
    pairs = [(QUERY, text) for text in DOCUMENTS]
    template = built_in("qwen3_reranker").source
    saved = CrossEncoder(
        str(qwen),
        device="cpu",
        local_files_only=True,
        processor_kwargs={"chat_template": template},
        prompts={"own": INSTRUCTION},
        default_prompt_name="own",
    )
    saved.save_pretrained(str(tmp_path / "mine"))
    convert(tmp_path / "mine", tmp_path / "out")
    expected = saved.predict(pairs, activation_fn=torch.nn.Identity()).tolist()
    assert expected == pytest.approx(logits(qwen, INSTRUCTION), abs=1e-4)
    assert logits(tmp_path / "out") == pytest.approx(expected, abs=1e-4)
    found = CrossEncoder(str(tmp_path / "out"), device="cpu", local_files_only=True).predict(pairs)
    assert found.tolist() == pytest.approx(saved.predict(pairs, activation_fn=torch.nn.Sigmoid()).tolist(), abs=1e-4)


COMMITS = {"main": "5fa94080caafeaa45a15d11f969d7978e087a3db", "v1": "c5eb7cb6bd1a1a5e2a5d9a4e3c8d06b1a40f6fd1"}


@pytest.fixture(scope="module")
def hub(qwen: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The Hub's cache with one model in two revisions, `main` and the tag `v1`."""
    cache = tmp_path_factory.mktemp("hub")
    cached = cache / "models--Qwen--Qwen3-Reranker-Tiny"
    (cached / "refs").mkdir(parents=True)
    for name, commit in COMMITS.items():
        (cached / "refs" / name).write_text(commit)
    shutil.copytree(qwen, cached / "snapshots" / COMMITS["main"])
    build_tiny_reranker(cached / "snapshots" / COMMITS["v1"], seed=1)
    return cache


@pytest.mark.parametrize(
    ("options", "commit"),
    [
        ([], COMMITS["main"]),
        (["--revision", "v1", "--verify"], COMMITS["v1"]),
        (["--revision", COMMITS["v1"], "--labels", "no,yes"], COMMITS["v1"]),
    ],
    ids=["the-default", "a-tag", "a-commit"],
)
@pytest.mark.parametrize("variable", [False, True], ids=["cache-of-the-hub", "WINNOW_CACHE_DIR"])
def test_a_name_on_the_hub(
    options: list[str], commit: str, variable: bool, hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if variable:
        monkeypatch.setenv("WINNOW_CACHE_DIR", str(hub))
    else:
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(hub))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = "Qwen/Qwen3-Reranker-Tiny"
    done = CliRunner().invoke(app, ["convert", name, str(tmp_path / "out"), *options])
    assert done.exit_code == 0, done.output
    missing = CliRunner().invoke(app, ["convert", name, str(tmp_path / "missing"), "--revision", "v9"])
    monkeypatch.undo()
    assert missing.exit_code == 1
    assert "did not give its revision 'v9'" in missing.stderr
    assert not (tmp_path / "missing").exists()
    snapshots = hub / "models--Qwen--Qwen3-Reranker-Tiny" / "snapshots"
    scores = {each: logits(snapshots / each, recipe="qwen3-reranker") for each in COMMITS.values()}
    found = logits(tmp_path / "out")
    assert found == pytest.approx(scores.pop(commit), abs=1e-5)
    assert found != pytest.approx(scores.popitem()[1], abs=1e-2)


# --- what is written --------------------------------------------------------------------------------------------------


def test_shards_types_and_bytes_are_kept(tmp_path: Path) -> None:
    folder, out = sharded(tmp_path / "qwen3-reranker-bf16", dtype=torch.bfloat16), tmp_path / "out"
    convert(folder, out)
    before, after = tensors_of(folder), tensors_of(out)
    files = sorted(file.name for file in folder.glob("*.safetensors"))
    assert len(files) > 2
    assert sorted(file.name for file in out.glob("*.safetensors")) == files
    assert after.keys() == before.keys() - {"lm_head.weight"} | {"score.weight"}
    for name in after.keys() - {"score.weight"}:
        assert after[name].dtype == torch.bfloat16
        assert torch.equal(after[name], before[name]), name
    # float32: the difference of two rows in bfloat16 is not exact in bfloat16.
    no, yes = AutoTokenizer.from_pretrained(folder).convert_tokens_to_ids(["no", "yes"])
    rows = before["lm_head.weight"].float()
    assert torch.equal(after["score.weight"], (rows[yes] - rows[no])[None])
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == after.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in after.values())
    assert json.loads((out / "config.json").read_text())["dtype"] == "bfloat16"
    assert logits(out) == pytest.approx(logits(folder), abs=1e-4)  # both in float32


def test_the_folder_says_what_it_is(qwen: Path, tmp_path: Path) -> None:
    patch_config(qwen, auto_map={"AutoModelForCausalLM": "own.Model"}, score_template="qwen3_reranker")
    try:
        done = convert(qwen, tmp_path / "new" / "out")  # folders above are made
    finally:
        patch_config(qwen, auto_map=None, score_template=None)
    assert (done.folder, done.formula) == (tmp_path / "new" / "out", "logit['yes'] − logit['no']")
    config = json.loads((done.folder / "config.json").read_text())
    assert config["architectures"] == ["Qwen3ForSequenceClassification"]
    assert config["id2label"] == {"0": "LABEL_0"}
    assert config["winnow_family"] == "qwen3-reranker"
    assert config["pad_token_id"] == AutoTokenizer.from_pretrained(qwen).pad_token_id
    assert not config.keys() & {"auto_map", "score_template"}
    assert sorted(file.name for file in done.folder.iterdir()) == [
        "chat_template.jinja",
        "config.json",
        "model.safetensors",
        "score_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    assert (done.folder / "tokenizer.json").read_bytes() == (qwen / "tokenizer.json").read_bytes()


@pytest.mark.parametrize(
    "template",
    [
        "mxbai_rerank_v2",
        {
            "prefix": "<|im_start|>",
            "query_template": "Q: {query}\n",
            "document_template": "D: {document}",
            "suffix": "\n",
        },
        TRICKY,
        "{{ instruction }}: {{ query }} {{ document }}",
    ],
)
def test_any_template_is_saved_as_it_renders(template: Any, qwen: Path, tmp_path: Path) -> None:
    convert(qwen, tmp_path / "out", template=template)
    model = CrossEncoder(str(tmp_path / "out"), device="cpu", local_files_only=True, activation_fn=torch.nn.Identity())
    for instruction in (
        (INSTRUCTION,) if template == "{{ instruction }}: {{ query }} {{ document }}" else (None, INSTRUCTION)
    ):
        expected = logits(qwen, instruction, template=template)
        assert logits(tmp_path / "out", instruction) == pytest.approx(expected, abs=1e-5)
        found = model.predict([(QUERY, text) for text in DOCUMENTS], prompt=instruction).tolist()
        assert found == pytest.approx(expected, abs=1e-4)
    # Multimodal models get contents as lists of parts.
    parts = [{"role": "system", "content": [{"type": "text", "text": INSTRUCTION}]}]
    parts += [{"role": role, "content": [{"type": "text", "text": role}]} for role in ("query", "document")]
    flat = [{"role": part["role"], "content": part["content"][0]["text"]} for part in parts]
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    render = [tokenizer.apply_chat_template(messages, tokenize=False) for messages in (parts, flat)]
    assert render[0] == render[1]


def test_a_fine_tune_without_a_name_needs_labels_and_a_template(tmp_path: Path) -> None:
    folder = FAMILIES["judge"](tmp_path / "mine")
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": None}))
    convert(folder, tmp_path / "out", labels=["Good"], method="no_post_processing", template=JUDGE_TEMPLATE)
    recipe = ModelRecipe(family="judge", labels=("Good",))
    assert logits(tmp_path / "out") == pytest.approx(logits(folder, recipe=recipe, template=JUDGE_TEMPLATE), abs=1e-5)
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert tokenizer.pad_token_id == config["pad_token_id"] is not None


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.slow  # converts 180 MB in a process of its own
def test_memory_does_not_grow_with_the_model(qwen: Path, tmp_path: Path) -> None:
    script = """
import re, sys
from pathlib import Path
from tiny_model import build_tiny_reranker
from winnow.convert import convert
from winnow.errors import ModelError
from winnow.templates import built_in

def peak():  # of this process; ru_maxrss would count the one that forked it
    return int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1])

small, large, out = map(Path, sys.argv[1:])
convert(small, out / "small")
before = peak()
size = convert(large, out / "large").bytes
print(size >> 20, (peak() - before) >> 10)
"""
    large = tmp_path / "qwen3-reranker-large"
    config = AutoConfig.from_pretrained(qwen, intermediate_size=250_000, dtype="bfloat16")
    with torch.device("meta"):
        empty = AutoModelForCausalLM.from_config(config).to_empty(device="cpu")
    for parameter in empty.parameters():
        parameter.data.zero_()
    empty.save_pretrained(large)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (large / name).write_bytes((qwen / name).read_bytes())
    done = subprocess.run(
        [sys.executable, "-c", script, qwen, large, tmp_path / "out"],
        capture_output=True, text=True, cwd=Path(__file__).parents[2] / "examples", check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    size, growth = map(int, done.stdout.split())  # MiB
    assert size > 180
    assert growth < 80


def test_the_command_line(qwen: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    done = CliRunner().invoke(app, ["convert", str(qwen), str(out), "--verify"])
    assert done.exit_code == 0, done.output
    assert f"{out}: score head with logit['yes'] − logit['no'], 0.6 MB" in done.stdout
    assert float(done.stdout.split("float32:")[1]) < 1e-5
    again = CliRunner().invoke(app, ["convert", str(qwen), str(out)])
    assert again.exit_code == 1
    assert again.stderr == f"winnow: {out} already exists. Remove it, or name another folder.\n"
    one = ["convert", str(qwen), str(tmp_path / "one"), "--labels", "yes", "--method", "no_post_processing"]
    assert "score head with logit['yes'], " in CliRunner().invoke(app, one).stdout


# --- its tokenizer ----------------------------------------------------------------------------------------------------


def other_words(folder: Path) -> Path:
    """The model with a tokenizer.json that takes a blank to be a word's end, not its beginning as Qwen's class has
    it."""
    path = folder / "tokenizer.json"
    state = json.loads(path.read_text(encoding="utf-8"))
    state["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\S+\s?|\s+"
    path.write_text(json.dumps(state), encoding="utf-8")
    return folder


def test_transformers_gets_the_tokenizer_of_the_file(tmp_path: Path) -> None:
    folder = other_words(FAMILIES["zerank-2"](tmp_path / "zerank-2"))
    text = "where is the capital, and why?"
    own = Tokenizer.from_file(str(folder / "tokenizer.json")).encode(text).ids
    assert AutoTokenizer.from_pretrained(folder)(text)["input_ids"] != own
    convert(folder, tmp_path / "out", verify=True)
    assert AutoTokenizer.from_pretrained(tmp_path / "out")(text)["input_ids"] == own
    assert logits(tmp_path / "out") == pytest.approx(logits(folder), abs=1e-5)


def test_a_tokenizer_that_transformers_would_replace_is_refused(tmp_path: Path) -> None:
    """Models of type qwen2 get `Qwen2Tokenizer`, whatever tokenizer_config.json says."""
    folder = other_words(FAMILIES["mxbai-rerank-base-v2"](tmp_path / "mxbai-rerank-base-v2"))
    with pytest.raises(ModelError, match=r"transformers does not take the tokenizer.json of .* as it is"):
        convert(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_score_template_in_tokenizer_config_is_converted(qwen: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(qwen, tmp_path / qwen.name)
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    settings["score_template"] = "{{ query }} is in {{ document }}"
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert(folder, tmp_path / "out")
    assert " is in " in (tmp_path / "out" / "score_template.jinja").read_text()
    assert "score_template" not in json.loads((tmp_path / "out" / "tokenizer_config.json").read_text())
    assert logits(tmp_path / "out") == pytest.approx(logits(folder), abs=1e-5)
