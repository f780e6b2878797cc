"""Error messages for arguments that do not exist, with Winnow's name for those that other libraries have."""

import difflib
import functools
import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

from winnow.engines import SETTINGS

T = TypeVar("T")
C = TypeVar("C")
P = ParamSpec("P")
R = TypeVar("R")

_MODEL = ("model",)
_URL = ("url",)
_TOKEN = ("token",)
_COUNT = ("top_k", "top_n")
_THRESHOLD = ("score_threshold",)
# Arguments of each call, by the name that `Reranker` has for them.
_OF_EACH_CALL = {_COUNT: "top_k", _THRESHOLD: "score_threshold"}
_DTYPE = "it is a setting of the engine: engine_kwargs={'dtype': %r}"

# Arguments of Haystack, LangChain, LlamaIndex, sentence-transformers, FlagEmbedding and hosted rerankers, with Winnow's
# names for them (the message has the first that exists), or with a sentence.
_ELSEWHERE: Mapping[str, tuple[str, ...] | str] = {
    "model_name": _MODEL,
    "model_name_or_path": _MODEL,
    "pretrained_model_name_or_path": _MODEL,
    "model_id": _MODEL,
    "model_path": _MODEL,
    "cache_folder": ("cache_dir",),
    "download_dir": ("cache_dir",),
    "base_url": _URL,
    "api_base": _URL,
    "api_base_url": _URL,
    "api_url": _URL,
    "endpoint": _URL,
    "inference_server_url": _URL,
    "api_token": ("api_key",),
    "hf_token": _TOKEN,
    "huggingface_token": _TOKEN,
    "use_auth_token": _TOKEN,
    "token": _TOKEN,
    "top_k": _COUNT,
    "top_n": _COUNT,
    "k": _COUNT,
    "threshold": _THRESHOLD,
    "similarity_cutoff": _THRESHOLD,
    "score_threshold": _THRESHOLD,
    "max_seq_length": ("max_length",),
    "max_model_len": ("max_length",),
    "max_tokens_per_doc": ("max_document_tokens",),
    "max_chunk_len": ("max_document_tokens",),
    **dict.fromkeys(("docs", "passages", "texts", "sentences", "candidates", "nodes"), ("documents",)),
    "question": ("query",),
    "prompt": ("instruction",),
    "task": ("instruction",),
    "instruct": ("instruction",),
    "query_instruction": ("instruction",),
    "prompt_template": ("template",),
    "score_template": ("template",),
    "chat_template": ("template",),
    "model_kwargs": ("engine_kwargs",),
    "tokenizer_kwargs": ("engine_kwargs",),
    "vllm_kwargs": ("engine_kwargs",),
    "scale_score": ("scale_score", "raw_scores"),
    "raw_scores": ("raw_scores", "scale_score"),
    "normalize": ("scale_score", "raw_scores"),
    "activation_fn": ("scale_score", "raw_scores"),
    "request_timeout": ("deadline",),
    "use_fp16": _DTYPE % "float16",
    "use_bf16": _DTYPE % "bfloat16",
    "torch_dtype": _DTYPE % "bfloat16",
    **dict.fromkeys(
        ("query_prefix", "query_suffix", "document_prefix", "document_suffix"),
        "texts are scored as they are given: write it into them, or into a template",
    ),
    "batch_size": "engines make their own batches; engine_kwargs has max_num_seqs (vllm), batch_tokens (transformers) "
    "and chunk_size (server)",
}


def unknown_argument(owner: str, name: str, known: Iterable[str]) -> str:
    """The message for an argument that does not exist.

    Args:
        owner: The class or function that was called, such as "Reranker".
        name: The argument.
        known: The arguments that exist.
    """
    known = list(known)
    theirs = _ELSEWHERE.get(name, ())
    if isinstance(theirs, str):
        hint = theirs
    elif ours := next((one for one in theirs if one in known), None):
        hint = f"here it is {ours!r}"
    elif name in SETTINGS and "engine_kwargs" in known:
        hint = f"it is a setting of the engine: engine_kwargs={{{name!r}: ...}}"
    elif theirs == _TOKEN:
        hint = "it is a setting of the engine: engine_kwargs={'hf_token': ...}, or the environment variable HF_TOKEN"
    elif theirs in _OF_EACH_CALL and owner.startswith("Reranker"):
        hint = f"it is an argument of each call: rank(..., {_OF_EACH_CALL[theirs]}=...)"
    elif theirs in _OF_EACH_CALL:
        hint = "it returns all scores; its caller chooses which documents to keep"
    elif near := difflib.get_close_matches(name, known, n=1):
        hint = f"did you mean {near[0]!r}?"
    else:
        hint = f"it takes {', '.join(known)}"
    return f"{owner} has no argument {name!r}: {hint}"


def hinting(cls: type[T]) -> type[T]:
    """A decorator: the class refuses unknown arguments with a hint. It goes above `@dataclass`.

    The signature does not change: Haystack reads it when it loads a saved component, so it cannot end with `**kwargs`.
    """
    init = cls.__init__
    known = list(inspect.signature(init).parameters)[1:]

    @functools.wraps(init)
    def checked(self: T, *args: Any, **given: Any) -> None:
        _check(cls.__name__, given, known)
        init(self, *args, **given)

    cls.__init__ = checked  # type: ignore[assignment,method-assign]
    return cls


def taking(make: Callable[P, C]) -> Callable[[Callable[[T, C], R]], Callable[Concatenate[T, P], R]]:
    """A decorator: a method that needs one value takes the arguments from which a function makes it.

    Type checkers, editors and `inspect` see these arguments, which are written down only where the value is made, even
    if several methods take them. Unknown ones are refused with a hint, as by `hinting`.

    Args:
        make: Makes the value: a class or a function.
    """
    signature = inspect.signature(make)
    known = list(signature.parameters)

    def decorator(method: Callable[[T, C], R]) -> Callable[Concatenate[T, P], R]:
        def made(self: T, *args: P.args, **given: P.kwargs) -> C:
            owner = type(self).__name__ if method.__name__ == "__init__" else method.__qualname__
            _check(owner, given, known)
            try:
                signature.bind(*args, **given)
            except TypeError as error:
                raise TypeError(f"{owner}: {error}") from None
            return make(*args, **given)

        @functools.wraps(method)
        def checked(self: T, /, *args: P.args, **given: P.kwargs) -> R:
            return method(self, made(self, *args, **given))

        @functools.wraps(method)
        async def checked_async(self: T, /, *args: P.args, **given: P.kwargs) -> Any:
            return await cast("Any", method(self, made(self, *args, **given)))

        found: Any = checked_async if inspect.iscoroutinefunction(method) else checked
        own = inspect.Parameter("self", inspect.Parameter.POSITIONAL_ONLY)
        returned = inspect.signature(method).return_annotation
        found.__signature__ = inspect.Signature([own, *signature.parameters.values()], return_annotation=returned)
        return cast("Callable[Concatenate[T, P], R]", found)

    return decorator


def _check(owner: str, given: Iterable[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise TypeError(unknown_argument(owner, name, known))
