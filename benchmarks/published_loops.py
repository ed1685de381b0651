"""The whitening losses operation by operation as their authors' code runs them: the yardstick.

Legend: V views, N batch, D embedding dimension, n sub-batch.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

from pretrain.config.loss import LossConfig


def plain_whiten(x: Tensor, config: LossConfig, order: list[int] | None = None) -> Tensor:
    """Return `x` [n, D] whitened with the published operations, see `plain_loss`.

    Groups take the channels in `order`; None leaves them as they are.
    """
    return _PLAIN_WHITENINGS[str(config.over)](x, config, order)


def _plain_batch_whiten(x: Tensor, config: LossConfig, order: list[int] | None) -> Tensor:
    """Return `x` whitened over its samples as W-MSE's code does: L⁻¹ as a 1 x 1 convolution."""
    assert config.groups == 1 and order is None and config.method == "cholesky"
    n, D = x.shape
    images = x[:, :, None, None]
    centred = images - images.mean(0, keepdim=True)
    channels = centred.transpose(0, 1).reshape(D, n)
    covariance = channels @ channels.T / (n - 1)
    eye = torch.eye(D, device=x.device)
    factor = torch.linalg.cholesky((1.0 - config.eps) * covariance + config.eps * eye)
    inverse = torch.linalg.solve_triangular(factor, eye, upper=False)
    return nn.functional.conv2d(centred, inverse[:, :, None, None])[:, :, 0, 0]


def _plain_channel_whiten(x: Tensor, config: LossConfig, order: list[int] | None) -> Tensor:
    """Return `x` whitened over its channels as CW-RGP's code does: one SVD for all groups."""
    assert config.method == "zca"
    n, D = x.shape
    order = list(range(D)) if order is None else order
    centred = x - x.mean(1, keepdim=True)
    groups = centred[:, order].reshape(n, config.groups, -1).permute(1, 2, 0)
    covariance = torch.bmm(groups.mT, groups) / (groups.shape[1] - 1)
    eye = torch.eye(n, device=x.device).expand_as(covariance)
    vectors, values, _ = torch.linalg.svd((1.0 - config.eps) * covariance + config.eps * eye)
    weight = torch.bmm(torch.bmm(vectors, torch.diag_embed(values.rsqrt())), vectors.mT)
    white = torch.bmm(groups, weight).permute(2, 0, 1).reshape(n, D)
    return white[:, [order.index(channel) for channel in range(D)]]


_PLAIN_WHITENINGS = {"batch": _plain_batch_whiten, "channels": _plain_channel_whiten}


def plain_loss(x: Tensor, config: LossConfig) -> Tensor:
    """Return the loss of `x` [V, N, D] by the operations of the published loops, one by one.

    It mirrors what the authors' public code computes, in its order, none of its text:

    - W-MSE (github.com/htdt/self-supervised, `methods/w_mse.py`, `methods/whitening.py`): for
      every sub-batch and view a covariance, its Cholesky factor, the explicit inverse of that by a
      triangular solve with I, applied as a 1 x 1 convolution;
    - CW-RGP (github.com/winci-ai/CW-RGP, `base/methods/cwrgp.py`, `base/methods/whitening.py`):
      for every sub-batch and view a random order of the channels, one SVD call for its groups'
      covariances, W from three factors, and the order undone by a search for every channel;
    - both (`norm_mse_loss`): every pair of views normalises its two anew, 2 - 2 cosines.
    """
    V, N, D = x.shape
    assert config.sub_batch is not None
    white = torch.empty_like(x)
    for rows in torch.randperm(N, device=x.device).view(-1, config.sub_batch):
        for view in range(V):
            order = torch.randperm(D).tolist() if config.random_partition else None
            white[view, rows] = plain_whiten(x[view, rows], config, order)
    normalize = partial(nn.functional.normalize, dim=-1)
    pairs = [(normalize(white[i]), normalize(white[j])) for i in range(V) for j in range(i)]
    return torch.stack([2.0 - 2.0 * (a * b).sum(-1).mean() for a, b in pairs]).mean()
