"""What a row of metrics says of speed and memory, against counts by hand and the system's own tools."""

from __future__ import annotations

import csv
import resource
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from anyformer.models.callplan import infer_call_plan
from anyformer.models.example_gpt import GPT
from anyformer.training import performance
from anyformer.training.adapter import UniversalModelAdapter
from anyformer.training.coordinator import TrainResult
from anyformer.training.performance import LogRows, peak_flops, resident_bytes, training_flops
from tests.training.small_models import Small

Fit = Callable[..., TrainResult]


def gpt() -> GPT:
    return GPT(vocab_size=96, n_layer=3, n_head=4, n_embd=32, block_size=24, dropout=0.1)


def rows(result: TrainResult) -> list[dict[str, str]]:
    with (result.run_path / "metrics" / "metrics.csv").open() as stream:
        return list(csv.DictReader(stream))


@pytest.mark.parametrize(("batch", "length"), [(1, 24), (5, 16)])
def test_operations_are_those_of_the_palm_formula(batch: int, length: int) -> None:
    module = gpt()
    ids = torch.randint(0, 96, (batch, length))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    random = torch.get_rng_state()
    module.eval()
    found = training_flops(module, infer_call_plan(module), {"input_ids": ids})
    # 6 N + 12 L H Q T a token: N the matrices that multiply it (4 D² of attention, 8 D² of the MLP, the head's V D)
    matrices = 3 * 12 * 32 * 32 + 96 * 32
    assert found == batch * length * (6 * matrices + 12 * 3 * 32 * length)
    assert not module.training
    assert torch.equal(torch.get_rng_state(), random)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def test_torchs_own_encoder_layer_is_counted_too() -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.tokens = nn.Embedding(50, 16)
            self.layer = nn.TransformerEncoderLayer(16, 2, 64, batch_first=True)
            self.head = nn.Linear(16, 50)

        def forward(self, ids: Tensor) -> Tensor:
            mask = nn.Transformer.generate_square_subsequent_mask(ids.shape[1])
            return self.head(self.layer(self.tokens(ids), src_mask=mask, is_causal=True))

    module = Encoder().eval()
    found = training_flops(module, infer_call_plan(module), {"input_ids": torch.randint(0, 50, (2, 8))})
    assert found == 2 * 8 * (6 * (12 * 16 * 16 + 50 * 16) + 12 * 16 * 8)


@pytest.mark.parametrize(
    ("name", "precision", "tf32", "tera"),
    [
        ("NVIDIA H100 80GB HBM3", "bf16", False, 989.4),
        ("NVIDIA H100 80GB HBM3", "32", False, 66.9),
        ("NVIDIA H100 80GB HBM3", "32", True, 494.7),
        ("NVIDIA H100 PCIe", "16", False, 756),
        ("NVIDIA H100 NVL", "16", False, 835.5),
        ("NVIDIA H200", "bf16", False, 989.4),
        ("NVIDIA A100-SXM4-80GB", "bf16", False, 312),
        ("NVIDIA A100 80GB PCIe", "32", True, 156),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bf16", False, None),
        ("NVIDIA A10G", "bf16", False, None),
        ("NVIDIA A10", "bf16", False, 125),
        ("NVIDIA L4", "bf16", False, 121),
        ("NVIDIA L40S", "bf16", False, 362),
        ("NVIDIA GeForce RTX 4090", "bf16", False, 165.2),
        ("NVIDIA GeForce RTX 4090 Laptop GPU", "bf16", False, None),
        ("Tesla T4", "16", False, 65),
        ("Tesla T4", "bf16", False, None),
        ("Tesla T4", "32", True, None),
        ("Tesla V100-SXM2-16GB", "32", False, 15.7),
        ("NVIDIA GH200 480GB", "bf16", False, None),
        ("Some GPU", "bf16", False, None),
    ],
)
def test_the_peak_is_known_of_named_gpus_alone(name: str, precision: str, tf32: bool, tera: float | None) -> None:
    assert peak_flops(name, precision, tf32=tf32) == (None if tera is None else pytest.approx(tera * 1e12))


def test_rows_tell_speed_and_memory_and_no_mfu_of_a_cpu(fit: Fit) -> None:
    found = rows(fit(max_steps=6, log_every=2, eval_every=6))
    timed = [row for row in found if int(row["step"]) % 2 == 0]
    assert len(timed) == 3
    for row in timed:
        assert float(row["tokens_per_second"]) > 0
        assert (row["mfu"], row["gpu_memory_gb"], row["gpu_utilization"]) == ("", "", "")
    if sys.platform == "linux":
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
        assert all(0.05e9 < float(row["memory_gb"]) * 1e9 <= most * 1.001 for row in timed)
        block = torch.ones(50_000_000)
        grown = resident_bytes()
        del block
        assert grown is not None
        assert (resident_bytes() or 0) <= grown - 190_000_000


def test_mfu_is_the_rate_times_the_operations_over_the_peak(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    start, counted = LogRows.on_train_start, []

    def on_a_gpu(self: LogRows, *args: Any) -> None:
        start(self, *args)
        self._peak = 1e9

    def count(*args: Any) -> float:
        counted.append(training_flops(*args))
        return counted[-1]

    monkeypatch.setattr(LogRows, "on_train_start", on_a_gpu)
    monkeypatch.setattr(performance, "training_flops", count)
    result = fit(gpt(), max_steps=2, log_every=1, eval_every=2, accumulate_grad_batches=2)
    assert len(counted) == 1  # once, not in every step
    per_token = counted[0] / (8 * 16)
    for row in rows(result):
        if row["tokens_per_second"]:
            assert float(row["mfu"]) == pytest.approx(float(row["tokens_per_second"]) * per_token / 1e9, rel=1e-5)


@pytest.mark.soak
def test_counting_changes_nothing_of_the_training(fit: Fit, monkeypatch: pytest.MonkeyPatch) -> None:
    def losses(name: str) -> list[str]:
        torch.manual_seed(3)
        return [row["train_loss"] for row in rows(fit(gpt(), max_steps=4, name=name))]

    before = losses("uncounted")
    monkeypatch.setattr(LogRows, "on_train_start", lambda self, *args: setattr(self, "_peak", 1e9))
    assert losses("counted") == before


def test_a_model_whose_operations_cannot_be_counted_trains_without_mfu(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*args: Any) -> float:
        raise ValueError("no such batch")

    monkeypatch.setattr(performance, "training_flops", fail)
    callback = LogRows(None, "32")  # type: ignore[arg-type]
    callback._peak = 1e9
    with pytest.warns(UserWarning, match="no MFU: .*no such batch"):
        callback._count(UniversalModelAdapter(Small()), {"input_ids": torch.zeros(2, 8, dtype=torch.int64)})
    assert callback._speed(100, 2.0) == {"tokens_per_second": 50.0}


@pytest.mark.parametrize("nvml", [True, False])
def test_figures_of_a_gpu(nvml: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def utilization(device: torch.device) -> int:
        asked.append(device)
        if not nvml:
            raise ModuleNotFoundError("pynvml does not seem to be installed")
        return 87

    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: 3_500_000_000)
    monkeypatch.setattr(torch.cuda, "utilization", utilization)
    callback = LogRows(None, "32")  # type: ignore[arg-type]
    for _ in range(2):
        figures = callback._taken(torch.device("cuda"))
        figures.pop("memory_gb", None)
        assert figures == {"gpu_memory_gb": 3.5, **({"gpu_utilization": 87.0} if nvml else {})}
    assert len(asked) == (2 if nvml else 1)  # a driver that does not tell is not asked in every row
