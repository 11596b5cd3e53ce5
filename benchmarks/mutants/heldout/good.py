"""Right models, each in another style; good_models() names them."""
import importlib.util, math, sys
from pathlib import Path
import torch, torch.nn as nn, torch.nn.functional as F
V, D, H, T = 100, 32, 4, 32
def _host(name, cls):
    def make():
        spec = importlib.util.spec_from_file_location("held_" + name, Path(__file__).parent / "hosts" / f"{name}.py")
        m = importlib.util.module_from_spec(spec); sys.modules[spec.name] = m; spec.loader.exec_module(m)
        return getattr(m, cls)()
    return make
def rope(x):
    t, d = x.shape[-2:]; f = 10000.0 ** (-torch.arange(0, d, 2, device=x.device, dtype=x.dtype) / d)
    a = torch.arange(t, device=x.device, dtype=x.dtype)[:, None] * f
    return torch.stack([x[..., ::2] * a.cos() - x[..., 1::2] * a.sin(), x[..., ::2] * a.sin() + x[..., 1::2] * a.cos()], -1).flatten(-2)
class Att(nn.Module):
    def __init__(self, kv=H, rot=False, window=None, rel=False):
        super().__init__(); self.kv, self.rot, self.window = kv, rot, window; d = D // H
        self.q, self.k, self.v, self.o = nn.Linear(D, D), nn.Linear(D, kv * d), nn.Linear(D, kv * d), nn.Linear(D, D)
        self.rel = nn.Embedding(T, H) if rel else None
    def forward(self, x):
        b, t, _ = x.shape; q, k, v = (f(x).view(b, t, -1, D // H).transpose(1, 2) for f in (self.q, self.k, self.v))
        if self.rot: q, k = rope(q), rope(k)
        k, v = (z.repeat_interleave(H // self.kv, 1) for z in (k, v))
        s = q @ k.transpose(-1, -2) / math.sqrt(D // H); i = torch.arange(t, device=x.device); gap = i[:, None] - i
        if self.rel is not None: s = s + self.rel(gap.clamp(min=0)).permute(2, 0, 1)
        hide = gap < 0
        if self.window: hide = hide | (gap >= self.window)
        return self.o((s.masked_fill(hide, float("-inf")).softmax(-1) @ v).transpose(1, 2).reshape(b, t, D))
class TCN(nn.Module):
    def __init__(self, dil=1): super().__init__(); self.d = dil; self.c = nn.Conv1d(D, D, 3, dilation=dil)
    def forward(self, x): return self.c(F.pad(x.transpose(1, 2), (2 * self.d, 0))).transpose(1, 2)
class Recurrence(nn.Module):
    def __init__(self): super().__init__(); self.i, self.o, self.a = nn.Linear(D, D), nn.Linear(D, D), nn.Parameter(torch.linspace(0, 3, D))
    def forward(self, x):
        u, a, h, out = self.i(x), self.a.sigmoid(), 0, []
        for t in range(x.size(1)): h = a * h + (1 - a) * u[:, t]; out.append(h)
        return self.o(torch.stack(out, 1))
class Triangle(nn.Module):
    def __init__(self): super().__init__(); self.w = nn.Parameter(torch.randn(T, T) / T ** .5); self.o = nn.Linear(D, D)
    def forward(self, x): t = x.size(1); return self.o(self.w[:t, :t].tril() @ x)
class Shift(nn.Module):
    def __init__(self): super().__init__(); self.mu = nn.Parameter(torch.full((D,), .5)); self.k, self.v = nn.Linear(D, 2 * D), nn.Linear(2 * D, D)
    def forward(self, x): p = F.pad(x, (0, 0, 1, -1)); return self.v(self.k(x * self.mu + p * (1 - self.mu)).relu() ** 2)
class Block(nn.Module):
    def __init__(self, mix, style="pre"):
        super().__init__(); self.mix, self.style = mix, style; self.n = nn.ModuleList([nn.LayerNorm(D) for _ in range(4 if style == "sandwich" else 2)])
        self.ff = nn.Sequential(nn.Linear(D, 4 * D), nn.GELU(), nn.Linear(4 * D, D))
    def forward(self, x):
        n = self.n
        if self.style == "parallel": return x + self.mix(n[0](x)) + self.ff(n[1](x))
        if self.style == "post": x = n[0](x + self.mix(x)); return n[1](x + self.ff(x))
        if self.style == "sandwich": x = x + n[2](self.mix(n[0](x))); return x + n[3](self.ff(n[1](x)))
        x = x + self.mix(n[0](x)); return x + self.ff(n[1](x))
class LM(nn.Module):
    def __init__(self, mixes, style="pre", pos=False, repeat=1, factor=None):
        super().__init__(); e = factor or D; self.emb = nn.Embedding(V, e); self.up = nn.Linear(e, D) if factor else None
        self.pos = nn.Embedding(T, D) if pos else None; self.blocks = nn.ModuleList([Block(m, style) for m in mixes]); self.repeat = repeat
        self.norm = nn.LayerNorm(D); self.down = nn.Linear(D, e) if factor else None; self.head = nn.Linear(e, V, bias=False)
        nn.init.normal_(self.emb.weight, std=.05); nn.init.normal_(self.head.weight, std=.02)
        if pos: nn.init.normal_(self.pos.weight, std=.05)
        if factor: self.head.weight = self.emb.weight
    def forward(self, ids):
        if ids.size(1) > T: raise ValueError("too long")
        x = self.emb(ids)
        if self.up is not None: x = self.up(x)
        if self.pos is not None: x = x + self.pos(torch.arange(ids.size(1), device=ids.device))
        for _ in range(self.repeat):
            for b in self.blocks: x = b(x)
        x = self.norm(x)
        return self.head(x if self.down is None else self.down(x))
class GRULM(nn.Module):
    def __init__(self):
        super().__init__(); self.e = nn.Embedding(V, D); self.g = nn.GRU(D, 48, 2, batch_first=True); self.h = nn.Linear(48, V)
    def forward(self, ids): return self.h(self.g(self.e(ids))[0])
class Classifier(nn.Module):
    def __init__(self):
        super().__init__(); self.e, self.p = nn.Embedding(V, D), nn.Embedding(T, D); self.h = nn.Linear(D, 3)
        self.enc = nn.TransformerEncoder(nn.TransformerEncoderLayer(D, H, 64, .1, batch_first=True, norm_first=True), 2, enable_nested_tensor=False)
    def forward(self, ids): return self.h(self.enc(self.e(ids) + self.p(torch.arange(ids.size(1), device=ids.device))).mean(1))
def good_models():
    lm = lambda f, n=2, **k: lambda: LM([f() for _ in range(n)], **k)
    return {"gpt_sdpa": _host("gpt_sdpa", "GPT"), "bert": _host("bert", "BertForMaskedLM"), "nmt": _host("nmt", "Seq2Seq"), "alibi_moe": _host("alibi_moe", "Model"),
            "parallel": lm(Att, style="parallel", pos=True), "post-norm": lm(Att, style="post", pos=True), "nope": lm(Att), "sandwich": lm(Att, style="sandwich", pos=True),
            "gqa rope interleaved": lm(lambda: Att(kv=2, rot=True)), "sliding window": lm(lambda: Att(window=8), pos=True), "t5 bias": lm(lambda: Att(rel=True)),
            "gru": GRULM, "linear recurrence": lm(Recurrence), "tcn": lambda: LM([TCN(1), TCN(2), TCN(4)]), "classifier": Classifier,
            "albert-like (declared)": lm(Att, n=1, pos=True, repeat=3), "token shift": lambda: LM([Block(Shift()), Recurrence()]), "multi-query": lm(lambda: Att(kv=1), pos=True),
            "causal mixer": lm(Triangle), "factorised tied": lm(Att, pos=True, factor=16)}
if __name__ == "__main__":
    for n, f in good_models().items():
        torch.manual_seed(0); m = f().eval(); x = torch.randint(1, 90, (3, 12)); a = (x,) if n != "nmt" else (torch.randint(1, 90, (3, 9)), x); y = m(*a); r = ""
        if n not in ("bert", "classifier"):
            z = x.clone(); z[:, 8:] = 5; r = "causal" if torch.allclose(m(*a[:-1], z)[:, :8], y[:, :8], atol=1e-5) else "LEAKS"
        p = sum(q.numel() for q in m.parameters()); c = y.size(-1)
        l = F.cross_entropy(y.reshape(-1, c), torch.randint(0, c, y.shape[:-1]).reshape(-1)).item() - math.log(c)
        ok = torch.allclose(m(*(q[1:2] for q in a)), y[1:2], atol=1e-5)
        F.cross_entropy(y.reshape(-1, c), torch.randint(0, c, y.shape[:-1]).reshape(-1)).backward()
        dead = [k for k, q in m.named_parameters() if q.grad is None]
        print(f"{n:24} params {p} loss-lnV {l:+.2f} rows {ok} {r} {dead}", "BAD" if abs(l) > .7 or not ok or dead or p > 3e5 or r == "LEAKS" else "")
