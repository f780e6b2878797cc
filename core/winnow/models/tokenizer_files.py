"""The tokenizer of a model's folder: tokenizer.json itself if there is one, else what transformers reads."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from winnow.errors import ModelError
from winnow.models.folder import read_tokenizer_config
from winnow.tokenizer import PromptTokenizer

if TYPE_CHECKING:
    from tokenizers import Tokenizer

logger = logging.getLogger(__name__)

# Texts in which tokenizers differ: blanks, line breaks, digits, case, accents, scripts, code, marks, emoji.
_PROBES = (
    "what is the capital of China?",
    "  two  spaces   and one at the end ",
    "one line\nthe next\n\n\nand after a gap\r\n\tan indented one",
    "a\u00a0hard space, a wide\u3000one, a\u200bhidden one",
    "In 1984 it cost 1234567890.50 €, or 12,5 %, ½ and x² more",
    "McDonald's, I'M, they'Ll, don't, USA, iPhone",
    "na\u00efve caf\u00e9 and nai\u0308ve cafe\u0301, Füße, Łódź, İstanbul",
    "日本語のテキスト、中文文本。한국어 텍스트",
    "مرحبا بالعالم, हिन्दी पाठ, ภาษาไทย, русский, Ελληνικά, עברית",
    "ﬁne ligatures, ①, Ⅷ, ｆｕｌｌ ｗｉｄｔｈ, ™",
    "🙂 👨‍👩‍👧 🇩🇪 👍🏽",
    "def f(x):\n    return x ** 2  # twice\n",
    'https://example.org/a_b?c=d&e=%20 [1] {"key": "value"} <b>...</b> -- !!! ▁ Ġ',
)
# Files of tokenizers, for a better error where transformers reads none.
_FILES = ("tokenizer.json", "vocab.*", "tekken.json", "*.model", "*.tiktoken")


@dataclass(frozen=True, slots=True)
class FolderTokenizer:
    """A folder's tokenizer.

    Attributes:
        loaded: As transformers loads it. It knows the names of special tokens, the length limit and the token types.
        backend: As it is: tokenizer.json, or a SentencePiece file, with what tokenizer_config.json adds.
        file: Name of that file.
        strays: Texts to which `loaded` gives other ids.
    """

    loaded: Any
    backend: "Tokenizer"
    file: str
    strays: tuple[str, ...] = ()


def read_tokenizer(folder: Path, model: str, trust_remote_code: bool = False) -> FolderTokenizer:
    """Read the tokenizer of a folder.

    transformers 5 takes no more than vocabulary and merges from tokenizer.json for many of its classes, and builds the
    rest anew as the class that tokenizer_config.json names has it (`TokenizersBackend.convert_to_native_format`). Where
    the file was of another kind, that is another tokenizer than the one the model was trained with: transformers 4 took
    the file as it was. `PreTrainedTokenizerFast` still does. Of a SentencePiece file some classes (DeBERTa's) leave out
    the normaliser, which folds characters such as ligatures; transformers' converter of slow tokenizers still reads it.

    Args:
        folder: The model's folder.
        model: Its name, for errors.
        trust_remote_code: Whether the tokenizer may run code from the folder.

    Raises:
        ModelError: There is none, or it cannot be read. The message says what is missing.
    """
    from tokenizers import Tokenizer, normalizers
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    read_tokenizer_config(folder, model)  # its fields are checked before transformers follows them
    has_file = (folder / "tokenizer.json").is_file()
    try:
        loaded = AutoTokenizer.from_pretrained(folder, trust_remote_code=trust_remote_code)
        of_transformers = type(loaded).__module__.startswith("transformers.")
        own = PreTrainedTokenizerFast.from_pretrained(folder) if has_file and of_transformers else loaded
    except Exception as error:  # transformers raises whatever its parsers raise
        if not any(any(folder.glob(pattern)) for pattern in _FILES):
            raise _missing(folder, model) from error
        raise ModelError(
            f"The tokenizer of {model} cannot be read from {folder}: {type(error).__name__}: {error}{_needed(folder)}"
        ) from error
    if not has_file and of_transformers and not loaded.init_kwargs.get("vocab_file"):
        raise _missing(folder, model)  # transformers makes one without words, and does not say so
    if not hasattr(loaded, "backend_tokenizer"):
        raise ModelError(
            f"The tokenizer of {model} is a {type(loaded).__name__}, which is written in Python. Winnow runs those of "
            "the tokenizers library: save a tokenizer.json beside the model."
        )
    backend: Tokenizer = own.backend_tokenizer
    theirs = loaded.backend_tokenizer.normalizer
    if isinstance(theirs, normalizers.BertNormalizer) and isinstance(backend.normalizer, normalizers.BertNormalizer):
        backend.normalizer = theirs  # do_lower_case and its like in tokenizer_config.json win, as in transformers 4
    file = "tokenizer.json"
    if not has_file:
        file = Path(loaded.init_kwargs.get("vocab_file") or "").name
        backend = Tokenizer.from_str(backend.to_str())
        backend.normalizer = _normalizer_in_file(loaded) or backend.normalizer
    return FolderTokenizer(loaded, backend, file, tuple(_strays(loaded.backend_tokenizer, backend)))


def load_tokenizer(
    folder: Path, model: str, trust_remote_code: bool = False, last_token: int | None = None
) -> tuple[PromptTokenizer, int | None]:
    """The tokenizer of a folder, safe for contents, and its limit of tokens, if it has one.

    Args:
        folder: The model's folder.
        model: Its name, for errors.
        trust_remote_code: Whether the tokenizer may run code from the folder.
        last_token: Id that stands after every prompt.

    Raises:
        ModelError: There is none, or it cannot be read.
    """
    import transformers

    found = read_tokenizer(folder, model, trust_remote_code)
    loaded = found.loaded
    if found.strays:
        logger.warning(
            "transformers %s makes another tokenizer (%s) of %s than its %s: texts such as %r get other ids. Winnow "
            "takes %s as it is, which is what models are trained with.",
            transformers.__version__,
            type(loaded).__name__,
            model,
            found.file,
            found.strays[0],
            found.file,
        )
    known = {name: str(token) for name, token in loaded.special_tokens_map.items() if isinstance(token, str)}
    # Some classes name tokens that the model does not have.
    special = {name: token for name, token in known.items() if found.backend.token_to_id(token) is not None}
    inputs = loaded.model_input_names or type(loaded).model_input_names  # null in the file hides those of the class
    tokenizer = PromptTokenizer(
        found.backend,
        special,
        token_types="token_type_ids" in inputs,
        last=() if last_token is None else (last_token,),
    )
    limit = loaded.model_max_length
    return tokenizer, limit if limit < 10**9 else None


def _normalizer_in_file(loaded: Any) -> Any:
    """The normaliser of a SentencePiece file, as transformers 4 read it; None where `loaded` has kept it."""
    from tokenizers import models
    from transformers.convert_slow_tokenizer import SLOW_TO_FAST_CONVERTERS, SpmConverter

    kind: Any = SLOW_TO_FAST_CONVERTERS.get(type(loaded).__name__)
    tokenizer = loaded.backend_tokenizer
    if kind is None or not issubclass(kind, SpmConverter) or not isinstance(tokenizer.model, models.Unigram):
        return None
    if "Precompiled" in repr(tokenizer.normalizer):
        return None
    converter = kind(loaded)
    return converter.normalizer(converter.proto) if converter.proto.normalizer_spec.precompiled_charsmap else None


def _strays(loaded: "Tokenizer", own: "Tokenizer") -> list[str]:
    """The texts to which two tokenizers give different ids."""
    if loaded is own:
        return []
    added = sorted(token.content for token in own.get_added_tokens_decoder().values())
    probes = [*_PROBES, *(["before{}after, and {} between".format(*[token] * 2) for token in added])]
    ids = ([one.ids for one in tokenizer.encode_batch(probes, add_special_tokens=False)] for tokenizer in (loaded, own))
    return [probe for probe, theirs, ours in zip(probes, *ids, strict=True) if theirs != ours]


def _missing(folder: Path, model: str) -> ModelError:
    return ModelError(
        f"{model} has no tokenizer: there is no tokenizer.json in {folder}. Save the tokenizer beside the model."
    )


def _needed(folder: Path) -> str:
    """What to install, if the tokenizer is a SentencePiece file that needs more packages to be read."""
    from transformers.utils.import_utils import is_protobuf_available, is_sentencepiece_available

    there = {"sentencepiece": is_sentencepiece_available(), "protobuf": is_protobuf_available()}
    packages = [name for name, installed in there.items() if not installed]
    if not packages or not any(folder.glob("*.model")):
        return ""
    return f"\nTo read a SentencePiece file (*.model), install: pip install {' '.join(packages)}"
