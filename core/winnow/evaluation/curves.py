"""Fit the curve of a calibration with scikit-learn, and try it on queries that it was not fitted on."""

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from winnow.errors import ConfigurationError
from winnow.evaluation.packages import needed
from winnow.ranking import Calibration

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Groups = NDArray[np.intp]
Fitting = Literal["platt", "isotonic", "auto"]

_FOLDS = 5
# Below, isotonic regression overfits: https://scikit-learn.org/stable/modules/calibration.html#isotonic.
_ENOUGH_FOR_ISOTONIC = 1000


def checked_method(method: str) -> None:
    """Refuse a method that does not exist.

    Raises:
        ConfigurationError: The message names those that do.
    """
    if method not in get_args(Fitting):
        raise ConfigurationError(f"method must be one of {', '.join(map(repr, get_args(Fitting)))}, but got {method!r}")


def chosen(method: str, logits: Floats, relevant: Flags, groups: Groups) -> tuple[str, Floats, str]:
    """The method that is taken, its held-out probabilities, and why it is taken.

    "auto" takes "isotonic" if there are 1000 pairs or more, and its Brier score, held out, is lower than that of
    "platt" by more than the standard error of the difference over queries; else "platt", which fits two numbers only.

    Args:
        method: What the user wants.
        logits: One for each pair.
        relevant: Whether the pairs are relevant.
        groups: The numbers of their queries.
    """
    if method != "auto":
        return method, held_out(method, logits, relevant, groups), "as you chose"
    platt = held_out("platt", logits, relevant, groups)
    if len(logits) < _ENOUGH_FOR_ISOTONIC:
        return "platt", platt, f"isotonic needs {_ENOUGH_FOR_ISOTONIC} pairs"
    isotonic = held_out("isotonic", logits, relevant, groups)
    errors = [(found - relevant) ** 2 for found in (platt, isotonic)]
    of_queries = np.bincount(groups, weights=errors[0] - errors[1])
    gain, error = of_queries.sum(), of_queries.std() * np.sqrt(len(of_queries))  # of a sum over queries
    brier = ", ".join(f"{name} {each.mean():.4f}" for name, each in zip(("platt", "isotonic"), errors, strict=True))
    if gain > error:
        return "isotonic", isotonic, f"its Brier score is clearly lower: {brier}"
    return "platt", platt, f"the Brier score of isotonic is not clearly lower: {brier}"


def held_out(method: str, logits: Floats, relevant: Flags, groups: Groups) -> Floats:
    """Probabilities of pairs, each by a curve that was fitted on the pairs of other queries.

    The folds have about the same share of relevant pairs.

    Raises:
        ConfigurationError: The relevant pairs, or the others, are of too few queries.
    """
    splitter = needed("sklearn.model_selection").StratifiedGroupKFold(_FOLDS, shuffle=True, random_state=0)
    found = np.zeros(len(logits))
    for train, test in splitter.split(logits, relevant, groups):
        if len(np.unique(relevant[train])) < 2:
            raise ConfigurationError(
                "Almost all relevant pairs, or almost all others, are of the same queries, so that nothing can be held "
                "out by query: judge documents of both kinds for more queries."
            )
        found[test] = predicted(estimator(method, logits[train], relevant[train]), logits[test])
    return found


def fit(method: str, logits: Floats, relevant: Flags) -> Calibration:
    """The curve of all pairs.

    Raises:
        ConfigurationError: Higher logits do not go with more relevant documents.
    """
    fitted = estimator(method, logits, relevant)
    if method == "platt":
        scaler, regression = fitted
        slope = float(regression.coef_[0, 0] / scaler.scale_[0])
        if slope > 0:
            intercept = float(regression.intercept_[0] - slope * scaler.mean_[0])
            return Calibration(method="platt", slope=slope, intercept=intercept)
    else:
        knots = tuple(zip(fitted.X_thresholds_.tolist(), fitted.y_thresholds_.tolist(), strict=True))
        if len(knots) > 1 and knots[0][1] < knots[-1][1]:
            return Calibration(method="isotonic", knots=knots)
    raise ConfigurationError(
        "Relevant documents have no higher logits than the others, so no curve makes probabilities of them. Check that "
        "the labels are not inverted, that the model is a reranker, and that it has the prompt that it was trained on: "
        "`winnow doctor` shows it."
    )


def estimator(method: str, logits: Floats, relevant: Flags) -> Any:
    """scikit-learn's model of a method, fitted on different logits.

    Platt's targets are not 0 and 1, but a little inside, as he has them and `CalibratedClassifierCV(method="sigmoid")`
    does: without this the slope of pairs that a threshold separates has no end. So each pair counts as both, with
    weights.
    """
    if method == "isotonic":
        fitted = needed("sklearn.isotonic").IsotonicRegression(y_min=0, y_max=1, out_of_bounds="clip")
        return fitted.fit(logits, relevant.astype(float))
    positive, negative = int(relevant.sum()), int((~relevant).sum())
    share = np.where(relevant, (positive + 1) / (positive + 2), 1 / (negative + 2))
    regression = needed("sklearn.linear_model").LogisticRegression(C=1e12, tol=1e-8, max_iter=1000)
    scaled = needed("sklearn.pipeline").make_pipeline(needed("sklearn.preprocessing").StandardScaler(), regression)
    return scaled.fit(
        np.concatenate([logits, logits]).reshape(-1, 1),
        np.repeat([True, False], len(logits)),
        logisticregression__sample_weight=np.concatenate([share, 1 - share]),
    )


def predicted(fitted: Any, logits: Floats) -> Floats:
    """Probabilities of logits, by a model of `estimator`."""
    found: Floats
    if hasattr(fitted, "predict_proba"):
        found = fitted.predict_proba(logits.reshape(-1, 1))[:, 1]
    else:
        found = fitted.predict(logits)
    return found
