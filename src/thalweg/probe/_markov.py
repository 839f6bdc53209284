"""A Gaussian hidden Markov model, read forwards in time."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from thalweg.probe._series import Array


@dataclass(frozen=True)
class Markov:
    """Start probabilities [k], transitions [k, k] from row to column, means [k, d], covariances [k, d, d]."""

    start: Array
    transitions: Array
    means: Array
    covariances: Array

    def reordered(self, order: Array) -> Markov:
        return Markov(
            self.start[order],
            self.transitions[np.ix_(order, order)],
            self.means[order],
            self.covariances[order],
        )


def densities(markov: Markov, values: Array) -> Array:
    """Logarithm of each state's density at each reading, [t, k]."""
    columns = []
    for mean, covariance in zip(markov.means, markov.covariances, strict=True):
        root = np.linalg.cholesky(covariance)
        off = np.linalg.solve(root, (values - mean).T)
        size = values.shape[1] * np.log(2 * np.pi) + 2 * np.log(np.diag(root)).sum()
        columns.append(-0.5 * ((off**2).sum(axis=0) + size))
    return np.stack(columns, axis=1)


def forward(markov: Markov, values: Array) -> tuple[Array, Array]:
    """Probability of each state given the readings so far [t, k], and the predictive log-density [t]."""
    logs = densities(markov, values)
    prior, posteriors, surprises = markov.start, [], []
    for row in logs:
        top = row.max()
        joint = prior * np.exp(row - top)
        total = joint.sum()
        if total <= 0:  # what the last state rules out happened all the same
            joint, total = np.exp(row - top), np.exp(row - top).sum()
            surprises.append(-np.inf)
        else:
            surprises.append(np.log(total) + top)
        posteriors.append(joint / total)
        prior = posteriors[-1] @ markov.transitions
    return np.stack(posteriors), np.array(surprises)
