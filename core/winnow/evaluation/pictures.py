"""What all pictures of this package have in common."""

from os import PathLike
from pathlib import Path

from winnow.evaluation.packages import needed

# Of Okabe and Ito's colours, which people with any kind of colour vision can tell apart: https://jfly.uni-koeln.de/color
BLUE, ORANGE, SKY_BLUE, YELLOW, PURPLE, GREY = "#0072B2", "#D55E00", "#56B4E9", "#E69F00", "#CC79A7", "#8C8C8C"

ENDINGS = (".png", ".svg", ".pdf")
"""What the names of pictures end with."""


def check_picture_file(file: str | PathLike[str], endings: tuple[str, ...] = ENDINGS) -> None:
    """Check that a picture can be written, before hours of work.

    Raises:
        ValueError: The file's name says no format that a picture can have.
        MissingExtraError: matplotlib is not installed.
    """
    if Path(file).suffix.lower() not in endings:
        raise ValueError(f"{file}: a plot's name must end with {', '.join(endings[:-1])} or {endings[-1]}.")
    needed("matplotlib.figure")
