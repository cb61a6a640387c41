"""Embeddings in the plane: principal components, and t-SNE where scikit-learn is installed."""

import os
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Plane = NDArray[np.float64]
"""Coordinates, shape (n, 2)."""
_MAX_PERPLEXITY = 30.0
_ITERATIONS = 500
"""Later ones move nothing that one could see, at these sizes."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Components:
    """The plane of most variance of a table.

    Attributes
    ----------
    centre : ndarray, shape (dim,)
    axes : ndarray, shape (dim, 2)
    share : float
        Of the variance that lies in the plane.
    """

    centre: NDArray[np.float64]
    axes: NDArray[np.float64]
    share: float

    def of(self, rows: NDArray[np.float32]) -> Plane:
        """Project rows, shape (n, dim)."""
        plane: Plane = (rows - self.centre) @ self.axes
        return plane


def principal_components(table: NDArray[np.float32]) -> Components:
    """Give a table's first two, each pointing where its largest weight is positive, so that it is unique."""
    centre = table.mean(axis=0, dtype=np.float64)
    centred = table - centre
    variances, vectors = np.linalg.eigh(centred.T @ centred)
    axes = vectors[:, ::-1][:, :2]
    if axes.shape[1] < 2:
        axes = np.pad(axes, ((0, 0), (0, 1)))
    largest = np.abs(axes).argmax(axis=0)
    axes = axes * np.where(axes[largest, [0, 1]] < 0, -1.0, 1.0)
    total = float(variances.sum())
    return Components(
        centre=centre, axes=axes, share=float(variances[-2:].sum()) / total if total > 0 else 0.0
    )


def has_tsne() -> bool:
    """Tell whether scikit-learn is installed."""
    try:
        import sklearn  # noqa: F401, PLC0415 - heavy, and an extra
    except ModuleNotFoundError:
        return False
    return True


def tsne(rows: NDArray[np.float32]) -> Plane:
    """Embed rows by t-SNE, begun from their principal components: the same rows, the same plane."""
    # One thread is used anyway, and where the cores cannot be counted joblib warns.
    os.environ.setdefault("LOKY_MAX_CPU_COUNT", "1")
    from sklearn.manifold import TSNE  # noqa: PLC0415 - heavy, and an extra
    from threadpoolctl import threadpool_limits  # noqa: PLC0415 - comes with scikit-learn

    if rows.shape[1] < 2:
        rows = np.pad(rows, ((0, 0), (0, 1)))
    perplexity = min(_MAX_PERPLEXITY, max(1.0, (len(rows) - 1) / 3))
    embedding = TSNE(
        n_components=2, init="pca", perplexity=perplexity, max_iter=_ITERATIONS, random_state=0, n_jobs=1
    )
    # More threads add up in another order, and on busy cores take many times as long.
    with threadpool_limits(1):
        plane: Plane = embedding.fit_transform(rows.astype(np.float64))
    return plane
