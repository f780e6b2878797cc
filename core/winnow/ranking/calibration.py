"""From logits to scores: the sigmoid, or a curve that `winnow calibrate` fitted on judged pairs.

Fitting is in `winnow.evaluation`; applying a curve needs no package.
"""

import json
import os
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from operator import itemgetter
from pathlib import Path, PurePath
from typing import Any, Literal, Self, get_args

from winnow.errors import ConfigurationError
from winnow.logits import sigmoid

CALIBRATION_FILE = "calibration.json"
"""The file's name in a folder, such as a model's."""

Method = Literal["platt", "isotonic"]

_VERSION = 1
_VERSION_FIELD = "winnow_calibration"
# Engines give logits in fp32. Between two knots in this range nothing overflows.
_LARGEST_LOGIT = 3.4028234663852886e38


@dataclass(frozen=True, slots=True, kw_only=True)
class Calibration:
    """A curve that makes probabilities of logits, and what it was fitted on. It never reverses two documents.

    Attributes:
        method: "platt": sigmoid(slope · logit + intercept). "isotonic": straight lines between `knots`, level outside.
        slope: Of "platt"; above 0.
        intercept: Of "platt".
        knots: Of "isotonic": two or more (logit, probability). Logits rise; probabilities do not fall.
        model: Name or path of the model whose logits it was fitted on; None if unknown.
        instruction: The instruction of the judged pairs, "" for the template's default; None if unknown or several.
        pairs: How many judged pairs it was fitted on.
        relevant: How many of them are relevant.
        queries: How many queries they have.

    Raises:
        ConfigurationError: A value is missing, out of range or not a finite number, or the curve falls.
    """

    method: Method
    slope: float | None = None
    intercept: float | None = None
    knots: tuple[tuple[float, float], ...] = field(default=(), repr=False)
    model: str | None = None
    instruction: str | None = None
    pairs: int = 0
    relevant: int = 0
    queries: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.knots, list):  # JSON has lists only
            object.__setattr__(self, "knots", tuple(self.knots))
        if self.method not in get_args(Method):
            raise _wrong("method", f"one of {', '.join(map(repr, get_args(Method)))}", self.method)
        for name in ("model", "instruction"):
            if not isinstance(getattr(self, name), str | None):
                raise _wrong(name, "a text", getattr(self, name))
        for name in ("pairs", "relevant", "queries"):
            if type(getattr(self, name)) is not int or getattr(self, name) < 0:
                raise _wrong(name, "a whole number of 0 or more", getattr(self, name))
        if self.method == "platt":
            self._check_line()
        else:
            self._check_knots()

    def _check_line(self) -> None:
        if self.knots:
            raise ConfigurationError('knots of the calibration belong to the method "isotonic", not to "platt"')
        for name in ("slope", "intercept"):
            object.__setattr__(self, name, _number(getattr(self, name), name))
        if not (self.slope or 0) > 0:
            raise _wrong("slope", "above 0, or better documents would have lower scores", self.slope)

    def _check_knots(self) -> None:
        if self.slope is not None or self.intercept is not None:
            raise ConfigurationError(
                'slope and intercept of the calibration belong to the method "platt", not to "isotonic"'
            )
        if not isinstance(self.knots, tuple) or len(self.knots) < 2:
            raise _wrong("knots", "two or more pairs of a logit and a probability", self.knots)
        knots: list[tuple[float, float]] = []
        for at, knot in enumerate(self.knots):
            if not isinstance(knot, list | tuple) or len(knot) != 2:
                raise _wrong(f"knots[{at}]", "a pair of a logit and a probability", knot)
            logit, probability = (_number(value, f"knots[{at}]") for value in knot)
            if not 0 <= probability <= 1:
                raise _wrong(f"knots[{at}]", "a logit and a probability from 0 to 1", knot)
            if knots and logit <= knots[-1][0]:
                raise _wrong(f"knots[{at}]", f"at a larger logit than {knots[-1][0]!r} before it", knot)
            if knots and probability < knots[-1][1]:
                raise _wrong(f"knots[{at}]", f"no lower than {knots[-1][1]!r} before it", knot)
            knots.append((logit, probability))
        object.__setattr__(self, "knots", tuple(knots))

    def probability(self, logit: float) -> float:
        """The probability that a document with this logit is relevant, from 0 to 1.

        Args:
            logit: A finite number.
        """
        if self.slope is not None and self.intercept is not None:
            return sigmoid(self.slope * logit + self.intercept)
        after = bisect_right(self.knots, logit, key=itemgetter(0))
        if after in (0, len(self.knots)):
            return self.knots[0 if after == 0 else -1][1]
        (left, low), (right, high) = self.knots[after - 1 : after + 1]
        # By rounding alone the sum could be above `high`, and the next line would begin below it.
        return min(high, low + (high - low) * ((logit - left) / (right - left)))

    def mismatch(self, model: str, instruction: str | None) -> str | None:
        """What is different from the pairs that it was fitted on, so that its probabilities may be wrong; or None.

        Args:
            model: Name or path of the model in use; only its last part counts, since folders move.
            instruction: The instruction in use; None or "" for the template's default.
        """
        if self.model is not None and _base_name(self.model) != _base_name(model):
            return f"the model {self.model}, and this is {model}"
        if self.instruction is not None and self.instruction != (instruction or ""):
            fitted, used = (repr(one) if one else "the default" for one in (self.instruction, instruction))
            return f"another instruction ({fitted}; now it is {used})"
        return None

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Write it as JSON.

        Args:
            path: A file named `*.json`, or a folder for a file calibration.json, made if it is missing.

        Returns:
            The file.

        Raises:
            OSError: It cannot be written.
        """
        file = _file(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        known = {name: value for name, value in asdict(self).items() if value not in (None, ())}
        new = file.with_name(f".{file.name}.{os.getpid()}")
        try:
            new.write_text(json.dumps({_VERSION_FIELD: _VERSION, **known}, indent=2) + "\n", encoding="utf-8")
            new.replace(file)  # whoever reads it meanwhile finds the old one, whole
        finally:
            new.unlink(missing_ok=True)
        return file

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Self:
        """Read what `save` wrote.

        Args:
            path: The file, or its folder.

        Raises:
            ConfigurationError: There is no such file, or it holds something else. The message says what.
        """
        file = _file(path)
        try:
            return cls._of(json.loads(file.read_text(encoding="utf-8")))
        except OSError as error:
            raise ConfigurationError(
                f"The calibration {file} cannot be read: {error.strerror}. `winnow calibrate` makes one."
            ) from error
        except (ValueError, RecursionError) as error:  # also numbers of thousands of digits
            raise ConfigurationError(f"{file} is no calibration that Winnow can use: {error}.") from error

    @classmethod
    def _of(cls, content: Any) -> Self:
        if not isinstance(content, Mapping) or _VERSION_FIELD not in content:
            raise ConfigurationError(f"it is no JSON object with {_VERSION_FIELD!r}, the version of the format")
        given = dict(content)
        if (version := given.pop(_VERSION_FIELD)) != _VERSION:
            raise ConfigurationError(f"its format has version {version!r}, and this Winnow reads {_VERSION}: update it")
        if unknown := given.keys() - {one.name for one in fields(cls)}:
            raise ConfigurationError(f"it has fields that no calibration has: {', '.join(sorted(unknown))}")
        if "method" not in given:
            raise ConfigurationError("it names no method")
        return cls(**given)


def loaded(calibration: Calibration | str | os.PathLike[str] | None) -> Calibration | None:
    """The calibration that a setting names.

    Raises:
        ConfigurationError: Its file cannot be read.
    """
    return calibration if isinstance(calibration, Calibration | None) else Calibration.load(calibration)


def _file(path: str | os.PathLike[str]) -> Path:
    given = Path(path).expanduser()
    is_file = given.is_file() or (given.suffix == ".json" and not given.is_dir())
    return given if is_file else given / CALIBRATION_FILE


def _base_name(model: str) -> str:
    return PurePath(model).name.casefold()


def _number(value: Any, name: str) -> float:
    if type(value) not in (int, float) or not abs(value) <= _LARGEST_LOGIT:  # NaN is not, either
        raise _wrong(name, "a finite number that float32 can hold", value)
    return float(value)


def _wrong(name: str, wanted: str, value: object) -> ConfigurationError:
    return ConfigurationError(f"{name} of the calibration must be {wanted}, but is {value!r:.200}")
