"""The loss on character-level Shakespeare at settings whose result is published.

4 layers, width 128, 4 heads, block 64, batch 12, no dropout, no biases, AdamW (0.9, 0.99), weight decay 0.1,
learning rate 1e-3 → 1e-4 on a cosine, warm-up 100, 2000 steps; first 90 % to train, last 10 % held out. Published for
these settings: 1.88 (nanoGPT's README, "I only have a macbook", estimated there on 20 random batches).

    python benchmarks/shakespeare.py ../shared/data/tinyshakespeare/input.txt [--gpt2_init]

The example GPT is initialised for its width; --gpt2_init starts from GPT-2's 0.02, as the published figure does.
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

import anyformer
from anyformer.core.view import QuietView
from anyformer.models.example_gpt import GPT
from anyformer.training import TrainResult

CONFIG: dict[str, Any] = {
    "vocab_size": 65,
    "block_size": 64,
    "n_layer": 4,
    "n_head": 4,
    "n_embd": 128,
    "dropout": 0.0,
    "bias": False,
}


def gpt2_init(seed: int, path: Path) -> Path:
    """Initial weights with GPT-2's standard deviations whatever the width, saved as a state dict."""
    torch.manual_seed(seed)
    module = GPT(**CONFIG)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.dim() == 2:
                parameter.mul_(math.sqrt(CONFIG["n_embd"] / 768))
    torch.save(module.state_dict(), path)
    return path


def train(text: Path, seed: int, output_dir: str, weights: Path | None = None) -> TrainResult:
    """One run at the published settings."""
    return anyformer.train(
        "example:gpt",
        data=str(text),
        config=CONFIG,
        tokenizer="char",
        val_split=0.1,
        max_length=64,
        batch_size=12,
        max_steps=2000,
        learning_rate=1e-3,
        min_lr_ratio=0.1,
        warmup_steps=100,
        weight_decay=0.1,
        beta1=0.9,
        beta2=0.99,
        gradient_clip_val=1.0,
        precision="32",
        seed=seed,
        weights=str(weights) if weights else None,
        name=f"seed-{seed}",
        output_dir=output_dir,
        view=QuietView(),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("text", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--gpt2_init", action="store_true")
    arguments = parser.parse_args()
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads")
    losses = []
    with tempfile.TemporaryDirectory() as folder:
        for seed in range(1, arguments.seeds + 1):
            begin = time.monotonic()
            weights = gpt2_init(seed, Path(folder, f"{seed}.pt")) if arguments.gpt2_init else None
            result = train(arguments.text, seed, folder, weights)
            losses.append(result.results["val_loss"])
            tokens = result.results["evaluated_tokens"]
            print(
                f"seed {seed}: held-out loss {losses[-1]:.4f} on {tokens:,} characters"
                f" (bigram entropy {result.results['bigram_entropy']:.3f}), {time.monotonic() - begin:.0f} s",
                flush=True,
            )
    spread = statistics.stdev(losses) if len(losses) > 1 else 0.0
    print(f"mean {statistics.mean(losses):.4f} ± {spread:.4f} over {len(losses)} seeds (goal: ≤ 1.90)")


if __name__ == "__main__":
    main()
