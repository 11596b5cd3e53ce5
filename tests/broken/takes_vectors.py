from torch import nn


class Chat(nn.Module):
    def __init__(self):
        super().__init__()
        self.transformer = nn.Transformer(32, 2, 1, 1, 64)
        self.out = nn.Linear(32, 32)

    def forward(self, src, tgt):
        return self.out(self.transformer(src, tgt))
