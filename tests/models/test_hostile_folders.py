"""Model folders that somebody else wrote: the names, links and types in them do no harm, and their error is ours."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from model_folders import model_folder
from tiny_families import FAMILIES, sharded
from winnow import Reranker
from winnow.cli.doctor import examine
from winnow.convert.conversion import convert
from winnow.errors import ConfigurationError, ModelError, WinnowError
from winnow.models import refuse_links_out
from winnow.models.adapters import adapter as adapter_module
from winnow.models.adapters import find_adapter
from winnow.models.checkpoint import open_checkpoint
from winnow.models.folder import read_modules
from winnow.models.weight_files import INDEX

COMMIT = "c" * 40


@pytest.fixture(scope="module")
def several_files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return sharded(tmp_path_factory.mktemp("models") / "qwen3-reranker-sharded")


@pytest.fixture
def indexed(several_files: Path, tmp_path: Path) -> Path:
    """A reranker with its weights in several files, to be changed."""
    return Path(shutil.copytree(several_files, tmp_path / several_files.name))


@pytest.fixture
def folder(tiny_model: str, tmp_path: Path) -> Path:
    """A reranker with its weights in one file, to be changed."""
    return Path(shutil.copytree(tiny_model, tmp_path / "qwen3-reranker-tiny"))


def edit(path: Path, **changes: Any) -> None:
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps(content | changes))


def start(folder: Path, engine: str) -> None:
    url = "http://127.0.0.1:9" if engine == "server" else None
    with Reranker(str(folder), engine=engine, url=url).start():
        pass


def check_all_refuse(folder: Path, message: str, engines: tuple[str, ...] = ("transformers", "server")) -> None:
    """Every way to use a model says the same of it, and `winnow convert` writes nothing."""
    for engine in engines:
        with pytest.raises(ModelError, match=message):
            start(folder, engine)
    with pytest.raises(ModelError, match=message):
        raise ModelError("\n".join(examine(str(folder)).problems))
    out = folder.parent / "out"
    with pytest.raises(ModelError, match=message):
        convert(folder, out)
    assert not list(folder.parent.glob("*out*"))


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    [
        "{victim}",
        "../victim/model.safetensors",
        "a/model.safetensors",
        "..",
        ".",
        "",
        "a\\b.safetensors",
        "\0",
        "x" * 300,
    ],
)
def test_an_index_names_files_of_its_folder_alone(name: str, indexed: Path, tmp_path: Path) -> None:
    victim = tmp_path / "victim" / "model.safetensors"
    victim.parent.mkdir()
    shutil.copy(max(indexed.glob("*.safetensors")), victim)
    before = victim.read_bytes()
    index = json.loads((indexed / INDEX).read_text())
    file = max(index["weight_map"].values())
    named = {tensor: name.format(victim=victim) if one == file else one for tensor, one in index["weight_map"].items()}
    edit(indexed / INDEX, weight_map=named)
    check_all_refuse(indexed, rf"(?s){INDEX} of .*weight_map names .*, which is no file inside the model's folder")
    assert victim.read_bytes() == before


def test_vllm_is_not_started_on_such_an_index(needs_vllm: None, indexed: Path) -> None:
    edit(indexed / INDEX, weight_map={"model.norm.weight": "../victim.safetensors"})
    with pytest.raises(ModelError, match=r"weight_map names '\.\./victim.safetensors', which is no file inside"):
        start(indexed, "vllm")


def test_an_index_of_pickles_likewise(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    edit(folder / "pytorch_model.bin.index.json", weight_map={"model.norm.weight": "/etc/passwd"})
    (folder / "pytorch_model-00001-of-00001.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model.bin.index.json of .*: weight_map names '/etc/passwd'"):
        start(folder, "transformers")


def test_a_file_of_weights_is_no_other_file(indexed: Path) -> None:
    edit(indexed / INDEX, weight_map={"model.norm.weight": "tokenizer.json"})
    check_all_refuse(indexed, r"names 'tokenizer.json', which is no safetensors file")


@pytest.mark.parametrize("value", [[], ["model.safetensors"], 5, "x", None, {}, {"a": 5}, {"a": ["b"]}, {"a": None}])
def test_an_index_of_another_shape(value: Any, indexed: Path) -> None:
    edit(indexed / INDEX, weight_map=value)
    check_all_refuse(indexed, rf"{INDEX} of .*weight_map")


def test_a_module_is_a_folder_of_the_model(folder: Path, tmp_path: Path) -> None:
    score = {"type": "sentence_transformers.cross_encoder.modules.LogitScore", "path": "../other"}
    (tmp_path / "other").mkdir()
    edit(tmp_path / "other" / "config.json", true_token_id=1)
    (folder / "modules.json").write_text(json.dumps([score]))
    check_all_refuse(folder, r"modules.json of .*: path names '\.\./other', which is no file inside the model's folder")


@pytest.mark.parametrize("path", ["1_LogitScore", "1_LogitScore/", "./1_LogitScore", ".//1_LogitScore/."])
def test_a_module_may_be_named_in_any_way_that_stays_inside(path: str, folder: Path) -> None:
    """sentence-transformers joins the texts: what leads to the module's folder is fine."""
    (folder / "1_LogitScore").mkdir()
    edit(folder / "1_LogitScore" / "config.json", true_token_id=1)
    score = {"type": "sentence_transformers.cross_encoder.modules.LogitScore", "path": path}
    (folder / "modules.json").write_text(json.dumps([score]))
    assert [module["path"] for module in read_modules(folder, "m")] == ["1_LogitScore"]


@pytest.mark.parametrize("path", ["/1_LogitScore", "a/../1_LogitScore", "..", "./..", "a\\b", "a\n"])
def test_a_module_outside_is_refused(path: str, folder: Path) -> None:
    (folder / "modules.json").write_text(json.dumps([{"type": "x", "path": path}]))
    with pytest.raises(ModelError, match=r"which is no file inside the model's folder"):
        read_modules(folder, "m")


@pytest.mark.parametrize(
    ("file", "field", "value"),
    [
        ("config.json", "configuration_files", ["config.4.0.0.json"]),
        ("config.json", "transformers_weights", "other.safetensors"),
        ("config.json", "speculators_config", {"verifier": {"name_or_path": "/home/other/model"}}),
        ("tokenizer_config.json", "fast_tokenizer_files", ["../../other/tokenizer.4.0.0.json"]),
        ("tokenizer_config.json", "gguf_file", "/home/other/model.gguf"),
    ],
)
def test_no_engine_is_sent_to_other_files(file: str, field: str, value: Any, folder: Path) -> None:
    edit(folder / file, **{field: value})
    check_all_refuse(folder, rf"{file} of .*: {field} must be left out, since ")


def test_a_score_template_is_a_file_of_the_folder(tiny_model: str, tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("{{ query }}{{ document }}")
    folder = model_folder(tmp_path / "qwen3-reranker", tiny_model, config={"score_template": "../secret"})
    with pytest.raises(WinnowError, match=r"is '\.\./secret', which is neither a file in that folder"):
        open_checkpoint(folder)


@pytest.mark.parametrize("base", ["../other", "/etc", "\x1b[31m", 5, ["x"], None])
def test_the_base_of_an_adapter_is_a_model_and_nothing_else(base: Any, folder: Path) -> None:
    """A folder of the owner's may be named in a folder; it is read as models are, and holds one or is refused."""
    (folder / "model.safetensors").rename(folder / "adapter_model.safetensors")
    names = {f"base_model.model.{name}": one for name, one in tensors_in(folder / "adapter_model.safetensors").items()}
    safetensors.torch.save_file(names, folder / "adapter_model.safetensors")
    edit(folder / "adapter_config.json", base_model_name_or_path=base, peft_type="LORA")
    message = (
        r"adapter_config.json of .*: base_model_name_or_path must be a text|Give the base, base_model=|"
        r"/etc has no config.json|is neither a folder nor a name on the Hugging Face Hub"
    )
    check_all_refuse(folder, message)


def test_an_adapter_from_a_hub_names_no_folder(
    tiny_model: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    names = {"base_model.model.lm_head.weight": torch.zeros(2, 2)}
    safetensors.torch.save_file(names, adapter / "adapter_model.safetensors")
    edit(adapter / "adapter_config.json", base_model_name_or_path=tiny_model, peft_type="LORA")
    monkeypatch.setattr(adapter_module, "download", lambda *_, **__: adapter)
    with pytest.raises(ModelError, match=r"a folder, which an adapter from a hub may not name"):
        find_adapter(adapter, "org/adapter")


def tensors_in(file: Path) -> dict[str, torch.Tensor]:
    found: dict[str, torch.Tensor] = safetensors.torch.load_file(file)
    return found


# --- links ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LICENSE", "tokenizer.json", "tokenizer_config.json", "model.safetensors"])
def test_what_a_link_leads_to_outside_is_not_copied(name: str, folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "elsewhere" / name
    outside.parent.mkdir()
    if (folder / name).exists():
        shutil.move(folder / name, outside)
    else:
        outside.write_text("secret")
    (folder / name).symlink_to(outside)
    with pytest.raises(ModelError, match=rf"{name} of .* is a link to {outside}, outside the model's folder"):
        convert(folder, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


def test_links_that_stay_inside_are_copied_as_files(folder: Path, tmp_path: Path) -> None:
    (folder / "data").mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        shutil.move(folder / name, folder / "data" / name)
        (folder / name).symlink_to(Path("data") / name)
    (folder / "LICENSE").symlink_to("LICENSE")  # to itself: no file
    convert(folder, tmp_path / "out")
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())


def test_blobs_on_another_disk_are_copied(tiny_model: str, tmp_path: Path) -> None:
    """The owner of a cache may have moved its blobs, and left a link to them."""
    repository, disk = tmp_path / "hub" / "models--Qwen--Qwen3-Reranker-Tiny", tmp_path / "disk"
    snapshot = repository / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    shutil.copytree(tiny_model, disk)
    (repository / "blobs").symlink_to(disk)
    for file in disk.iterdir():
        (snapshot / file.name).symlink_to(Path("../../blobs") / file.name)
    refuse_links_out(snapshot, "m")
    (tmp_path / "secret").write_text("secret")
    (snapshot / "LICENSE").symlink_to(tmp_path / "secret")
    with pytest.raises(ModelError, match=r"LICENSE of m is a link to"):
        refuse_links_out(snapshot, "m")


@pytest.mark.parametrize("shared", [False, True], ids=["blobs-of-the-repository", "blobs-of-the-whole-cache"])
def test_the_cache_of_the_hub_is_one_place(shared: bool, tiny_model: str, tmp_path: Path) -> None:
    """Files of a snapshot are links to blobs; from huggingface_hub 2 on those may be links once more."""
    repository = tmp_path / "hub" / "models--Qwen--Qwen3-Reranker-Tiny"
    snapshot = repository / "snapshots" / COMMIT
    store = tmp_path / "hub" / "blobs" / "ab"
    for made in (repository / "blobs", snapshot, store):
        made.mkdir(parents=True)
    for number, file in enumerate(sorted(Path(tiny_model).iterdir())):
        blob = repository / "blobs" / str(number)
        shutil.copy(file, store / str(number) if shared else blob)
        if shared:
            blob.symlink_to(Path("../../blobs/ab") / str(number))
        (snapshot / file.name).symlink_to(Path("../../blobs") / str(number))
    (snapshot / "score_template.jinja").symlink_to("../../blobs/template")
    (repository / "blobs" / "template").write_text("{{ query }} {{ document }} <|im_end|>\n")
    convert(snapshot, tmp_path / "out", recipe="qwen3-reranker")
    assert not any(file.is_symlink() for file in (tmp_path / "out").iterdir())
    texts = ["me", "the tide falls"]
    with Reranker(str(snapshot), engine="transformers", recipe="qwen3-reranker") as reranker:
        expected = reranker.score("who?", texts)
    with Reranker(str(tmp_path / "out"), engine="transformers") as reranker:
        assert reranker.score("who?", texts) == pytest.approx(expected, abs=1e-5)

    (tmp_path / "secret").write_text("secret")
    (snapshot / "LICENSE").symlink_to("../../../../secret")
    with pytest.raises(ModelError, match=r"LICENSE of .* is a link to"):
        convert(snapshot, tmp_path / "again", recipe="qwen3-reranker")


def test_links_of_the_owner_are_read(folder: Path, tmp_path: Path) -> None:
    """A folder of links to files elsewhere is the work of who owns the machine: engines read it, and so does Winnow."""
    linked = tmp_path / "linked" / folder.name
    linked.mkdir(parents=True)
    for file in folder.iterdir():
        (linked / file.name).symlink_to(file)
    assert examine(str(linked)).verdict == "ready"
    with Reranker(str(folder), engine="transformers") as reranker:
        expected = reranker.score("who?", ["me"])
    with Reranker(str(linked), engine="transformers") as reranker:
        assert reranker.score("who?", ["me"]) == pytest.approx(expected)


# --- types ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("architectures", [5]),
        ("architectures", "Qwen3ForCausalLM"),
        ("architectures", {"a": 1}),
        ("quantization_config", "x"),
        ("quantization_config", ["x"]),
        ("id2label", ["LABEL_0"]),
        ("id2label", {"0": ["x"]}),
        ("id2label", {"zero": "LABEL_0"}),
        ("num_labels", "1"),
        ("num_labels", 10**12),  # transformers would make a text of each
        ("num_hidden_layers", 10**12),
        ("model_type", 5),
        ("model_type", ["qwen3"]),
        ("text_config", "x"),
        ("vision_config", []),
        ("vocab_size", "1000"),
        ("vocab_size", True),
        ("max_position_embeddings", "long"),
        ("max_position_embeddings", -1),
        ("pad_token_id", [0]),
        ("tie_word_embeddings", "false"),
        ("is_encoder_decoder", "no"),
        ("temperature", "hot"),
        ("temperature", float("nan")),
        ("temperature", 10**400),  # no float is so large
        ("auto_map", ["AutoConfig"]),
        ("winnow_family", {}),
        ("_name_or_path", 5),
    ],
)
def test_a_field_of_config_json_with_another_type(field: str, value: Any, folder: Path) -> None:
    edit(folder / "config.json", **{field: value})
    check_all_refuse(folder, rf"config.json of .*: {field} must be ")


def test_a_field_of_the_text_model_likewise(folder: Path) -> None:
    edit(folder / "config.json", text_config={"vocab_size": "1000"})
    check_all_refuse(
        folder, r"config.json of .*: text_config: vocab_size must be a whole number above 0, but is '1000'"
    )


def test_a_field_of_hf_overrides_likewise(tiny_model: str) -> None:
    with pytest.raises(ModelError, match=r"with hf_overrides in it: architectures must be a list of texts, but is 5"):
        open_checkpoint(tiny_model, hf_overrides={"architectures": 5})


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("tokenizer_config.json", {"chat_template": 5}, "chat_template must be a text, or a list of objects, but is 5"),
        ("tokenizer_config.json", {"chat_template": ["x"]}, "chat_template must be a text, or a list"),
        ("tokenizer_config.json", {"model_max_length": "long"}, "model_max_length must be a number, but is 'long'"),
        ("tokenizer_config.json", {"model_input_names": True}, "model_input_names must be a list of texts"),
        ("tokenizer_config.json", {"pad_token": 5}, "pad_token must be a text or an object"),
        ("modules.json", {"type": "x"}, "should hold a list of JSON objects"),
        ("modules.json", ["x"], "should hold a list of JSON objects"),
        ("modules.json", [{"type": 5}], "type must be a text, but is 5"),
        ("modules.json", [{"path": ["x"]}], "path must be a text"),
        (
            "config_sentence_transformers.json",
            {"model_type": "CrossEncoder", "prompts": ["x"]},
            "prompts must be an obj",
        ),
        ("sentence_bert_config.json", {"modality_config": "message"}, "modality_config must be an object"),
        ("sentence_bert_config.json", {"processing_kwargs": {"chat_template": "x"}}, "chat_template must be an object"),
        ("adapter_config.json", ["x"], "should hold a JSON object"),
        ("adapter_config.json", {"task_type": ["x"]}, "task_type must be a text"),
        ("config.json", ["x"], "should hold a JSON object"),
    ],
)
def test_other_files_of_another_shape(file: str, content: Any, message: str, folder: Path) -> None:
    if not (folder / "config_sentence_transformers.json").is_file():
        edit(folder / "config_sentence_transformers.json", model_type="CrossEncoder")
    (folder / file).write_text(json.dumps(content))
    check_all_refuse(folder, rf"(?s){file}.*{message}")


@pytest.mark.parametrize(
    "text",
    ["[" * 100_000, '{"a":' * 200 + "1" + "}" * 200, "9" * 10_000, '{"a": '],
    ids=["endless", "deep", "long", "cut"],
)
def test_what_is_no_json_that_can_be_read(text: str, folder: Path) -> None:
    for name in ("config.json", INDEX, "tokenizer_config.json", "modules.json", "adapter_config.json"):
        before = (folder / name).read_text() if (folder / name).is_file() else None
        (folder / name).write_text(text, encoding="utf-8")
        with pytest.raises(ModelError, match=rf"{name} of .* is damaged"):
            start(folder, "transformers")
        (folder / name).unlink() if before is None else (folder / name).write_text(before)


def test_a_file_that_is_none_is_not_waited_for(folder: Path) -> None:
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    check_all_refuse(folder, "has no config.json")


def test_names_of_inputs_that_are_null_are_those_of_the_class(tmp_path: Path) -> None:
    folder = FAMILIES["ms-marco-minilm-l6-v2"](tmp_path / "model")
    edit(folder / "tokenizer_config.json", model_input_names=None)
    assert open_checkpoint(str(folder)).tokenizer.token_types


def test_half_a_character_is_not_written(folder: Path, tmp_path: Path) -> None:
    edit(folder / "tokenizer_config.json", note="\ud800")
    with pytest.raises(ConfigurationError, match=r"out cannot be written: 'utf-8' codec can't encode character"):
        convert(folder, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


# --- weights ----------------------------------------------------------------------------------------------------------


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    weights = safetensors.torch.load_file(folder / "model.safetensors")
    change(weights)
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize("shape", [(), (5,), (64, 1)])
def test_a_tensor_of_another_shape_is_refused_before_anything_is_written(
    shape: tuple[int, ...], folder: Path, tmp_path: Path
) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.layers.1.mlp.up_proj.weight": torch.zeros(shape)}))
    message = (
        r"config.json of .* gives model.layers.1.mlp.up_proj.weight the shape \(128, 64\), but in model.safetensors"
    )
    with pytest.raises(ModelError, match=message):
        convert(folder, tmp_path / "out")
    assert not list(tmp_path.glob("*out*"))


@pytest.mark.parametrize("shape", [(), (5,), (5, 5, 5)])
def test_an_embedding_that_is_none(shape: tuple[int, ...], folder: Path) -> None:
    edit_weights(folder, lambda weights: weights.update({"model.embed_tokens.weight": torch.zeros(shape)}))
    check_all_refuse(folder, r"model.embed_tokens.weight of .* has the shape .*, which is no embedding's")


def test_a_header_of_another_shape(folder: Path) -> None:
    for header in (
        b"[1]",
        b'{"a": 5}',
        b'{"a": {"dtype": "F32", "shape": ["x"], "data_offsets": [0, 4]}}',
        b"[" * 9999,
    ):
        (folder / "model.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + b"0000")
        check_all_refuse(folder, r"model.safetensors of .* is damaged or cut short")
    (folder / "model.safetensors").write_bytes(b"\xff" * 8 + b"{}")  # a header of 2 ** 64 bytes
    check_all_refuse(folder, r"model.safetensors of .* is damaged or cut short")


def test_a_score_head_that_is_there_already_does_not_get_into_the_result(folder: Path, tmp_path: Path) -> None:
    convert(folder, tmp_path / "out")
    edit_weights(folder, lambda weights: weights.update({"score.weight": torch.ones(1, 64)}))
    convert(folder, tmp_path / "again")
    heads = (
        safetensors.torch.load_file(tmp_path / name / "model.safetensors")["score.weight"] for name in ("out", "again")
    )
    torch.testing.assert_close(*heads, rtol=0, atol=0)


# --- anything at all --------------------------------------------------------------------------------------------------

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.sampled_from(["../x", "/etc/passwd"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3) | st.just("0"), inner, max_size=2),
    max_leaves=4,
)
OTHERS = {
    "config.json": ("text_config", "quantization_config", "id2label", "auto_map", "rope_scaling", "score_template"),
    "tokenizer_config.json": ("chat_template", "score_template", "pad_token", "added_tokens_decoder", "auto_map"),
    "preprocessor_config.json": ("size",),
    INDEX: ("weight_map",),
}


@pytest.fixture(scope="module", params=["zerank-2", "qwen3-vl-reranker-2b", "ms-marco-minilm-l6-v2"])
def family(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return FAMILIES[request.param](tmp_path_factory.mktemp("models") / request.param)


@settings(max_examples=60)
@given(data=st.data())
def test_no_field_of_any_type_raises_what_is_not_ours(data: st.DataObject, family: Path) -> None:
    file = family / data.draw(st.sampled_from([name for name in OTHERS if name == INDEX or (family / name).is_file()]))
    before = file.read_text() if file.is_file() else None
    content = json.loads(before or "{}")
    field = data.draw(st.sampled_from(sorted({*content, *OTHERS[file.name]})))
    try:
        edit(file, **{field: data.draw(VALUES, label=field)})
        examine(str(family))  # what is a `WinnowError` is a problem that it reports
    finally:
        file.unlink() if before is None else file.write_text(before)
