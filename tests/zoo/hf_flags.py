"""The long signature of library models: masks, positions, caches, flags, all with defaults; a tuple unless return_dict."""

import torch
from torch import nn


class Output(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None


class LibraryStyleForCausalLM(nn.Module):
    def __init__(self, vocab_size=92, hidden_size=32):
        super().__init__()
        self.wte = nn.Embedding(vocab_size, hidden_size)
        self.wpe = nn.Embedding(64, hidden_size)
        self.attn = nn.MultiheadAttention(hidden_size, 4, batch_first=True)
        self.ln_f = nn.LayerNorm(hidden_size)
        self.lm_head = nn.Linear(hidden_size, vocab_size, bias=False)

    def forward(
        self,
        input_ids=None,
        past_key_values=None,
        attention_mask=None,
        position_ids=None,
        inputs_embeds=None,
        labels=None,
        use_cache=None,
        output_hidden_states=None,
        return_dict=None,
    ):
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("give either input_ids or inputs_embeds")
        x = self.wte(input_ids) if inputs_embeds is None else inputs_embeds
        T = x.shape[1]
        if position_ids is None:
            position_ids = torch.arange(T, device=x.device).unsqueeze(0)
        x = x + self.wpe(position_ids)
        hide = None if attention_mask is None else attention_mask == 0
        future = torch.ones(T, T, dtype=torch.bool, device=x.device).triu(1)
        h = self.ln_f(x + self.attn(x, x, x, attn_mask=future, key_padding_mask=hide, need_weights=False)[0])
        logits = self.lm_head(h)
        loss = None
        if labels is not None:
            loss = nn.functional.cross_entropy(logits[:, :-1].flatten(0, 1), labels[:, 1:].flatten())
        if not return_dict:
            return (loss, logits) if loss is not None else (logits,)
        return Output(loss=loss, logits=logits, hidden_states=(h,) if output_hidden_states else None)
