"""A relevance model from labelled texts: logistic regression, judged on texts it did not see."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import optimize, sparse, special

from data_prep.curation.selection.features import ngrams
from data_prep.curation.selection.labels import Labelled, read_labels
from data_prep.curation.selection.quality import Floats, Labels, Quality, assess
from data_prep.curation.selection.relevance import ModelFile
from megatron_soaes.errors import UserError

MIN_LABELS = 10
"""Texts of each label below which nothing is learnt."""


@dataclass(frozen=True)
class TrainingSettings:
    """How a model is trained and tested."""

    l2: float = 0.1
    """Penalty: half of it times the squared norm of the weights of rows of mean norm 1."""
    min_documents: int = 2
    """N-grams of fewer labelled texts are not learnt from."""
    max_ngrams: int = 50_000
    """Of all others, those in most texts are."""
    folds: int = 5
    """Of the cross-validation: each text is judged by a model of the other folds."""
    seed: int = 1
    """Of the folds and of the intervals; the weights do not depend on it."""

    def __post_init__(self) -> None:
        limits = (
            ("l2", self.l2 > 0, "a number above 0"),
            ("min_documents", self.min_documents >= 1, "at least 1"),
            ("max_ngrams", self.max_ngrams >= 1, "at least 1"),
            ("folds", 2 <= self.folds <= MIN_LABELS, f"2 to {MIN_LABELS} folds"),
            ("seed", self.seed >= 0, "a number from 0 on"),
        )
        for name, kept, rule in limits:
            if not kept:
                value = str(getattr(self, name))
                raise UserError(f"training: {name}", value, rule, "Choose another value.")


@dataclass(frozen=True)
class _Counted:
    """Labelled texts as counts: `counts` is sparse [texts, n-grams], `totals` [texts] counts all
    n-grams of a text, also those that are no column. Columns are in the order of their text.
    """

    counts: Any
    totals: Floats
    relevant: Labels
    ngrams: list[str]

    def rows(self, chosen: npt.NDArray[np.int64]) -> _Counted:
        """Some of the texts."""
        return _Counted(
            self.counts[chosen], self.totals[chosen], self.relevant[chosen], self.ngrams
        )


def train(path: Path, settings: TrainingSettings) -> tuple[ModelFile, Quality]:
    """Learn from a labelled file. The same file and settings give the same model.

    The quality is that of the folds' models on the texts left out of each, not of the model on its
    own texts. Raises UserError for a file that `read_labels` refuses or that holds fewer than
    `MIN_LABELS` texts of a label, and where no n-gram occurs in enough texts.
    """
    labelled = read_labels(path, MIN_LABELS)
    counted = _count(labelled, settings.min_documents)
    if not counted.ngrams:
        raise UserError(
            path, "no n-gram that several texts share", "texts of some length",
            "Label texts of at least a paragraph.",
        )  # fmt: skip
    quality = assess(labelled.relevant, _cross_validate(counted, settings), settings.seed)
    weights, bias = _fit(counted, settings)
    learnt = np.flatnonzero(weights)
    file = ModelFile(
        version=1,
        bias=bias,
        ngrams={counted.ngrams[column]: float(f"{weights[column]:.6g}") for column in learnt},
        settings=asdict(settings),
        training={
            "sha256": labelled.sha256,
            "relevant": quality.relevant,
            "irrelevant": quality.irrelevant,
        },
        quality=quality.to_json(),
    )
    return file, quality


def _count(labelled: Labelled, min_documents: int) -> _Counted:
    found = [Counter(ngrams(text)) for text in labelled.texts]
    documents = Counter(ngram for counter in found for ngram in counter)
    names = sorted(ngram for ngram, count in documents.items() if count >= min_documents)
    columns = {name: column for column, name in enumerate(names)}
    cells = [
        (count, row, columns[ngram])
        for row, counter in enumerate(found)
        for ngram, count in counter.items()
        if ngram in columns
    ]
    values, rows, places = np.array(cells, dtype=np.int64).reshape(-1, 3).T
    shape = (len(found), len(names))
    return _Counted(
        counts=sparse.csr_array((values.astype(np.float64), (rows, places)), shape=shape),
        totals=np.array([max(counter.total(), 1) for counter in found], dtype=np.float64),
        relevant=labelled.relevant,
        ngrams=names,
    )


def _cross_validate(counted: _Counted, settings: TrainingSettings) -> Floats:
    """The score of each text by the model of all folds but its own, float64 [texts]."""
    generator = np.random.default_rng(settings.seed)
    fold = np.zeros(len(counted.relevant), dtype=np.int64)
    for label in (True, False):
        members = generator.permutation(np.flatnonzero(counted.relevant == label))
        fold[members] = np.arange(len(members)) % settings.folds
    scores = np.zeros(len(fold))
    for number in range(settings.folds):
        weights, bias = _fit(counted.rows(np.flatnonzero(fold != number)), settings)
        held_out = counted.rows(np.flatnonzero(fold == number))
        logits = bias + held_out.counts @ weights / held_out.totals
        scores[fold == number] = special.expit(logits)
    return scores


def _fit(counted: _Counted, settings: TrainingSettings) -> tuple[Floats, float]:
    """The weight of every column in the mean of a text's n-grams, and the bias.

    Rows are shares of n-grams times their inverse document frequency (Sparck Jones 1972, smoothed
    by one text), scaled to a mean squared norm of 1; the weights take both factors in. A column of
    too few of these texts has the weight 0.
    """
    texts = len(counted.totals)
    documents = np.asarray((counted.counts > 0).sum(axis=0)).ravel()
    columns = np.argsort(-documents, kind="stable")[: settings.max_ngrams]
    columns = np.sort(columns[documents[columns] >= settings.min_documents])
    factors = np.log((1 + texts) / (1 + documents[columns])) + 1
    rows = counted.counts[:, columns].multiply(factors).multiply(1 / counted.totals[:, None])
    rows = sparse.csr_array(rows)
    norm = float(np.sqrt(rows.power(2).sum() / texts)) or 1.0
    weights, bias = _logistic_regression(rows / norm, counted.relevant, settings.l2)
    all_weights = np.zeros(len(counted.ngrams))
    all_weights[columns] = weights * factors / norm
    return all_weights, bias


def _logistic_regression(rows: Any, relevant: Labels, l2: float) -> tuple[Floats, float]:
    """Minimise sum(log(1 + exp(-y z))) + l2/2 |w|^2, z = rows w + bias; the bias is free."""
    signs = np.where(relevant, 1.0, -1.0)

    def objective(parameters: Floats) -> tuple[float, Floats]:
        weights, bias = parameters[:-1], parameters[-1]
        margins = signs * (rows @ weights + bias)
        pull = -signs * special.expit(-margins)
        loss = np.logaddexp(0, -margins).sum() + l2 / 2 * weights @ weights
        return float(loss), np.append(rows.T @ pull + l2 * weights, pull.sum())

    start = np.zeros(rows.shape[1] + 1)
    options = {"maxiter": 1000, "ftol": 1e-12, "gtol": 1e-6}
    found = optimize.minimize(objective, start, jac=True, method="L-BFGS-B", options=options)
    return found.x[:-1], float(found.x[-1])
