"""Classes as their mean features, and as Gaussians: nothing here is trained, and no row is kept."""

import torch
from torch.nn import functional

UNSEEN = -torch.inf  # the score of a class without rows: it never wins


def class_means(features: torch.Tensor, labels: torch.Tensor, classes: int) -> torch.Tensor:
    """The mean feature of every class, its prototype (classes, d) fp32; nan where a class has no row.

    Args:
        features: (rows, d) fp32; labels: class ids (rows,).
    """
    means = torch.full((classes, features.shape[1]), torch.nan)
    for label in labels.unique().tolist():
        means[label] = features[labels == label].double().mean(0).float()
    return means


def cosines(features: torch.Tensor, prototypes: torch.Tensor) -> torch.Tensor:
    """Scores (rows, classes) of a cosine classifier (SimpleCIL, Zhou et al. 2023, arXiv 2303.07338).

    Args:
        features: (rows, d); prototypes: (classes, d), nan for classes that were not seen, whose score is -inf.
    """
    scores = functional.normalize(features, dim=1) @ functional.normalize(prototypes, dim=1).T
    return scores.masked_fill(prototypes.isnan().any(1), UNSEEN)


def gaussian(features: torch.Tensor, ridge: float, full: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean (d,) and covariance of a class's features, whose diagonal has `ridge` more; of one row it is that alone.

    Args:
        features: (rows, d) of one class.
        full: the covariance is (d, d); else the variances alone, (d,).
    """
    rows = features.double()
    mean = rows.mean(0)
    centred = rows - mean
    freedom = max(1, len(rows) - 1)
    if full:
        covariance = centred.T @ centred / freedom + ridge * torch.eye(rows.shape[1], dtype=rows.dtype)
    else:
        covariance = (centred**2).sum(0) / freedom + ridge
    return mean.float(), covariance.float()


def root(covariance: torch.Tensor) -> torch.Tensor:
    """R with R R' = covariance, of the same shape; a covariance of fewer rows than features has one, too."""
    if covariance.ndim == 1:
        return covariance.clamp(min=0).sqrt()
    values, vectors = torch.linalg.eigh(covariance.double())
    return (vectors * values.clamp(min=0).sqrt()).float()


def samples(mean: torch.Tensor, of_root: torch.Tensor, count: int, random: torch.Generator) -> torch.Tensor:
    """Features (count, d) drawn from N(mean, R R').

    Args:
        mean: (d,); of_root: R, (d, d) or the standard deviations (d,).
    """
    drawn = torch.randn(count, len(mean), generator=random)
    return mean + (drawn @ of_root.T if of_root.ndim == 2 else drawn * of_root)
