"""(input_ids, labels): the labels are shifted right inside, a start token in front, to make the decoder's input."""

import torch
from torch import nn


class T5Like(nn.Module):
    def __init__(self, vocab_size=76, d_model=32, decoder_start_token_id=0):
        super().__init__()
        self.decoder_start_token_id = decoder_start_token_id
        self.shared = nn.Embedding(vocab_size, d_model)
        self.position = nn.Embedding(64, d_model)
        self.encoder = nn.TransformerEncoderLayer(d_model, 4, 64, dropout=0.1, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(d_model, 4, 64, dropout=0.1, batch_first=True)
        self.lm_head = nn.Linear(d_model, vocab_size, bias=False)

    def _shift_right(self, labels):
        shifted = labels.new_zeros(labels.shape)
        shifted[..., 1:] = labels[..., :-1].clone()
        shifted[..., 0] = self.decoder_start_token_id
        return shifted.masked_fill(shifted == -100, 0)

    def embed(self, ids):
        return self.shared(ids) + self.position.weight[: ids.size(1)]

    def forward(self, input_ids, labels):
        memory = self.encoder(self.embed(input_ids))
        S = labels.size(1)
        mask = torch.ones(S, S, dtype=torch.bool, device=labels.device).triu(1)
        logits = self.lm_head(self.decoder(self.embed(self._shift_right(labels)), memory, tgt_mask=mask))
        loss = nn.functional.cross_entropy(logits.view(-1, logits.size(-1)), labels.view(-1), ignore_index=-100)
        return {"loss": loss, "logits": logits}
