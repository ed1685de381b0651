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
    rank counts s_i > max(N, D) * eps * s_1, with the features' own eps, at most float32's;
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
    if features.dim() != 2 or 0 in features.shape:
        raise ValueError(f"indicators want features [N, D], got {list(features.shape)}")
    precision = torch.finfo(features.dtype if features.is_floating_point() else torch.float32)
    resolution = max(features.shape) * min(precision.eps, torch.finfo(torch.float32).eps)
    values = torch.linalg.svdvals(_finite(features.detach().double()))
    largest = values[0]
    if largest == 0:
        return {"rank": 0} | dict.fromkeys(RATIOS, 0.0)
    relative = values / largest
    share = relative / relative.sum()
    stable_rank = float(relative.square().sum())
    return {
        "rank": int((relative > resolution).sum()),
        "stable_rank": stable_rank,
        "normalized_stable_rank": stable_rank / features.shape[1],
        "effective_rank": float(torch.exp(-torch.special.xlogy(share, share).sum())),
    }


def centred_indicators(features: dict[str, Tensor]) -> dict[str, float]:
    """Return `<name>/<indicator>` of each [N, D] of `features`, centred over its samples.

    The convention of the training log and of `examples.collapse`: a common offset of all images,
    as every ReLU makes, says nothing about how many dimensions tell them apart.
    """
    indicators = {}
    for name, x in features.items():
        wide = x.detach().double()  # equal samples become zero, not rounding
        centred = (wide - wide.mean(0)).to(x.dtype)
        for indicator, value in spectrum_indicators(centred).items():
            indicators[f"{name}/{indicator}"] = value
    return indicators


def _finite(features: Tensor) -> Tensor:
    bad = int((~features.isfinite()).sum())
    if bad:
        raise ValueError(
            f"indicators need finite features, got {bad} of {features.numel()} entries NaN or "
            f"infinite; the training diverged before this point"
        )
    return features
