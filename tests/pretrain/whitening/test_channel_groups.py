"""Channels in groups and in orders of their own."""

import torch

from pretrain.whitening import whiten
from pretrain.whitening.channel_groups import ChannelGroups

D64 = torch.float64


def test_every_leading_index_is_whitened_by_itself(features):
    x = features(2, 3, 20, 8)
    partition = torch.stack([torch.randperm(8) for _ in range(6)]).view(2, 3, 8)
    y = whiten(x, over="batch", method="cholesky", groups=2, partition=partition)
    alone = whiten(x[1, 2], over="batch", method="cholesky", groups=2, partition=partition[1, 2])
    torch.testing.assert_close(y[1, 2], alone)


def test_partition_of_one_group_changes_nothing_for_zca_and_undone_order_is_the_input_order(
    features,
):
    x, order = features(12, 36), torch.randperm(36)
    torch.testing.assert_close(
        whiten(x, over="channels", method="zca", partition=order),
        whiten(x, over="channels", method="zca"),
    )
    two = whiten(x, over="channels", method="zca", groups=2, partition=order)
    by_hand = whiten(x[:, order], over="channels", method="zca", groups=2)
    torch.testing.assert_close(two[:, order], by_hand)


def test_transposed_samples_are_new_memory_rows_first():
    for x in (torch.rand(3, 70, 65), torch.rand(3, 65, 70).mT, torch.rand(2, 4, 1)):
        transposed, before = ChannelGroups("channels", 2).transpose(x), x.clone()
        assert transposed.is_contiguous() and torch.equal(transposed, x.mT)
        transposed.zero_()
        assert torch.equal(x, before)
