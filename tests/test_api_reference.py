"""The API reference is true: its snippets run under both import paths, its tables match the signatures.

Snippets run as written. What they leave open is filled in small: a one-layer model, a text of a few hundred words, a
folder of two files as the standard library, a local table in place of the hub.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import random
import re
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn

from anyformer.models.signature import ModelSignatureInspector
from anyformer.models.source import load_model
from tests.checks.hosts import GPT

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "api-reference.md"
SEED = ROOT.parent / "shared" / "seeds" / "api-reference.md"
PREFIXES = ("anyformer", "utils")
VOCAB, POSITIONS = 600, 32


class Snippet(NamedTuple):
    """A fenced block of a page, with the heading above it."""

    heading: str
    code: str
    later: bool

    @property
    def key(self) -> tuple[str, str]:
        return self.heading, self.code.partition("\n")[0]

    def under(self, prefix: str) -> str:
        """The code with its imports from ``prefix``."""
        doors = "adapters|test_functions|tokenization|training|ui"
        return re.sub(
            rf"^(\s*from )(?:anyformer|utils)\.({doors}) import", rf"\1{prefix}.\2 import", self.code, flags=re.M
        )


def snippets_of(page: Path) -> list[Snippet]:
    """The Python blocks of a page, in order; none where the page is absent."""
    if not page.is_file():
        return []
    found, heading = [], ""
    for title, info, code in re.findall(
        r"^#+ ([^\n]+)$|^```(\S[^\n]*)\n(.*?)^```$", page.read_text("utf-8"), re.M | re.S
    ):
        if title:
            heading = title.strip()
        elif info.startswith("python"):
            found.append(Snippet(heading, code, info == "python later"))
    return found


PAGE_SNIPPETS = snippets_of(PAGE)
SEED_SNIPPETS = snippets_of(SEED)

# Parts of the first reference that later issues bring. An entry goes when its part exists: the test says so.
LATER: dict[tuple[str, str], tuple[int, type[Exception]]] = {
    ("Installation", "# Install from repository"): (8, SyntaxError),  # shell lines: a notebook's cell
    ("ModelCardGenerator", "from utils.training import ModelCardGenerator"): (7, ImportError),
    ("SetupWizard", "from utils.ui import SetupWizard"): (8, ImportError),
    ("ConfigPresets", "from utils.ui import ConfigPresets, PRESETS"): (8, ImportError),
    ("Complete Training Pipeline", "# 1. Load model"): (7, ImportError),
    ("Using Presets", "from utils.ui import ConfigPresets"): (8, ImportError),
    ("Interactive Setup", "from utils.ui import SetupWizard"): (8, ImportError),
}


class Tiny(nn.Module):
    """One causal attention layer, width 8: (B, T) ids → (B, T, V) logits."""

    def __init__(self, vocab_size: int = VOCAB, positions: int = POSITIONS) -> None:
        super().__init__()
        self.tokens = nn.Embedding(vocab_size, 8)
        self.positions = nn.Embedding(positions, 8)
        self.attention = nn.Linear(8, 24)
        self.head = nn.Linear(8, VOCAB, bias=False)
        self.unused = vocab_size - VOCAB  # ids that a text this small never gives: no weights, so that it stays quick

    def forward(self, input_ids: Tensor) -> Tensor:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1], device=input_ids.device))
        q, k, v = self.attention(x)[:, None].chunk(3, dim=-1)
        x = x + nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)[:, 0]
        return nn.functional.pad(self.head(x), (0, self.unused), value=-10.0)


def texts_of(words: int, seed: int = 0) -> list[str]:
    """Twenty documents of made-up words, ``words`` in all; the words recur, so that BPE has something to merge."""
    rng = random.Random(seed)
    lexicon = ["".join(rng.choices("aeioklmnrst", k=rng.randint(2, 6))) for _ in range(60)]
    return [" ".join(rng.choices(lexicon, k=words // 20)) + "." for _ in range(20)]


def fitting(entries: int) -> list[str]:
    """Documents that can fill a BPE of so many entries: each of as many different words occurs twice."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(entries)]
    return [" ".join(words[start : start + 500]) for _ in range(2) for start in range(0, entries, 500)]


def longest(code: str) -> int:
    """Tokens per sequence that a snippet asks for."""
    return max(
        [int(n) for n in re.findall(r"(?:max_length|max_seq_len)=(\d+)", code.split("generate(")[0])], default=POSITIONS
    )


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Snippet, str], dict[str, Any]]:
    """Runs a snippet in a folder of its own and gives the names it leaves behind."""
    import datasets
    import transformers

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(ROOT))
    stdlib = tmp_path / "stdlib"
    stdlib.mkdir()
    for number, text in enumerate(texts_of(1000)):
        (stdlib / f"m{number}.py").write_text(text)
    monkeypatch.setattr("anyformer.data.corpus.sysconfig", types.SimpleNamespace(get_paths=lambda: {"stdlib": stdlib}))
    (tmp_path / "corpus.txt").write_text("\n".join(texts_of(400)))
    drive = tmp_path / "drive" / "MyDrive"
    drive.mkdir(parents=True)
    for folder in (tmp_path, drive):
        (folder / "data.txt").write_text("\n".join(texts_of(400)))
    monkeypatch.setenv("ANYFORMER_DRIVE", str(drive.parent))
    (tmp_path / "held_out.txt").write_text("\n".join(texts_of(60, seed=1)))
    (tmp_path / "my_model.py").write_text(
        "import torch\nfrom torch import Tensor, nn\n\n\n"
        + inspect.getsource(Tiny).replace("VOCAB", str(VOCAB)).replace("POSITIONS", str(POSITIONS))
    )
    small = transformers.GPT2Config  # the reference's 6 layers and 50,257 ids would take minutes

    def gpt2(**_: Any) -> Any:
        return small(vocab_size=VOCAB, n_positions=64, n_embd=8, n_layer=1, n_head=1)

    monkeypatch.setattr(transformers, "GPT2Config", gpt2)

    def execute(snippet: Snippet, prefix: str) -> dict[str, Any]:
        code = snippet.under(prefix)
        texts = fitting(25_000) if "vocab_size=25000" in code else texts_of(max(240, int(2.2 * longest(code))))
        corpus = datasets.Dataset.from_dict({"text": texts})

        def load_dataset(name: str, config_name: str | None = None, *, split: str) -> Any:
            if name == "invalid_dataset":
                raise datasets.exceptions.DatasetNotFoundError(f"Dataset {name!r} doesn't exist on the Hub")
            assert (name, config_name, split) == ("Salesforce/wikitext", "wikitext-2-raw-v1", "train")
            return corpus

        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        namespace = stand_ins(code, prefix, corpus)
        exec(compile(code, f"{snippet.heading} ({prefix})", "exec"), namespace)
        return namespace

    return execute


def stand_ins(code: str, prefix: str, corpus: Any) -> dict[str, Any]:
    """What a snippet uses without having made it."""
    import pytorch_lightning as pl

    training = importlib.import_module(f"{prefix}.training")
    tokenization = importlib.import_module(f"{prefix}.tokenization")
    model: nn.Module = Tiny(50257 if "50257" in code else VOCAB, longest(code))
    tokenizer = tokenization.FastBPETrainer(tokenization.BPETrainerConfig(VOCAB, exact=False)).train_on_dataset(
        corpus["text"]
    )
    datamodule = tokenization.AdaptiveTokenizerDataModule(corpus, tokenizer, batch_size=4, max_length=16)
    names: dict[str, Any] = {
        "your_model": model,
        "model": model,
        "trained_model": model,
        "dataset": corpus,
        "your_dataset": corpus,
        "hf_dataset": corpus,
        "tokenizer": tokenizer,
        "datamodule": datamodule,
        "start_tokens": torch.tensor([[5, 6, 7]]),
        "train_model": training.train_model,
        "coordinator": training.TrainingCoordinator(),
        **{name: getattr(training, name) for name in ("TrainingCoordinator", "UniversalModelAdapter")},
        "AdaptiveTokenizerDataModule": tokenization.AdaptiveTokenizerDataModule,
    }
    if "expected_vocab_size=50257" in code:
        names["tokenizer"] = tokenization.CharacterLevelTokenizer(50257)
    if "run_all_tests" in code:  # one that learns what it is asked
        names["model"], names["config"] = GPT(), {"vocab_size": GPT().head.out_features}
    if "trainer.fit(model" in code:  # there the model is what Lightning can train
        names["model"] = training.UniversalModelAdapter(model)
        names["trainer"] = pl.Trainer(max_steps=2, logger=False, enable_checkpointing=False)
    if "trainer = pl.Trainer(callbacks=[callback])" in code:  # and then it is trained

        def trainer_that_trained(callbacks: list[Any]) -> pl.Trainer:
            trainer = pl.Trainer(max_epochs=1, limit_train_batches=4, callbacks=callbacks, logger=False)
            trainer.fit(training.UniversalModelAdapter(model), datamodule=datamodule)
            return trainer

        names["pl"] = types.SimpleNamespace(Trainer=trainer_that_trained)
    if "ComputationalGraphExecutor" in code:
        export = Path(__file__).parent / "models" / "builder_exports" / "one_block.py"
        names["model"] = load_model(export).module.eval()
        names["inspector"] = ModelSignatureInspector(names["model"])
        names["input_ids"] = torch.tensor([[5, 6, 7], [8, 9, 10]])
        names["attention_mask"] = torch.ones_like(names["input_ids"])
    return names


RESULT_KEYS = ["best_model_path", "final_metrics", "trainer", "model", "tokenizer", "run_path", "report_path"]


def assert_what_was_promised(namespace: dict[str, Any]) -> None:
    """Results have the promised keys, files exist, ids are a tensor."""
    results = namespace.get("results")
    if results is not None:
        assert sorted(results) == sorted(RESULT_KEYS)
        assert Path(results["best_model_path"]).is_dir()
        assert 0 < results["final_metrics"]["val_loss"] < 20
        assert results["model"].generate(torch.tensor([[1, 2]]), max_length=4).shape == (1, 4)
    if "adapter" in namespace and "manager" not in namespace:
        ids = namespace.get("ids", namespace.get("text"))
        assert isinstance(ids, Tensor)
        assert ids[0, :3].tolist() == [5, 6, 7]
        assert ids.shape == (1, 100)
    if "manager" in namespace:
        best = namespace["manager"].get_best_checkpoint_path()
        weights = namespace["checkpoint"]["state_dict"]
        module = namespace.get("adapter", namespace["model"])
        assert all(torch.equal(module.state_dict()[name], value) for name, value in weights.items())
        copies = Path("drive/MyDrive/checkpoints")
        if namespace["manager"].drive_backup:
            assert [path.name for path in copies.iterdir()] == [Path(best).name]
    if "exporter" in namespace:
        result = namespace["result"]
        assert Path(result["output_path"]).stat().st_size == round(1e6 * result["file_size_mb"])
        assert result["validation"]["max_error"] < 1e-4
        assert len(result["validation"]["shapes"]) >= 5
        assert result["benchmark"]["speedup"] > 0
        assert result["opset"] == getattr(namespace["exporter"], "opset_version", None)
    if "executor" in namespace:
        output, ids = namespace["output"], namespace["input_ids"]
        assert output.shape[:2] == ids.shape
        assert torch.allclose(output[:1], namespace["executor"].forward(ids[:1]), atol=1e-5)  # rows do not meet
    if "my_tokenizer.json" in {path.name for path in Path().iterdir()}:
        import tokenizers

        saved = tokenizers.Tokenizer.from_file("my_tokenizer.json")
        assert saved.encode("moon").ids == list(namespace["tokenizer"].encode("moon"))


def missing_imports(code: str) -> list[str]:
    """Names that a snippet imports from our doors and that are not there."""
    missing = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.partition(".")[0] in PREFIXES:
            for alias in node.names:
                try:
                    getattr(importlib.import_module(node.module), alias.name)
                except (ImportError, AttributeError):
                    missing.append(alias.name)
    return missing


def identity(snippet: Snippet) -> str:
    return re.sub(r"\W+", "-", f"{snippet.heading} {snippet.code[:40].splitlines()[0]}").strip("-")


def doors(snippets: list[Snippet], written: str) -> list[Any]:
    """Each snippet as written and, in the soak, under the other import path: test_doors.py says that both are one.

    Under the reference's own path alone where its logits are 50,257 wide.
    """
    found = []
    for snippet in snippets:
        wide = "vocab_size=50257" in snippet.code
        for prefix in PREFIXES[1:] if wide else PREFIXES:
            marks = [] if wide or prefix == written else [pytest.mark.soak]
            found.append(pytest.param(snippet, prefix, id=f"{identity(snippet)}-{prefix}", marks=marks))
    return found


@pytest.mark.parametrize(("snippet", "prefix"), doors([s for s in PAGE_SNIPPETS if not s.later], "anyformer"))
def test_every_snippet_of_the_page_runs(snippet: Snippet, prefix: str, run: Any) -> None:
    assert_what_was_promised(run(snippet, prefix))


def test_the_page_marks_what_is_not_built_and_nothing_else() -> None:
    later = [s for s in PAGE_SNIPPETS if s.later]
    assert {s.heading for s in later} == {"Not built yet"}
    assert len(later) == 3
    assert all(missing_imports(s.code) for s in later), "a part exists now: describe it, run it, take it off the list"
    assert len(PAGE_SNIPPETS) - len(later) >= 12


needs_seed = pytest.mark.skipif(
    not SEED.is_file(), reason="needs the first reference (shared/seeds) beside the checkout"
)


@needs_seed
@pytest.mark.parametrize(("snippet", "prefix"), doors([s for s in SEED_SNIPPETS if s.key not in LATER], "utils"))
def test_every_snippet_of_the_first_reference_runs(snippet: Snippet, prefix: str, run: Any) -> None:
    assert_what_was_promised(run(snippet, prefix))


@needs_seed
def test_what_is_left_out_is_in_the_first_reference() -> None:
    assert set(LATER) <= {s.key for s in SEED_SNIPPETS}
    assert len(SEED_SNIPPETS) - len(LATER) >= 9


@needs_seed
@pytest.mark.parametrize("snippet", [s for s in SEED_SNIPPETS if s.key in LATER], ids=identity)
def test_what_is_left_out_does_not_run_yet(snippet: Snippet, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT))
    issue, error = LATER[snippet.key]
    if error is ImportError:
        assert missing_imports(snippet.code), f"its part exists (issue {issue}): take it off LATER"
        return
    with pytest.raises(error):
        run(snippet, "utils")


def signature_of(where: str) -> dict[str, Any]:
    """Parameters and defaults of a public callable; ``REQUIRED`` for none."""
    import anyformer

    owner, _, method = where.partition(".")
    target = getattr(anyformer, owner)
    if dataclasses.is_dataclass(target):
        values = target()
        return {field.name: getattr(values, field.name) for field in dataclasses.fields(target)}
    if method or inspect.isclass(target):
        target = getattr(target, method or "__init__")
    parameters = inspect.signature(target).parameters.values()
    assert not [p for p in parameters if p.kind in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
    public = [p for p in parameters if p.name != "self" and not p.name.startswith("_")]
    return {p.name: REQUIRED if p.default is p.empty else p.default for p in public}


REQUIRED = "required"
TABLES = [
    "UniversalModelAdapter",
    "AdaptiveTokenizer.load_or_create",
    "BPETrainerConfig",
    "CharacterLevelTokenizer",
    "TokenizerValidator.validate",
    "AdaptiveTokenizerDataModule",
    "train_model",
    "TrainingCoordinator",
    "TrainingCoordinator.train",
    "DatasetLoader",
    "CheckpointManager",
]


def plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


@pytest.mark.parametrize("number", range(len(TABLES)), ids=TABLES)
def test_the_tables_are_the_signatures(number: int) -> None:
    tables = PAGE.read_text("utf-8").split("| parameter | default | meaning |\n|---|---|---|\n")[1:]
    assert len(tables) == len(TABLES)
    rows = re.findall(r"^\| `(\w+)` \| (.+?) \| .+ \|$", tables[number].partition("\n\n")[0], re.M)
    stated = {name: REQUIRED if d == REQUIRED else plain(ast.literal_eval(d.strip("`"))) for name, d in rows}
    assert stated == {name: plain(default) for name, default in signature_of(TABLES[number]).items()}


def test_the_table_of_results_is_the_result() -> None:
    section = PAGE.read_text("utf-8").partition("| key | holds |\n|---|---|\n")[2].partition("\n\n")[0]
    assert re.findall(r"^\| `(\w+)` ", section, re.M) == RESULT_KEYS


# What the first reference lists, with the defaults it states.
PROMISED: dict[str, dict[str, Any]] = {
    "UniversalModelAdapter": {"learning_rate": 1e-4, "warmup_steps": 0, "weight_decay": 0.01},
    "BPETrainerConfig": {"min_frequency": 2},
    "train_model": {"batch_size": 16, "learning_rate": 1e-4},
    "TrainingCoordinator": {"use_gpu": True},
    "DatasetLoader": {"preprocessing": True, "min_length": 10, "max_length": None, "remove_duplicates": False},
}
LISTED: dict[str, str] = {
    "CheckpointManager": "checkpoint_dir save_top_k monitor mode drive_backup drive_backup_path",
    "CheckpointManager.load_checkpoint": "checkpoint_path",
    "CheckpointManager.load_model_from_checkpoint": "model_class checkpoint_path",
    "CheckpointManager.list_checkpoints": "sort_by",
    "CheckpointManager.cleanup_old_checkpoints": "keep_top_k",
    **{
        f"CheckpointManager.{name}": ""
        for name in ("get_callback", "get_backup_callback", "get_best_checkpoint_path", "print_checkpoint_info")
    },
    "DatasetLoader": "preprocessing min_length max_length remove_duplicates",
    "DatasetLoader.load_huggingface": "dataset_name config_name split",
    "DatasetLoader.load_local_file": "file_path file_format text_column",
    "DatasetLoader.load_from_drive": "drive_path text_column",
    "DatasetLoader.get_statistics": "dataset",
    "DatasetLoader.print_statistics": "dataset",
    "DatasetLoader.preview_samples": "dataset num_samples",
    "UniversalModelAdapter": "model learning_rate vocab_size warmup_steps weight_decay",
    "AdaptiveTokenizer.load_or_create": "vocab_size dataset cache_dir",
    "AdaptiveTokenizer.detect_strategy": "vocab_size dataset_size",
    "TokenizerValidator.validate": "tokenizer expected_vocab_size strict",
    "BPETrainerConfig": "vocab_size min_frequency special_tokens",
    "CharacterLevelTokenizer": "vocab_size special_tokens",
    "AdaptiveTokenizerDataModule": "dataset tokenizer batch_size max_length val_split num_workers",
    "train_model": "model dataset vocab_size max_epochs batch_size learning_rate",
    "TrainingCoordinator": "output_dir use_gpu precision gradient_clip_val",
    "TrainingCoordinator.train": "model dataset dataset_path config_name vocab_size batch_size max_length learning_rate"
    " max_epochs val_split accumulate_grad_batches early_stopping_patience save_top_k tokenizer datamodule"
    " resume_from_checkpoint seed",
}


@pytest.mark.parametrize("where", LISTED)
def test_what_the_first_reference_lists_exists(where: str) -> None:
    have = signature_of(where)
    assert LISTED[where].split() == [name for name in have if name in LISTED[where].split()]  # and in its order
    assert {name: have[name] for name in PROMISED.get(where, {})} == PROMISED.get(where, {})


def test_what_train_model_takes_the_coordinator_takes() -> None:
    """The reference passed train_model's further arguments on to the coordinator."""
    elsewhere = {**signature_of("TrainingCoordinator"), **signature_of("TrainingCoordinator.train")}
    assert set(signature_of("train_model")) <= set(elsewhere)
