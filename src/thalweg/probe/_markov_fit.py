"""Gaussian hidden Markov models fitted by hmmlearn, from several starts, with a floor under variances."""

from __future__ import annotations

from typing import Any

import numpy as np
from hmmlearn.base import ConvergenceMonitor
from hmmlearn.hmm import GaussianHMM

from thalweg.probe._markov import Markov
from thalweg.probe._series import Array

FLOOR = 1e-3  # least variance, in squared standard deviations of the readings
EMPTY = 1e-3  # readings, or a share of one, under which a state keeps its moments
CLUSTERINGS = 20  # iterations of k-means
GAIN = 1e-4  # nats a point in time under which another iteration is not worth its time


class _Silent(ConvergenceMonitor):
    """Stops as its parent does, without a log line where the floor lowers the likelihood a little."""

    def report(self, log_prob: float) -> None:
        self.history.append(log_prob)
        self.iter += 1


class _Floored(GaussianHMM):
    """No variance shrinks to nothing around a reading that hardly moves."""

    def _get_n_fit_scalars_per_param(self) -> None:
        # hmmlearn would log that few readings degenerate, which the floor prevents, once a restart.
        return None

    def _do_mstep(self, stats: Any) -> None:
        means, spreads = self.means_, vars(self)["_covars_"]
        with np.errstate(divide="ignore", invalid="ignore"):
            super()._do_mstep(stats)
        # Divided by next to nothing, the moments of a state without readings would be without bounds.
        empty = stats["post"] < EMPTY
        self.means_[empty] = means[empty]
        fitted: Array = vars(self)["_covars_"]
        fitted[empty] = spreads[empty]
        if self.covariance_type == "diag":
            fitted = np.maximum(fitted, FLOOR)
        else:
            values, vectors = np.linalg.eigh(fitted)
            fitted = vectors @ (np.maximum(values, FLOOR)[..., None] * vectors.swapaxes(-1, -2))
        self._covars_ = fitted
        # A state that nothing leaves has counted no transition: it stays.
        stuck = self.transmat_.sum(axis=1) == 0
        self.transmat_[stuck] = np.eye(self.n_components)[stuck]


def fit(
    data: list[Array], states: int, covariance: str, restarts: int, iterations: int, seed: int
) -> tuple[GaussianHMM, float]:
    """The most likely of several fits, and the logarithm of its likelihood.

    Each starts from the moments and transitions of clusters found by k-means from random readings. hmmlearn's
    own start gives every state the variance of all readings together, from which states merge.
    """
    stacked, lengths = np.concatenate(data), [len(one) for one in data]
    best: tuple[GaussianHMM, float] | None = None
    for restart in range(restarts if states > 1 else 1):
        model = _Floored(
            states,
            covariance_type=covariance,
            n_iter=iterations,
            tol=GAIN * len(stacked),
            init_params="",
        )
        model.monitor_ = _Silent(model.tol, iterations, False)
        labels = _clusters(stacked, states, np.random.default_rng(seed + restart))
        _begin(model, stacked, lengths, labels)
        model.fit(stacked, lengths)
        likelihood = model.score(stacked, lengths)
        if best is None or likelihood > best[1]:
            best = model, likelihood
    assert best is not None
    return best


def _clusters(values: Array, states: int, source: np.random.Generator) -> Array:
    """A label for each reading: k-means from centres drawn far apart."""
    centers = values[[source.integers(len(values))]]
    while len(centers) < states:
        nearest = _squares(values, centers).min(axis=1)
        total = nearest.sum()
        drawn = source.choice(len(values), p=nearest / total if total > 0 else None)
        centers = np.concatenate([centers, values[drawn][None]])
    for _ in range(CLUSTERINGS):
        labels = _squares(values, centers).argmin(axis=1)
        for state in np.unique(labels):
            centers[state] = values[labels == state].mean(axis=0)
    return labels


def _squares(values: Array, centers: Array) -> Array:
    return ((values[:, None] - centers) ** 2).sum(axis=2)


def _begin(model: GaussianHMM, values: Array, lengths: list[int], labels: Array) -> None:
    """Moments of each cluster, with the variance of all readings counted in as two of them."""
    states, diagonal = model.n_components, model.covariance_type == "diag"
    whole = values.mean(axis=0), _second(values - values.mean(axis=0), diagonal)
    means, covariances = [], []
    for state in range(states):
        own = values[labels == state]
        means.append(own.mean(axis=0) if len(own) else whole[0])
        off = own - means[-1]
        covariances.append((_second(off, diagonal) + 2 * whole[1] / len(values)) / (len(own) + 2))
    size = covariances[0].shape
    floor = np.full(size, FLOOR) if diagonal else FLOOR * np.eye(len(size) and size[0])
    model.means_ = np.stack(means)
    model.covars_ = np.stack(covariances) + floor
    begins = np.cumsum([0, *lengths[:-1]])
    moves = np.ones((states, states))
    follows = np.delete(np.arange(1, len(values)), begins[1:] - 1)
    np.add.at(moves, (labels[follows - 1], labels[follows]), 1)
    model.transmat_ = moves / moves.sum(axis=1, keepdims=True)
    starts = 1 + np.bincount(labels[begins], minlength=states)
    model.startprob_ = starts / starts.sum()


def _second(off: Array, diagonal: bool) -> Array:
    return (off**2).sum(axis=0) if diagonal else off.T @ off


def read(model: GaussianHMM) -> Markov:
    return Markov(
        model.startprob_.copy(), model.transmat_.copy(), model.means_.copy(), np.array(model.covars_)
    )


def parameters(states: int, readings: int, covariance: str) -> int:
    """Free parameters of a model."""
    spread = readings if covariance == "diag" else readings * (readings + 1) // 2
    return states - 1 + states * (states - 1) + states * (readings + spread)
