"""Indicators of dimensional collapse, read from the singular values of a feature matrix.

Legend: N samples, D dimensions. Used on encoding, embedding and whitened output, as in
"An Investigation into Whitening Loss" (Weng et al., arXiv 2210.03586, section 3).
"""

from __future__ import annotations

import torch
from torch import Tensor

RATIOS = ("stable_rank", "normalized_stable_rank", "effective_rank")


def spectrum_indicators(features: Tensor) -> dict[str, float]:
    """Return the ranks of `features` [N, D], as they are (not centred).

    With singular values s_1 >= s_2 >= ...:
    rank counts s_i > max(N, D) * eps * s_1, with float32's eps whatever the features' type;
    stable rank is sum(s_i^2) / s_1^2, in [1, rank]; normalised by D it is in (0, 1] (Weng et al.,
    arXiv 2210.03586, section 3);
    effective rank is exp(entropy of s_i / sum(s)) (Roy and Vetterli, 2007), in [1, rank].
    All are 0 for a zero matrix.

    Args:
        features: matrix [N samples, D dimensions], of any dtype, on any device.

    Returns:
        The keys `rank`, `stable_rank`, `normalized_stable_rank` and `effective_rank`.

    Raises:
        ValueError: if `features` is not a non-empty matrix, or has non-finite entries.

    Example:
        >>> ranks = spectrum_indicators(torch.diag(torch.tensor([2.0, 2.0, 1.0, 0.0])))
        >>> for name, value in ranks.items():
        ...     print(name, round(value, 4))
        rank 3
        stable_rank 2.25
        normalized_stable_rank 0.5625
        effective_rank 2.8717
    """
    return _indicators([features])[0]


def centred_indicators(features: dict[str, Tensor]) -> dict[str, float]:
    """Return `<name>/<indicator>` of each [N, D] of `features`, centred over its samples.

    The convention of the training log and of `examples.collapse`: a common offset of all images,
    as every ReLU makes, says nothing about how many dimensions tell them apart.
    """
    centred = []
    for x in features.values():
        wide = x.detach().double()  # equal samples become zero, not rounding
        centred.append((wide - wide.mean(0)).to(x.dtype))
    indicators = zip(features, _indicators(centred), strict=True)
    return {f"{name}/{key}": value for name, keys in indicators for key, value in keys.items()}


def _indicators(matrices: list[Tensor]) -> list[dict[str, float]]:
    """Return the indicators of each of `matrices` [N, D]; a GPU is read once for all of them.

    From the eigenvalues of the smaller Gram matrix, made in float64 where the features are and
    solved on the CPU: values below 1e-8 of the largest are rounding, far below `resolution`.
    """
    grams = []
    for features in matrices:
        if features.dim() != 2 or 0 in features.shape:
            raise ValueError(f"indicators want features [N, D], got {list(features.shape)}")
        wide = features.detach().double()
        x = wide / wide.abs().amax().clamp(min=torch.finfo(wide.dtype).tiny)
        grams.append(x @ x.mT if len(x) < x.shape[1] else x.mT @ x)
    values = torch.cat([gram.flatten() for gram in grams]).cpu()
    parts = torch.split(values, [gram.numel() for gram in grams])
    return [
        _of_gram(part.view_as(gram), features)
        for part, gram, features in zip(parts, grams, matrices, strict=True)
    ]


def _of_gram(gram: Tensor, features: Tensor) -> dict[str, float]:
    if not gram.isfinite().all():
        bad = int((~features.isfinite()).sum())
        raise ValueError(
            f"indicators need finite features, got {bad} of {features.numel()} entries NaN or "
            f"infinite; the training diverged before this point"
        )
    values = torch.linalg.eigvalsh(gram).clamp(min=0).sqrt()
    largest = values[-1]
    if largest == 0:
        return {"rank": 0} | dict.fromkeys(RATIOS, 0.0)
    resolution = max(features.shape) * torch.finfo(torch.float32).eps
    relative = values / largest
    share = relative / relative.sum()
    stable_rank = float(relative.square().sum())
    return {
        "rank": int((relative > resolution).sum()),
        "stable_rank": stable_rank,
        "normalized_stable_rank": stable_rank / features.shape[1],
        "effective_rank": float(torch.exp(-torch.special.xlogy(share, share).sum())),
    }
