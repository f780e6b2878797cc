"""A quick look at a model's weight files before an engine loads them: engines' own errors do not name the file."""

from pathlib import Path

from winnow.errors import ModelError
from winnow.model_folder import read_json


def check_weights(model: str) -> None:
    """Check that the weight files of a local folder are whole: headers and lengths, in milliseconds.

    Models on the Hub are not checked here: they may not be downloaded yet.

    Args:
        model: Name or path, as the user gave it.

    Raises:
        ModelError: A file is missing or damaged. The message names it.
    """
    from safetensors import SafetensorError, safe_open

    folder = Path(model).expanduser()
    if not folder.is_dir():
        return
    index = folder / "model.safetensors.index.json"
    files = set(folder.glob("*.safetensors"))
    if index.is_file():
        files |= {folder / name for name in read_json(index, model).get("weight_map", {}).values()}
    elif not files and not any(folder.glob("*.bin")):
        raise ModelError(f"{model} has no weights: there is no model.safetensors in {folder}. Download it again.")
    for file in sorted(files):
        if not file.is_file():
            raise ModelError(f"{file} is missing, though {index.name} names it. Download the model again.")
        try:
            with safe_open(file, framework="numpy"):
                pass
        except (SafetensorError, OSError) as error:
            raise ModelError(f"{file} of {model} is damaged or cut short: {error}. Download it again.") from error
