import torch


def attention(q, k, v):
    return torch.softmax(q @ k.mT, -1) @ v


def forward(ids):
    return ids.float()
