"""Causal convolutions whose output stays channels-first: (B, V, T)."""

import torch
import torch.nn.functional as F
from torch import nn


class CausalConv(nn.Module):
    def __init__(self, channels, dilation):
        super().__init__()
        self.left = 2 * dilation
        self.conv = nn.Conv1d(channels, channels, 3, dilation=dilation)

    def forward(self, x):
        return x + torch.relu(self.conv(F.pad(x, (self.left, 0))))


class TemporalConvNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(48, 20)
        self.net = nn.Sequential(*(CausalConv(20, 2**i) for i in range(3)))
        self.out = nn.Conv1d(20, 48, 1)

    def forward(self, x):
        return self.out(self.net(self.embedding(x).transpose(1, 2)))
