"""What a module holds and gives that is found before anything is trained."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from anyformer import api
from anyformer.checks import CheckResult, run_all_tier1_tests, run_checks
from anyformer.checks.text import verdict
from anyformer.core.errors import SettingsError, SourceError
from anyformer.models.callplan import infer_call_plan
from tests.checks.hosts import GPT, POSITIONS, Attention, Block, D, V


def found(module: nn.Module, name: str) -> CheckResult:
    (result,) = [r for r in run_checks(module, only=(name,)).results if r.name == name]
    return result


class Shared(Block):
    def __init__(self) -> None:
        super().__init__()
        self.after = self.before


class Twice(GPT):
    def stack(self) -> nn.ModuleList:
        return nn.ModuleList(Shared() for _ in range(2))


class Functional(GPT):
    rate = 1.0

    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return F.dropout(tokens + places, self.rate, self.training)


class Milder(Functional):
    rate = 0.1


class OnTheCpu(GPT):
    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return tokens + places.cpu().to(tokens.device)


device = torch.device("cuda" if torch.cuda.is_available() else "cpu")


class OnTheFilesDevice(GPT):
    """As scripts have it: the file chooses a device once."""

    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return tokens + self.positions(torch.arange(tokens.shape[1], device=device))


class Halved(GPT):
    def added(self, tokens: Tensor, places: Tensor) -> Tensor:
        return (tokens + places).half().to(tokens.dtype)


class DividedInPlace(Attention):
    def scores(self, q: Tensor, k: Tensor) -> Tensor:
        scores = q @ k.transpose(-2, -1)
        scores /= q.shape[-1] ** 0.5
        return scores


class InPlace(GPT):
    attention = DividedInPlace


class Silent(GPT):
    def __init__(self) -> None:
        super().__init__()
        for part in self.modules():
            if isinstance(part, nn.LayerNorm):
                nn.init.zeros_(part.weight)


class LastOfABranch(GPT):
    """One norm begins at 0, as the last of a branch may."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.zeros_(self.blocks[0].after.weight)


class OverTime(GPT):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(ids).softmax(1)


class Capped(GPT):
    """A soft cap that gives no logit below 0."""

    def forward(self, ids: Tensor) -> Tensor:
        return 30 * torch.sigmoid(super().forward(ids) / 7.5)


@pytest.mark.parametrize(
    ("make", "name", "expected", "says"),
    [
        (Twice, "tied weights", "warn", "one and the same: blocks.0.before = blocks.0.after"),
        (GPT, "tied weights", "note", "tokens.weight = head.weight"),
        (Functional, "dropout", "fail", "drops 100%"),
        (Milder, "dropout", "ok", "up to 10%"),
        (OnTheCpu, "device", "warn", "a tensor on the CPU meets those elsewhere"),
        (OnTheFilesDevice, "device", "note", "made on device, which its file chooses once"),
        (InPlace, "attention scale", "ok", ""),
        (GPT, "device", "ok", "every tensor moves with the module"),
        (Halved, "float64", "warn", "numbers are rounded to half precision"),
        (GPT, "float64", "ok", ""),
        (Silent, "initial weights", "warn", "5 norms give 0, whatever they read"),
        (LastOfABranch, "initial weights", "ok", ""),
        (OverTime, "output", "fail", "a softmax over time"),
        (Capped, "output", "ok", "raw logits"),
    ],
)
def test_it_is_told(make: Callable[[], nn.Module], name: str, expected: str, says: str) -> None:
    result = found(make(), name)
    assert (result.verdict, says in result.measured) == (expected, True), result.measured


class Own(GPT):
    """Its own loss, with a gradient or without."""

    def __init__(self, cut: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.cut = cut

    def forward(self, ids: Tensor, targets: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        logits = super().forward(ids)
        if targets is None:
            return logits, None
        return logits, self.cut(F.cross_entropy(logits.flatten(0, 1), targets.flatten()))


@pytest.mark.parametrize(
    ("cut", "verdict"),
    [
        (lambda loss: loss, "ok"),
        (lambda loss: loss.detach(), "warn"),
        (lambda loss: torch.tensor(loss.item(), requires_grad=True), "warn"),
    ],
)
def test_a_loss_of_its_own_without_a_gradient(cut: Callable[[Tensor], Tensor], verdict: str) -> None:
    (result,) = [r for r in run_checks(Own(cut), only=()).results if r.name == "own loss"]
    assert result.verdict == verdict
    assert ("has no gradient" in result.measured) == (verdict == "warn")


class Cut(GPT):
    def forward(self, ids: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.added(self.tokens(ids), self.positions(self.places(ids)))
            for block in self.blocks:
                x = block(x)
        return self.head(self.norm(x))


def test_what_no_grad_cuts_off_is_told_from_what_takes_no_part() -> None:
    (result,) = [r for r in run_checks(Cut(), only=()).results if r.name == "parts"]
    assert "move these logits, and get no gradient" in result.measured
    assert "torch.no_grad()" in result.cause


class Broken(GPT):
    """A row of the mask hides everything."""

    def forward(self, ids: Tensor) -> Tensor:
        hidden = torch.full((ids.shape[1], V), -torch.inf)
        return super().forward(ids) + self.norm(hidden[:, :D]).softmax(-1).sum()


class Still(GPT):
    def forward(self, ids: Tensor) -> Tensor:
        return super().forward(torch.zeros_like(ids))


@pytest.mark.parametrize(("make", "name", "where"), [(Broken, "finite", "norm (LayerNorm)"), (Still, "past", "")])
def test_a_refused_call_stands_under_the_check_that_shows_why(
    make: Callable[[], nn.Module], name: str, where: str
) -> None:
    report = run_checks(make())
    (cause,) = report.causes
    assert (cause.name, cause.verdict, cause.where, report.blocked) == (name, "fail", where, True)
    (call,) = [r for r in report.results if r.name == "call"]
    assert (call.verdict, call.under) == ("fail", name)


class Translator(nn.Module):
    """What the decoder sees of the source, and whether the source has an order."""

    def __init__(self, placed: bool = True, seen: Callable[[Tensor], Tensor] = lambda memory: memory) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.placed, self.seen = placed, seen
        self.source, self.target, self.places = nn.Embedding(V, D), nn.Embedding(V, D), nn.Embedding(POSITIONS, D)
        self.encoder = nn.TransformerEncoderLayer(D, 2, 2 * D, 0.0, batch_first=True)
        self.decoder = nn.TransformerDecoderLayer(D, 2, 2 * D, 0.0, batch_first=True)
        self.head = nn.Linear(D, V)

    def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
        here, there = (self.places(torch.arange(x.shape[1], device=x.device)) for x in (src, tgt))
        memory = self.encoder(self.source(src) + (here if self.placed else 0))
        past = torch.ones(tgt.shape[1], tgt.shape[1], dtype=torch.bool, device=tgt.device).triu(1)
        return self.head(self.decoder(self.target(tgt) + there, self.seen(memory), tgt_mask=past))


@pytest.mark.parametrize(
    ("module", "name", "verdict", "says"),
    [
        (lambda: Translator(placed=False), "positions", "warn", "the source in reverse gives the same"),
        (lambda: Translator(), "positions", "ok", ""),
        (lambda: Translator(seen=lambda m: m[:, :1]), "source", "warn", "to one place of the source alone"),
        (lambda: Translator(), "source", "ok", "none of it hidden"),
    ],
)
def test_a_source_has_an_order_and_more_than_one_place(
    module: Callable[[], nn.Module], name: str, verdict: str, says: str
) -> None:
    result = found(module(), name)
    assert (result.verdict, says in result.measured) == (verdict, True), result.measured


def test_a_source_that_nothing_reads_is_told_as_that() -> None:
    class Swapped(Translator):
        def forward(self, src: Tensor, tgt: Tensor) -> Tensor:
            return super().forward(tgt, tgt)

    (cause,) = run_checks(Swapped()).causes
    assert (cause.name, cause.verdict) == ("source", "fail")


class Pooled(nn.Module):
    """A classifier that hides one id, and embeds another as padding."""

    def __init__(self, hides: int, pool: str = "mean") -> None:
        super().__init__()
        torch.manual_seed(0)
        self.hides, self.pool = hides, pool
        self.words, self.out = nn.Embedding(V, D, padding_idx=0), nn.Linear(D, 3)

    def forward(self, ids: Tensor) -> Tensor:
        keep = (ids != self.hides)[..., None]
        x = self.words(ids).cumsum(1) * keep
        if self.pool == "max":
            return self.out(x.amax(1))
        return self.out(x.sum(1) / keep.sum(1).clamp(min=1))


@pytest.mark.parametrize(
    ("module", "verdict", "says"),
    [
        (lambda: Pooled(0), "ok", "tokens of id 0"),
        (lambda: Pooled(1), "warn", "it looks for id 1, its embedding's padding is id 0"),
        (lambda: Pooled(0, "max"), "warn", "such tokens behind the end move the logits"),
    ],
)
def test_padding_of_a_classifier(module: Callable[[], nn.Module], verdict: str, says: str) -> None:
    result = found(module(), "padding")
    assert (result.verdict, says in result.measured) == (verdict, True), result.measured


def test_a_block_that_passes_on_the_norm_of_its_input() -> None:
    class Normed(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x)
            x = x + self.attention(x)
            return x + self.mlp(self.after(x))

    class Post(Block):
        def forward(self, x: Tensor) -> Tensor:
            x = self.before(x + self.attention(x))
            return self.after(x + self.mlp(x))

    def model(block: type[nn.Module]) -> nn.Module:
        return type("Model", (GPT,), {"stack": lambda self: nn.ModuleList(block() for _ in range(2))})()

    assert "through the norm itself" in found(model(Normed), "residual").measured
    assert found(model(Post), "residual").verdict == found(model(Block), "residual").verdict == "ok"


def test_what_draws_is_named_not_what_stands_behind_it() -> None:
    class Drawing(Block):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(F.dropout(x, 0.5))

    class Model(GPT):
        def stack(self) -> nn.ModuleList:
            return nn.ModuleList([Block(), Drawing()])

    report = run_checks(Model(), tiers=(1,))
    (cause,) = [c for c in report.causes if c.name == "repeat"]
    assert "first in blocks.1 (Drawing)" in cause.cause
    assert not report.blocked
    assert all(r.verdict != "fail" for r in report.results)


def test_doors_of_python() -> None:
    assert {result.tier for result in api.check(GPT(), tier=0).results} == {0}
    with pytest.raises(SourceError, match="GPT is a class, not a module"):
        api.check(GPT)  # type: ignore[arg-type]
    with pytest.raises(SettingsError, match="config is 5"):
        run_all_tier1_tests(GPT(), 5)
    assert verdict(run_checks(GPT(), only=("source",)))[1] == "nothing was checked"


def test_a_state_of_the_last_call_alone_is_no_chance() -> None:
    class Remembering(GPT):
        """Adds what it read last to what it reads now."""

        def __init__(self) -> None:
            super().__init__()
            self.last = torch.zeros(1)

        def forward(self, ids: Tensor) -> Tensor:
            before, self.last = self.last, self.tokens(ids).detach().mean((0, 1))
            return super().forward(ids) + before.sum()

    report = run_checks(Remembering(), tiers=(1,))
    assert report.causes[0].name == "state"
    assert report.blocked


def test_a_module_that_hangs_is_not_waited_for_again_and_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from anyformer.checks import runner

    class Hanging(GPT):
        def forward(self, ids: Tensor) -> Tensor:
            if ids.shape[1] in (11, 12):
                time.sleep(30)
            return super().forward(ids)

    plan = infer_call_plan(GPT())
    monkeypatch.setattr(runner, "_SECONDS", 0.2)
    begin = time.monotonic()
    report = run_checks(Hanging(), plan=plan, tiers=(0, 1))
    cut = [r for r in report.results if r.measured.endswith("and cut off")]
    left = [r for r in report.results if r.measured.startswith("not tried: 4 checks took too long")]
    assert (len(cut), len(left) > 10) == (4, True)
    assert time.monotonic() - begin < 20


@pytest.mark.parametrize(
    "change",
    [
        lambda x, p: x.add_(p),
        lambda x, p: x.mul_(5.0) + p,
        lambda x, p: x.masked_fill_(torch.zeros(x.shape, dtype=torch.bool), 0.0) + p,
    ],
)
def test_what_changes_its_embeddings_in_place_is_right(change: Callable[[Tensor, Tensor], Tensor]) -> None:
    class InPlaceSum(GPT):
        def added(self, tokens: Tensor, places: Tensor) -> Tensor:
            return change(tokens, places)

    report = run_checks(InPlaceSum(), only=("gradients", "future gradient"))
    assert not report.causes, report.causes
    assert [r.verdict for r in report.results if r.name in ("gradients", "future gradient")] == ["ok", "ok"]
