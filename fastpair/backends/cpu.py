"""The C++ kernels of csrc/cpu: operators of ``torch.ops.fastpair`` that take the fields of a call one by one."""

from __future__ import annotations

import torch

pair_loss = torch.ops.fastpair.pair_loss.default
labelled_pair_loss = torch.ops.fastpair.labelled_pair_loss.default
listed_pair_loss = torch.ops.fastpair.listed_pair_loss.default
prefix_pair_loss = torch.ops.fastpair.prefix_pair_loss.default
linear_cross_entropy = torch.ops.fastpair.linear_cross_entropy.default
spce = torch.ops.fastpair.spce.default
pairwise_distance = torch.ops.fastpair.pairwise_distance.default
pairwise_distance_backward = torch.ops.fastpair.pairwise_distance_backward.default
