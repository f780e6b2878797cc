"""LoRA adapters, made by peft: merged they score as peft's own merge does; what cannot be merged right is refused."""

import json
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

pytest.importorskip("peft")

import safetensors.torch
import torch
import transformers
from huggingface_hub import constants

import lora
from tiny_families import FAMILIES, judge, patch_config, save_model, sharded
from winnow import ModelRecipe, Reranker
from winnow.cli.doctor import examine
from winnow.convert import convert
from winnow.errors import ConfigurationError, EngineLoadError, ModelError
from winnow.models import Checkpoint, bind_template, open_checkpoint, with_merged_weights
from winnow.prompts import Limits, PromptBuilder, PromptLayout

TEXTS = ["me", "the tide falls twice a day", "bread rises because yeast makes gas"]
JUDGE = ModelRecipe(family="judge", labels=("Bad", "Good"))
TEMPLATE = "{{ query }} {{ document }} Good or Bad:"


def logits(model: Path, engine: str = "transformers", **settings: Any) -> list[float]:
    with Reranker(str(model), engine=engine, raw_scores=True, **settings) as reranker:
        return reranker.score("who?", TEXTS)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A causal reranker with two embeddings, in several files."""
    return sharded(tmp_path_factory.mktemp("models") / "qwen3-reranker-untied")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES["ms-marco-minilm-l6-v2"](tmp_path_factory.mktemp("models") / "ms-marco-minilm-l6-v2")


@pytest.fixture(scope="module")
def plain_adapter(tiny_model: str, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lora.train(tiny_model, tmp_path_factory.mktemp("adapters") / "mine", target_modules=["q_proj", "down_proj"])


@pytest.fixture
def adapter(plain_adapter: Path, tmp_path: Path) -> Path:
    """An adapter that may be changed."""
    return Path(shutil.copytree(plain_adapter, tmp_path / "mine"))


# --- the same scores as peft's ----------------------------------------------------------------------------------------

CASES: dict[str, dict[str, Any]] = {
    "plain": {"target_modules": ["q_proj", "v_proj"]},
    "all-linear": {"target_modules": "all-linear"},
    "rank-stabilised": {"target_modules": ["q_proj"], "use_rslora": True},
    "patterns": {
        "target_modules": ["q_proj", "v_proj", "up_proj"],
        "rank_pattern": {"layers.0.self_attn.q_proj": 2, r"layers\.\d+\.mlp.up_proj": 3},
        "alpha_pattern": {"v_proj": 32, "up": 64},
    },
    "bias": {"target_modules": ["q_proj"], "bias": "all"},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "output-embedding": {"target_modules": ["lm_head", "q_proj"]},
    "embedding-saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]},
    "output-embedding-saved": {"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]},
    "both-saved": {"target_modules": ["q_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("base", ["tied", "untied"])
def test_a_causal_adapter_scores_as_peft_merges_it(
    case: str, base: str, tiny_model: str, untied: Path, cache: Path, tmp_path: Path
) -> None:
    model = tiny_model if base == "tied" else untied
    folder = lora.train(model, tmp_path / "adapter", **CASES[case])
    expected = logits(lora.merged_by_peft(folder, model, tmp_path / "qwen3-reranker-merged"))
    found = logits(folder, cache_dir=cache)
    assert found == pytest.approx(expected, abs=1e-5)
    assert max(abs(a - b) for a, b in zip(found, logits(Path(model)), strict=True)) > 1e-2


@pytest.mark.parametrize("how", [{"target_modules": ["embed_tokens"]}, {"modules_to_save": ["embed_tokens"]}])
def test_embeddings_that_were_kept_tied_stay_tied(
    how: dict[str, Any], tiny_model: str, cache: Path, tmp_path: Path
) -> None:
    """The unmerged model is what this is compared with: peft 0.21 adds low-rank matrices to a tied weight twice."""
    settings = {"target_modules": ["q_proj"], "ensure_weight_tying": True, **how}
    folder = lora.train(tiny_model, tmp_path / "adapter", **settings)
    assert logits(folder, cache_dir=cache) == pytest.approx(unmerged_logits(folder, tiny_model), abs=1e-5)
    merged = merged_checkpoint(folder, cache)
    assert merged.config["tie_word_embeddings"] is True
    assert "lm_head.weight" not in names_in(merged.folder)


def test_a_larger_vocabulary_comes_with_the_tokenizer_in_the_adapters_folder(
    tiny_model: str, cache: Path, tmp_path: Path
) -> None:
    folder = lora.train(tiny_model, tmp_path / "adapter", tokens=2, target_modules=["q_proj"])
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(["<more>", "<most>"])
    tokenizer.save_pretrained(folder)
    whole = lora.merged_by_peft(folder, tiny_model, tmp_path / "qwen3-reranker-merged", tokens=2)
    tokenizer.save_pretrained(whole)
    assert logits(folder, cache_dir=cache) == pytest.approx(logits(whole), abs=1e-5)
    merged = merged_checkpoint(folder, cache)
    assert merged.config["vocab_size"] == len(tokenizer)
    assert merged.tokenizer.control_tokens["<most>"] == len(tokenizer) - 1
    assert merged.config["tie_word_embeddings"] is True  # both are saved, and are the same


def test_templates_in_the_adapters_folder_win(adapter: Path, cache: Path) -> None:
    (adapter / "score_template.jinja").write_text("<<{{ query }} {{ document }}>>")
    checkpoint = open_checkpoint(str(adapter), cache_dir=str(cache))
    assert checkpoint.template is not None
    assert "<<" in str(checkpoint.template.source)


def test_weights_that_are_transposed_in_the_base(cache: Path, tmp_path: Path) -> None:
    """GPT-2's linear layers have weights of the shape (in, out), square ones too, but for the output embedding."""
    base = judge(tmp_path / "gpt2")  # whose tokenizer it takes
    size = transformers.AutoConfig.from_pretrained(base).vocab_size
    config = transformers.GPT2Config(
        vocab_size=size, n_embd=64, n_layer=2, n_head=4, n_positions=512, bos_token_id=None, eos_token_id=None
    )
    save_model(transformers.GPT2LMHeadModel(config), base)
    targets = ["c_attn", "c_proj", "c_fc", "lm_head"]
    settings: dict[str, Any] = {"recipe": JUDGE, "template": TEMPLATE}
    for number, chosen in enumerate((targets[:3], targets)):
        folder = lora.train(base, tmp_path / f"adapter{number}", target_modules=chosen, fan_in_fan_out=True)
        expected = logits(lora.merged_by_peft(folder, base, tmp_path / f"merged{number}"), **settings)
        assert logits(folder, cache_dir=cache, **settings) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("has_head", [True, False], ids=["cross-encoder", "embedder"])
def test_a_cross_encoder_gets_the_head_of_its_adapter(
    has_head: bool, encoder: Path, cache: Path, tmp_path: Path
) -> None:
    """peft saves the head of a SEQ_CLS model with the adapter, whether the base has one or none."""
    base = encoder
    if not has_head:
        base = tmp_path / "minilm"
        transformers.AutoModel.from_pretrained(encoder).save_pretrained(base)
        lora.copy_small_files(encoder, base)
    folder = lora.train(base, tmp_path / "adapter", lora.CLASSIFIER, target_modules=["query", "value", "dense"])
    expected = logits(lora.merged_by_peft(folder, base, tmp_path / "merged", lora.CLASSIFIER))
    assert logits(folder, cache_dir=cache) == pytest.approx(expected, abs=1e-5)


def test_an_embedders_pooling_is_not_the_classifiers(encoder: Path, cache: Path, tmp_path: Path) -> None:
    """vLLM would take the mean of all tokens, as the embedder does, where the classifier takes the first token."""
    base = tmp_path / "minilm"
    transformers.AutoModel.from_pretrained(encoder).save_pretrained(base)
    lora.copy_small_files(encoder, base)
    (base / "1_Pooling").mkdir()
    (base / "1_Pooling" / "config.json").write_text(json.dumps({"pooling_mode_mean_tokens": True}))
    (base / "modules.json").write_text(
        json.dumps([{"type": "sentence_transformers.models.Pooling", "path": "1_Pooling"}])
    )
    (base / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 16}))
    folder = lora.train(base, tmp_path / "adapter", lora.CLASSIFIER, target_modules=["query"])
    merged = merged_checkpoint(folder, cache).folder
    assert not {"modules.json", "1_Pooling", "sentence_bert_config.json"} & {path.name for path in merged.iterdir()}


def test_a_causal_model_gets_a_score_head(tiny_model: str, cache: Path, tmp_path: Path) -> None:
    folder = lora.train(tiny_model, tmp_path / "adapter", lora.CLASSIFIER, target_modules=["q_proj"])
    whole = lora.merged_by_peft(folder, tiny_model, tmp_path / "qwen3-reranker-merged", lora.CLASSIFIER)
    assert logits(folder, cache_dir=cache) == pytest.approx(logits(whole), abs=1e-5)
    assert "lm_head.weight" not in names_in(merged_checkpoint(folder, cache).folder)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_the_sum_is_computed_in_float32_and_rounded_once(dtype: torch.dtype, cache: Path, tmp_path: Path) -> None:
    base = sharded(tmp_path / "qwen3-reranker-base", dtype=dtype)
    folder = lora.train(base, tmp_path / "adapter", target_modules=["q_proj"], lora_alpha=12)
    merged = tensors_in(merged_checkpoint(folder, cache).folder)
    before, change = tensors_in(base), safetensors.torch.load_file(folder / "adapter_model.safetensors")
    assert merged.keys() == before.keys()
    for name, weight in before.items():
        if name.endswith("q_proj.weight"):
            prefix = f"base_model.model.{name.removesuffix('.weight')}"
            a, b = (change[f"{prefix}.lora_{matrix}.weight"] for matrix in "AB")
            weight = (weight.float() + (b @ a) * 3.0).to(dtype)
        assert merged[name].dtype == dtype
        assert torch.equal(merged[name], weight), name


def test_shards_merge_as_one_file_does(untied: Path, cache: Path, tmp_path: Path) -> None:
    whole = tmp_path / "qwen3-reranker-whole"
    shutil.copytree(untied, whole, ignore=shutil.ignore_patterns("*.safetensors", "*.index.json"))
    safetensors.torch.save_file(tensors_in(untied), whole / "model.safetensors", metadata={"format": "pt"})
    folder = lora.train(whole, tmp_path / "adapter", target_modules="all-linear", modules_to_save=["lm_head"])
    one, several = (merged_checkpoint(folder, cache, base_model=str(base)).folder for base in (whole, untied))
    assert len(list(one.glob("*.safetensors"))) == 1
    assert len(list(several.glob("*.safetensors"))) == len(list(untied.glob("*.safetensors"))) > 1
    first, second = tensors_in(one), tensors_in(several)
    assert first.keys() == second.keys()
    assert all(torch.equal(first[name], second[name]) for name in first)


def unmerged_logits(adapter: Path, base: str) -> list[float]:
    """What the model gives that peft makes of a base and its adapter while it is trained."""
    checkpoint = open_checkpoint(base)
    segments = bind_template(checkpoint, None, None, with_instruction=False)
    builder = PromptBuilder(PromptLayout(checkpoint.tokenizer, segments, Limits(max_length=checkpoint.max_length)))
    no, yes = checkpoint.label_ids
    model = lora.unmerged(adapter, base)
    found = []
    for built in builder.build("who?", TEXTS, ""):
        with torch.no_grad():
            last = model(torch.tensor([built.prompts[0].ids])).logits[0, -1]
        found.append(float(last[yes] - last[no]))
    return found


def merged_checkpoint(folder: Path, cache: Path, **options: Any) -> Checkpoint:
    return with_merged_weights(open_checkpoint(str(folder), cache_dir=str(cache), **options))


def tensors_in(folder: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = {}
    for file in folder.glob("*.safetensors"):
        found |= safetensors.torch.load_file(file)
    return found


def names_in(folder: Path) -> set[str]:
    return set(tensors_in(folder))


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"peft_type": "IA3"}, r"its peft_type is 'IA3'.*merge_and_unload"),
        ({"peft_type": None}, r"its peft_type is None"),
        ({"task_type": "TOKEN_CLS"}, r"its task_type is 'TOKEN_CLS'"),
        ({"use_dora": True}, r"it uses DoRA \(use_dora\)\. Merge it with peft"),
        ({"layer_replication": [[0, 2]]}, r"replicated layers"),
        ({"trainable_token_indices": [1]}, r"trainable tokens"),
        ({"use_new_idea": True}, r"it uses 'use_new_idea', which Winnow does not know"),
        ({"init_lora_weights": "pissa_niter_4"}, r"other weights of the base \(init_lora_weights is 'pissa_niter_4'\)"),
        ({"bias": "some"}, r"its bias is 'some'"),
        ({"r": 8}, r"have the shapes \(4, .* but adapter_config.json says that their rank is 8"),
        ({"base_model_name_or_path": " "}, r"does not name its base. Give the base, base_model="),
        ({"base_model_name_or_path": "/nowhere/x"}, r"of '/nowhere/x', which is no folder on this machine"),
        ({"revision": "../x"}, r"revision must be a branch, tag or commit"),
        ({"rank_pattern": {"(": 4}}, r"rank_pattern: '\(' is no pattern of names"),
        ({"alpha_pattern": {r"(.*)(.*)(.*)(.*)(.*)(.*)(.*)(.*)\3\4\5[0-9]": 4}}, r"takes too long to match"),
    ],
)
def test_an_adapter_that_is_not_merged_is_refused(
    changes: dict[str, Any], message: str, adapter: Path, cache: Path
) -> None:
    lora.edit_config(adapter, changes)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(str(adapter), cache_dir=str(cache))


def test_a_name_that_may_be_a_folder_or_on_the_hub_is_refused(
    adapter: Path, tiny_model: str, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tiny_model, tmp_path / "org" / "qwen3-reranker")
    monkeypatch.chdir(tmp_path)
    lora.edit_config(adapter, {"base_model_name_or_path": "org/qwen3-reranker"})
    with pytest.raises(
        ModelError, match=r"a folder here and may be a name on the Hub, too. Say which, base_model="
    ) as e:
        open_checkpoint(str(adapter), cache_dir=str(cache))
    assert "'./org/qwen3-reranker'" in str(e.value)
    open_checkpoint(str(adapter), cache_dir=str(cache), base_model="./org/qwen3-reranker")


def test_a_base_that_nothing_can_be_added_to_is_refused(
    adapter: Path, plain_adapter: Path, tiny_model: str, cache: Path, tmp_path: Path
) -> None:
    quantised = patch_config(
        Path(shutil.copytree(tiny_model, tmp_path / "base")), quantization_config={"quant_method": "gptq"}
    )
    for base, message in ((quantised, r"is quantised \(gptq\)"), (plain_adapter, "is an adapter itself")):
        with pytest.raises(ModelError, match=message):
            open_checkpoint(str(adapter), cache_dir=str(cache), base_model=str(base))


def test_a_base_with_weights_of_another_type_is_refused(
    adapter: Path, tiny_model: str, cache: Path, tmp_path: Path
) -> None:
    base = Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker"))
    tensors = {name: weight.to(torch.float8_e4m3fn) for name, weight in tensors_in(base).items()}
    safetensors.torch.save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=r"proj.weight of its base .* has the type F8_E4M3"):
        merged_checkpoint(adapter, cache, base_model=str(base))


def test_an_adapter_of_another_base_is_refused(adapter: Path, encoder: Path, cache: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ModelError, match=r"changes 'model.layers.0.*', which .* does not have: the adapter was trained"
    ):
        merged_checkpoint(adapter, cache, base_model=str(encoder))
    wide = judge(tmp_path / "qwen3-reranker-wide", hidden_size=96)
    with pytest.raises(ModelError, match=r"proj.weight with the shape \(.*, but in .* it has the shape \("):
        merged_checkpoint(adapter, cache, base_model=str(wide), recipe=JUDGE)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("lora_magnitude_vector", "it holds 'base_model.model.model.layers.0.mlp.down_proj.lora_magnitude_vector'"),
        ("lora_A.weight", "holds half of the matrices"),
    ],
)
def test_tensors_that_are_not_plain_lora_are_refused(name: str, message: str, adapter: Path, cache: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    tensors = safetensors.torch.load_file(file)
    module = "base_model.model.model.layers.0.mlp.down_proj."
    if name == "lora_A.weight":
        del tensors[module + name]
    else:
        tensors[module + name] = torch.zeros(64)
    safetensors.torch.save_file(tensors, file)
    with pytest.raises(ModelError, match=message):
        open_checkpoint(str(adapter), cache_dir=str(cache))


def test_a_pickle_is_not_read(adapter: Path, cache: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    torch.save(safetensors.torch.load_file(file), adapter / "adapter_model.bin")
    file.unlink()
    with pytest.raises(ModelError, match=r"is a pickle, .* If you trust it: (safetensors.*)") as refused:
        open_checkpoint(str(adapter), cache_dir=str(cache))
    exec(str(refused.value).partition("If you trust it: ")[2])  # noqa: S102 - what the message says to do
    open_checkpoint(str(adapter), cache_dir=str(cache))


def test_half_a_file_is_refused(adapter: Path, cache: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-10])
    with pytest.raises(ModelError, match=r"adapter_model.safetensors of .* is damaged or cut short"):
        open_checkpoint(str(adapter), cache_dir=str(cache))


def test_what_is_not_finite_is_not_written(adapter: Path, cache: Path, tmp_path: Path) -> None:
    base = sharded(tmp_path / "qwen3-reranker-base", dtype=torch.float16)
    folder = lora.train(base, tmp_path / "adapter", target_modules=["q_proj"])
    lora.edit_config(folder, {"lora_alpha": 1e8})
    with pytest.raises(
        ModelError, match=r"q_proj.weight is not finite with what .* adds to it, in the base's type F16"
    ):
        merged_checkpoint(folder, tmp_path / "cache")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.suffix in (".part", ".safetensors")]


def test_links_out_of_the_adapters_folder_are_not_copied(adapter: Path, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("secret")
    (adapter / "chat_template.jinja").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"chat_template.jinja of .* is a link to"):
        open_checkpoint(str(adapter), cache_dir=str(cache))


def test_an_adapter_beside_a_whole_model_is_ambiguous(adapter: Path, tiny_model: str, cache: Path) -> None:
    lora.copy_small_files(tiny_model, adapter)
    open_checkpoint(str(adapter), cache_dir=str(cache))  # its config.json alone is no model
    shutil.copy(Path(tiny_model) / "model.safetensors", adapter)
    with pytest.raises(ModelError, match=r"holds an adapter .* and a whole model \(model.safetensors\)"):
        open_checkpoint(str(adapter), cache_dir=str(cache))


def test_a_base_model_for_a_whole_model_changes_nothing(tiny_model: str, caplog: pytest.LogCaptureFixture) -> None:
    assert open_checkpoint(tiny_model, base_model="Qwen/Qwen3-0.6B").adapter is None
    assert "base_model changes nothing" in caplog.text


# --- the cache --------------------------------------------------------------------------------------------------------


def test_the_place_tells_adapter_and_base(adapter: Path, tiny_model: str, cache: Path, tmp_path: Path) -> None:
    def place(folder: Path = adapter, base: str = tiny_model) -> Path:
        found = open_checkpoint(str(folder), cache_dir=str(cache), base_model=base).adapter
        assert found is not None
        return found.place

    before = place()
    assert place() == before
    other_base = Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-other"))
    assert place(base=str(other_base)) != before
    lora.edit_config(adapter, {"lora_alpha": 9})
    assert place() != before


def test_it_says_once_what_it_merged(
    adapter: Path, cache: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "winnow")
    first = merged_checkpoint(adapter, tmp_path / "cache").folder
    assert merged_checkpoint(adapter, tmp_path / "cache").folder == first
    assert [record.message.count("merged into") for record in caplog.records if "adapter" in record.message] == [1, 0]


WORKER = """
import sys
from winnow.models import open_checkpoint, with_merged_weights
print(with_merged_weights(open_checkpoint(sys.argv[1], cache_dir=sys.argv[2])).folder)
"""


@pytest.mark.slow
def test_two_processes_merge_once_after_one_was_killed(adapter: Path, tmp_path: Path) -> None:
    found = open_checkpoint(str(adapter), cache_dir=str(tmp_path / "cache")).adapter
    assert found is not None
    left = found.place.with_name(f".{found.place.name}.12345678.part")  # as a process leaves it that is killed
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    command = [sys.executable, "-c", WORKER, str(adapter), str(tmp_path / "cache")]
    workers = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert {worker.communicate()[0].strip() for worker in workers} == {str(found.place)}
    assert not list(found.place.parent.glob("*.part"))
    assert found.is_merged


def test_a_full_disk_is_an_error_before_anything_is_written(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    open_checkpoint(str(adapter), cache_dir=str(tmp_path / "cache"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    with pytest.raises(ConfigurationError, match=r"needs .* MB, and 0.0 MB are free there"):
        merged_checkpoint(adapter, tmp_path / "cache")
    assert not list((tmp_path / "cache").rglob("*.part"))


def test_a_folder_that_cannot_be_made_is_an_error(adapter: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match=r"cannot be written: .* cache_dir=... or HF_HOME"):
        open_checkpoint(str(adapter), cache_dir=str(tmp_path / "file"))


# --- all ways to use it -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["transformers", "vllm"])
def test_engines_score_an_adapter_alike(
    engine: str, plain_adapter: Path, tiny_model: str, cache: Path, needs_vllm: None
) -> None:
    merged = merged_checkpoint(plain_adapter, cache).folder
    options: dict[str, Any] = {"engine_kwargs": {"dtype": "float32"}}
    expected = logits(merged, **options)
    assert logits(plain_adapter, engine, cache_dir=cache, **options) == pytest.approx(expected, abs=1e-4)


def test_a_server_needs_the_small_files_alone(plain_adapter: Path, tmp_path: Path) -> None:
    with (
        Reranker(
            str(plain_adapter),
            engine="server",
            url="http://127.0.0.1:9",
            cache_dir=tmp_path,
            engine_kwargs={"max_retries": 0},
        ) as reranker,
        pytest.raises(EngineLoadError, match=r"started with: vllm serve .*mine-\w+ --served-model-name"),
    ):
        reranker.start()
    assert not list(tmp_path.rglob("*.safetensors"))


def test_the_environment_names_the_base(
    adapter: Path, tiny_model: str, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(adapter, cache_dir=cache)
    lora.edit_config(adapter, {"base_model_name_or_path": None})
    monkeypatch.setenv("WINNOW_BASE_MODEL", tiny_model)
    assert logits(adapter, cache_dir=cache) == pytest.approx(expected, abs=1e-6)


def test_cached_scores_are_of_adapter_and_base(adapter: Path, cache: Path, tmp_path: Path) -> None:
    def hits() -> int:
        with Reranker(
            str(adapter), engine="transformers", cache_dir=cache, score_cache=tmp_path / "scores"
        ) as reranker:
            return reranker.rank("who?", TEXTS).stats.cache_hits

    assert [hits(), hits()] == [0, len(TEXTS)]
    lora.edit_config(adapter, {"lora_alpha": 9})
    assert hits() == 0


def test_convert_writes_the_merged_model(
    plain_adapter: Path, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    done = convert(plain_adapter, tmp_path / "out", base_model=tiny_model, verify=True)
    assert done.difference is not None
    assert done.difference < 1e-4
    assert logits(tmp_path / "out") == pytest.approx(logits(plain_adapter), abs=1e-4)


def test_convert_writes_a_merged_cross_encoder_as_it_is(
    encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    folder = lora.train(encoder, tmp_path / "adapter", lora.CLASSIFIER, target_modules=["query"])
    assert convert(folder, tmp_path / "out", verify=True).difference == 0.0
    assert logits(tmp_path / "out") == logits(folder)


def test_doctor_shows_adapter_base_and_place(
    plain_adapter: Path, tiny_model: str, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    found = examine(str(plain_adapter))
    assert found.problems == []
    assert found.adapter is not None
    assert found.adapter["base"] == tiny_model
    assert found.adapter["merged"] is False
    assert not Path(found.adapter["folder"]).exists()
    assert found.serve is not None
    assert f"vllm serve {found.adapter['folder']} --served-model-name {plain_adapter}" in found.serve
    merged_checkpoint(plain_adapter, tmp_path / "home")
    again = examine(str(plain_adapter))
    assert again.adapter is not None
    assert again.adapter["merged"] is True
    [problem] = examine(str(plain_adapter), base_model=str(encoder)).problems
    assert "the adapter was trained on another base" in problem
