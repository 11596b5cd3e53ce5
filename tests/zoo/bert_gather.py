import torch
from torch import nn


class BERT(nn.Module):
    """Logits at the places that masked_pos (B, M) names, and a next-sentence head beside them."""

    def __init__(self, vocab_size=77, d_model=32, max_len=40, n_segments=2):
        super().__init__()
        self.tok_embed = nn.Embedding(vocab_size, d_model)
        self.pos_embed = nn.Embedding(max_len, d_model)
        self.seg_embed = nn.Embedding(n_segments, d_model)
        self.layer = nn.TransformerEncoderLayer(d_model, 4, 64, 0.1, batch_first=True)
        self.fc = nn.Linear(d_model, d_model)
        self.classifier = nn.Linear(d_model, 2)
        self.decoder = nn.Linear(d_model, vocab_size)

    def forward(self, input_ids, segment_ids, masked_pos):
        pos = torch.arange(input_ids.size(1), device=input_ids.device)
        x = self.layer(self.tok_embed(input_ids) + self.pos_embed(pos) + self.seg_embed(segment_ids))
        logits_clsf = self.classifier(torch.tanh(self.fc(x[:, 0])))
        at = masked_pos[:, :, None].expand(-1, -1, x.size(-1))
        logits_lm = self.decoder(torch.gather(x, 1, at))
        return logits_lm, logits_clsf
