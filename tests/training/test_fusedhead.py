"""Head and loss in one, beside float64 computed in one piece. B batch, T time, N = B·T, D width, V vocabulary."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm
from torch.utils.data import DataLoader

from anyformer.models.callplan import CallPlan, infer_call_plan
from anyformer.models.objectives import batch_logits, objective_loss, objective_total
from anyformer.training import UniversalModelAdapter, fusedhead
from anyformer.training.fusedhead import choose_head, fused_loss, fused_total
from anyformer.training.losspath import LossPath

V, D, B, T = 61, 16, 3, 50  # more than one chunk of 128 rows, the last one short


@pytest.fixture(autouse=True)
def fuse_however_small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fusedhead, "FUSE_FROM", 0)


def batch_of(seed: int = 0) -> dict[str, Tensor]:
    ids = torch.randint(0, V, (B, T), generator=torch.Generator().manual_seed(seed))
    labels = ids.clone()
    labels[1, 20:] = -100
    return {"input_ids": ids, "labels": labels, "next_ids": ids[:, 0].clone()}


class Body(nn.Module):
    """A recurrent decoder; what follows its hidden states is each test's own."""

    def __init__(self, bias: bool = False) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.emb = nn.Embedding(V, D)
        self.rnn = nn.GRU(D, D, batch_first=True)
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(D, V, bias=bias)

    def hidden(self, ids: Tensor) -> Tensor:
        return self.drop(self.rnn(self.emb(ids))[0])

    def forward(self, ids: Tensor) -> Any:
        return self.head(self.hidden(ids))


class WithBias(Body):
    def __init__(self) -> None:
        super().__init__(bias=True)


class Tied(Body):
    def __init__(self) -> None:
        super().__init__()
        self.head.weight = self.emb.weight


class TiedByFunction(Body):
    def forward(self, ids: Tensor) -> Any:
        return F.linear(self.hidden(ids), self.emb.weight)


class TiedByProduct(Body):
    def forward(self, ids: Tensor) -> Any:
        return self.hidden(ids) @ self.emb.weight.T


class Flattened(Body):
    def forward(self, ids: Tensor) -> Any:
        x = self.hidden(ids)
        return self.head(x.reshape(-1, D)).view(*ids.shape, V)


class OwnLoss(Body):
    def forward(self, ids: Tensor, targets: Tensor | None = None) -> Any:
        x = self.hidden(ids)
        if targets is None:
            return self.head(x[:, [-1]]), None
        logits = self.head(x)
        return logits, F.cross_entropy(logits.view(-1, V), targets.view(-1))


class Dictionary(Body):
    def forward(self, ids: Tensor) -> Any:
        return {"logits": self.head(self.hidden(ids)).float(), "hidden": None}


FUSED = (Body, WithBias, Tied, TiedByFunction, TiedByProduct, Flattened, OwnLoss, Dictionary)


class SoftCap(Body):
    def forward(self, ids: Tensor) -> Any:
        return 30 * torch.tanh(self.head(self.hidden(ids)) / 30)


class Scaled(Body):
    def forward(self, ids: Tensor) -> Any:
        return self.head(self.hidden(ids)).mul_(0.5)


class Twice(Body):
    def forward(self, ids: Tensor) -> Any:
        x = self.hidden(ids)
        self.head(x * 2)
        return self.head(x)


class ReadsItsLogits(Body):
    def forward(self, ids: Tensor) -> Any:
        logits = self.head(self.hidden(ids))
        self.surest = logits.amax(-1)
        return logits


class Computed(Body):
    def __init__(self) -> None:
        super().__init__()
        self.head = weight_norm(self.head)


class TwoLayers(Body):
    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.Linear(D, V), nn.ReLU())


OFF = {SoftCap: "div", Scaled: "writes into", Twice: "more than once", ReadsItsLogits: "amax"}
OFF |= {Computed: "computed", TwoLayers: "relu"}


def plain_loss(module: nn.Module, plan: CallPlan, batch: dict[str, Tensor], smoothing: float = 0.0) -> Tensor:
    logits = batch_logits(module, plan, batch)
    return objective_loss("causal", logits, batch["labels"], batch["next_ids"], label_smoothing=smoothing)


@pytest.mark.parametrize("cls", FUSED)
def test_a_linear_head_is_fused_with_equal_loss_and_gradients(cls: type[Body]) -> None:
    module, batch = cls(), batch_of()
    plan = infer_call_plan(module)
    before = {name: value.clone() for name, value in module.state_dict().items()}
    head, finding = choose_head(module, plan, "causal", batch, 0.1)
    assert finding.verdict == "ok"
    assert head == ("head.weight" if cls not in (Tied, TiedByFunction, TiedByProduct) else "emb.weight")
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert all(p.grad is None for p in module.parameters())
    gradients, losses = [], []
    for way in ("plain", "fused"):
        torch.manual_seed(5)
        module.train().zero_grad()
        loss = plain_loss(module, plan, batch, 0.1) if way == "plain" else None
        loss = fused_loss(module, plan, "causal", batch, head, 0.1) if loss is None else loss
        assert loss is not None
        loss.backward()
        losses.append(float(loss))
        gradients.append([None if p.grad is None else p.grad.clone() for p in module.parameters()])
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for a, b in zip(*gradients, strict=True):
        if a is None or b is None:
            assert a is b
        else:
            torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-7)
    module.eval()
    total, count = fused_total(module, plan, "causal", batch, head) or (None, None)
    with torch.no_grad():
        expected, number = objective_total(
            "causal", batch_logits(module, plan, batch), batch["labels"], batch["next_ids"]
        )
    assert float(total) == pytest.approx(float(expected), rel=1e-6)  # type: ignore[arg-type]
    assert count == number


@pytest.mark.parametrize("cls", OFF)
def test_where_more_follows_the_head_it_is_left_alone_and_said_why(cls: type[Body]) -> None:
    module, batch = cls(), batch_of()
    head, finding = choose_head(module, infer_call_plan(module), "causal", batch)
    assert head is None
    assert (finding.verdict, finding.measured) == ("note", "off")
    assert OFF[cls] in finding.reason


def test_few_logits_are_computed_in_one_piece(monkeypatch: pytest.MonkeyPatch) -> None:
    module, batch = Body(), batch_of()
    plan = infer_call_plan(module)
    monkeypatch.setattr(fusedhead, "FUSE_FROM", B * T * V + 1)
    assert "few" in choose_head(module, plan, "causal", batch)[1].reason
    monkeypatch.setattr(fusedhead, "FUSE_FROM", B * T * V)
    assert choose_head(module, plan, "causal", batch)[0] == "head.weight"


def test_in_bfloat16_it_is_proven_and_used_there() -> None:
    module, batch = WithBias(), batch_of()
    plan = infer_call_plan(module)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        head, finding = choose_head(module, plan, "causal", batch)
        assert head == "head.weight", finding
        loss = fused_loss(module.eval(), plan, "causal", batch, head)
    assert loss is not None
    loss.backward()
    assert float(loss) == pytest.approx(float(plain_loss(module, plan, batch)), rel=5e-3)
    assert {p.grad.dtype for p in module.parameters() if p.grad is not None} == {torch.float32}


def test_in_float16_the_plain_way_is_taken_by_a_run_that_goes_on_in_it_too() -> None:
    module, batch, path = Body().eval(), batch_of(), LossPath()
    plan = infer_call_plan(module)
    path.resume("head.weight")
    with torch.autocast("cpu", dtype=torch.float16):
        head, finding = choose_head(module, plan, "causal", batch)
        assert (head, finding.measured) == (None, "off")
        assert "float16" in finding.reason
        torch.testing.assert_close(path.loss(module, plan, "causal", batch), plain_loss(module, plan, batch))
    assert path.head == ""


def test_a_checkpoint_from_before_the_first_batch_decides_nothing() -> None:
    module, batch = Body().eval(), batch_of()
    plan = infer_call_plan(module)
    early = LossPath().state_dict()
    going_on = LossPath()
    going_on.load_state_dict(early)
    going_on.loss(module, plan, "causal", batch)
    assert going_on.head == "head.weight"
    plain = LossPath()
    plain.load_state_dict({**early, "fused_head": ""})
    assert plain.head == ""
    del early["fused_head"]
    older = LossPath()
    older.load_state_dict(early)
    assert older.head == ""


class MasksItsColumns(Body):
    def forward(self, ids: Tensor) -> Any:
        columns = torch.arange(V) >= V - 2
        return self.head(self.hidden(ids)).masked_fill_(columns, -1e4)


class MasksInEval(Body):
    def forward(self, ids: Tensor) -> Any:
        logits = self.head(self.hidden(ids))
        return logits if self.training else logits.masked_fill(torch.arange(V) >= V - 20, -1e4)


class Turned(Body):
    def forward(self, ids: Tensor) -> Any:
        return self.head(self.hidden(ids).transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("cls", [MasksItsColumns, MasksInEval, Turned])
@pytest.mark.parametrize("kind", [torch.float32, torch.bfloat16])
def test_what_is_written_into_the_logits_or_done_in_one_mode_is_seen(cls: type[Body], kind: torch.dtype) -> None:
    module, batch = cls().train(), batch_of()
    plan = infer_call_plan(module)
    module.train()
    with torch.autocast("cpu", dtype=kind, enabled=kind != torch.float32):
        assert choose_head(module, plan, "causal", batch)[0] is None
    assert module.training


def test_one_that_fails_with_its_head_left_out_later_is_computed_whole() -> None:
    class Later(Body):
        scales = False

        def forward(self, ids: Tensor) -> Any:
            logits = self.head(self.hidden(ids))
            if self.scales:
                logits /= 0.8
            return logits

    module, batch, path = Later().eval(), batch_of(), LossPath()
    plan = infer_call_plan(module)
    path.loss(module, plan, "causal", batch)
    assert path.head == "head.weight"
    module.scales = True
    total, count = path.total(module, plan, "causal", batch)
    right, number = objective_total("causal", batch_logits(module, plan, batch), batch["labels"], batch["next_ids"])
    torch.testing.assert_close(total, right.detach())
    assert count == number
    assert path.head == ""


def run(module: nn.Module, steps: int, folder: Any, resume: Any = None) -> tuple[UniversalModelAdapter, list[float]]:
    torch.manual_seed(9)
    adapter = UniversalModelAdapter(module, 1e-2, call_plan=infer_call_plan(module), total_steps=8, _proven=True)
    losses: list[float] = []

    class Note(pl.Callback):
        def on_train_batch_end(self, *given: Any) -> None:
            losses.append(float(given[2]["loss"]))

    rows = [{k: v[0] for k, v in batch_of(n).items()} for n in range(16)]
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        callbacks=[Note()],
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
    )
    trainer.fit(adapter, DataLoader(rows, batch_size=2), ckpt_path=resume)  # type: ignore[arg-type]
    trainer.save_checkpoint(folder / "last.ckpt")
    return adapter, losses


def test_a_run_learns_the_same_and_one_that_goes_on_keeps_to_it(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fused, ours = run(Body(), 8, tmp_path)
    assert fused.loss_path.head == "head.weight"
    run(Body(), 3, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(fusedhead, "FUSE_FROM", 1 << 40)  # it would not be chosen now
        plain, theirs = run(Body(), 8, tmp_path / "plain")
        resumed, _ = run(Body(), 8, tmp_path, tmp_path / "last.ckpt")
    assert plain.loss_path.head == ""
    assert ours == pytest.approx(theirs, rel=1e-5)
    assert resumed.loss_path.head == "head.weight"
    assert resumed.loss_path.finding is not None
    assert "began" in resumed.loss_path.finding.reason


def test_a_model_that_changes_its_way_is_computed_whole_from_then_on_and_said() -> None:
    class Warms(Body):
        cap = False

        def forward(self, ids: Tensor) -> Any:
            logits = self.head(self.hidden(ids))
            return 5 * torch.tanh(logits / 5) if self.cap else logits

    module, batch, path = Warms().eval(), batch_of(), LossPath()
    plan = infer_call_plan(module)
    path.loss(module, plan, "causal", batch)
    assert path.head == "head.weight"
    module.cap = True
    loss = path.loss(module, plan, "causal", batch)
    torch.testing.assert_close(loss, plain_loss(module, plan, batch))
    assert path.head == ""
    assert path.finding is not None
    assert path.finding.verdict == "warn"


def _caught(logits: Tensor) -> Any:
    try:
        return logits.amax()
    except Exception:  # noqa: BLE001  (what a stranger's model may do)
        return None


READERS: dict[str, Callable[[Tensor], Any]] = {
    "largest": lambda logits: logits.amax(-1),
    "a slice of them": lambda logits: logits[:, -1].argmax(-1),
    "parts": lambda logits: logits.topk(2),
    "one number": lambda logits: logits[0, 0, 0].item(),
    "a float": lambda logits: float(logits[0, 0, 0]),
    "a truth": lambda logits: bool(logits[0, 0, 0] > 0),
    "a list": lambda logits: logits.tolist(),
    "an array": lambda logits: logits.detach().numpy(),
    "equal": lambda logits: torch.equal(logits, logits + 1),
    "in a try": _caught,
}


class Sometimes(Body):
    reader: Callable[[Tensor], Any] | None = None
    seen: Any = None

    def forward(self, ids: Tensor) -> Any:
        logits = self.head(self.hidden(ids))
        assert (logits.shape[-1], logits.dim(), logits.dtype, logits.size(0)) == (V, 3, torch.float32, len(ids))
        if self.reader is not None:
            self.seen = self.reader(logits)
        return logits


def test_logits_that_a_model_reads_only_in_some_batches_are_there() -> None:
    module, batch = Sometimes().eval(), batch_of()
    plan = infer_call_plan(module)
    for name, reader in READERS.items():
        path = LossPath()
        path.loss(module, plan, "causal", batch)
        assert path.head == "head.weight"
        module.reader = reader
        loss = path.loss(module, plan, "causal", batch)
        seen = module.seen
        torch.testing.assert_close(loss, plain_loss(module, plan, batch))
        # as without us: no zeros
        torch.testing.assert_close(seen, module.seen, rtol=0, atol=0, msg=name)
        assert path.head == "", name
        assert path.finding is not None
        assert path.finding.verdict == "warn"
        module.reader = None


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED"),
        RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
    ids=["cuda", "cublas", "cpu", "python"],
)
@pytest.mark.parametrize("first", [True, False])
def test_a_lack_of_memory_is_no_fault_of_the_head(
    monkeypatch: pytest.MonkeyPatch, error: BaseException, first: bool
) -> None:
    module, batch, path = Body().eval(), batch_of(), LossPath()
    plan = infer_call_plan(module)
    if not first:
        path.loss(module, plan, "causal", batch)
    with monkeypatch.context() as patch:

        def lacking(*args: Any, **kwargs: Any) -> Any:
            raise error

        patch.setattr(fusedhead, "_hidden", lacking)
        with pytest.raises(type(error)):
            path.loss(module, plan, "causal", batch)
    path.loss(module, plan, "causal", batch)  # with fewer rows, say: the head is used all the same
    assert path.head == "head.weight"
