"""Datasets from the Hugging Face hub, by name, configuration and split; refusals in plain words, none waited out."""

from __future__ import annotations

import difflib
import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anyformer.core.errors import DataError, DataNotFound
from anyformer.core.findings import Finding
from anyformer.core.optional import require
from anyformer.data.compressed import PACKED_SUFFIXES
from anyformer.data.patience import PATIENCE, Answers, Refused, impatient, impatient_reading

PREFIX = "hf:"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*(/[A-Za-z0-9][\w.-]*)?")
_FILE_SUFFIXES = (
    *(".txt", ".text", ".md", ".rst", ".py", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".arrow", ".html"),
    *(".xml", ".zip", ".yaml", ".yml", *PACKED_SUFFIXES),
)
# Short names → (where it lies on the hub, the configuration taken where none is given; None where there is one only).
# Old names without an owner are redirected by the hub, yet the libraries of 2026 refuse them (HfUri), so they are
# spelled out. The configurations are those of each dataset's card.
_KNOWN: dict[str, tuple[str, str | None]] = {
    "wikitext": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-2": ("Salesforce/wikitext", "wikitext-2-raw-v1"),
    "wikitext-103": ("Salesforce/wikitext", "wikitext-103-raw-v1"),
    "tiny-textbooks": ("nampdn-ai/tiny-textbooks", None),
    "tinystories": ("roneneldan/TinyStories", None),
    "openwebtext": ("Skylion007/openwebtext", None),
    "cnn_dailymail": ("abisee/cnn_dailymail", "3.0.0"),
    "code_search_net": ("code-search-net/code_search_net", "python"),
    "imdb": ("stanfordnlp/imdb", None),
    "ag_news": ("fancyzhx/ag_news", None),
    "glue": ("nyu-mll/glue", "sst2"),
    "sst2": ("stanfordnlp/sst2", None),
    "daily_dialog": ("li2017dailydialog/daily_dialog", None),
    "wikipedia": ("wikimedia/wikipedia", "20231101.simple"),
    "c4": ("allenai/c4", "en"),
    "fineweb": ("HuggingFaceFW/fineweb", "sample-10BT"),
    "fineweb-edu": ("HuggingFaceFW/fineweb-edu", "sample-10BT"),
}
_USUAL = dict(reversed(_KNOWN.values()))  # of two short names for one dataset the first
_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Names of one and the same part of a dataset, the usual one first; in the order in which they are listed.
_SPLITS = (
    ("train", "training"),
    ("validation", "valid", "val", "dev", "development", "eval", "evaluation", "heldout", "held"),
    ("test", "tests", "testing"),
)


# Known datasets that are programs on the hub → what to take instead.
_INSTEAD = {
    "li2017dailydialog/daily_dialog": "take the same dialogues as a table, hf:pixelsandpointers/better_daily_dialog, in"
    " which each row is what one speaker says at a time",
}


@dataclass(frozen=True)
class HubReference:
    """A dataset on the hub; as text "hf:NAME", "hf:NAME:CONFIG" or "hf:NAME:CONFIG:SPLIT"."""

    name: str
    config: str | None = None
    split: str = "train"

    def __str__(self) -> str:
        parts = [self.name, self.config or "", self.split if self.split != "train" else ""]
        return (PREFIX + ":".join(parts)).rstrip(":")


def parse_reference(data: str) -> HubReference | None:
    """The dataset that "hf:…" means; None for any other text. DataError for a name that no dataset can have."""
    if not data.startswith(PREFIX):
        return None
    name, config, split = [*data.removeprefix(PREFIX).split(":", 2), "", ""][:3]
    if not _NAME.fullmatch(name):
        raise DataError(f"{name!r} is no name of a dataset on the hub", fix="hf:OWNER/NAME or hf:OWNER/NAME:CONFIG")
    return HubReference(name, config or None, split or "train")


def named_reference(name: str, config: str | None = None, split: Any = "train") -> HubReference:
    """The dataset of a name with or without "hf:", whose own configuration and split count where none are given.

    Raises DataError for a name that no dataset can have, and where the name says one thing and the argument another.
    """
    if config is not None and not isinstance(config, str):
        raise DataError(f"config_name is {config!r:.60} ({type(config).__name__})", fix="a name, or None")
    said = parse_reference(PREFIX + name.removeprefix(PREFIX))
    assert said is not None
    if said.config and config and said.config != config:
        raise DataError(f"two configurations are named: {said.config!r} in {name!r}, and {config!r}", fix="name one")
    if said.split != "train" and split not in ("train", said.split):
        raise DataError(f"two splits are named: {said.split!r} in {name!r}, and {split!r}", fix="name one")
    return HubReference(said.name, config or said.config, split if said.split == "train" else said.split)


def is_hub_name(data: str) -> bool:
    """Whether a text that is no path here may be a dataset's name: OWNER/NAME or NAME, without a file's ending."""
    if not _NAME.fullmatch(data) or Path(data).suffix.lower() in _FILE_SUFFIXES:
        return False
    return "/" not in data or not Path(data).parent.is_dir()


def hub_dataset(reference: HubReference) -> tuple[Any, list[Finding]]:
    """(the ``datasets.Dataset``, what was chosen for it).

    Raises DataNotFound where there is no such dataset, configuration or split, or the hub does not give it; DataError
    where the split is empty or the dataset cannot be read. A busy hub is asked three times, within seconds; where it
    cannot be reached or refuses, a complete copy in the cache is taken, which is said.
    """
    datasets, hub, transport = _libraries()
    name, config, notes = _resolved(reference)
    errors: tuple[type[Exception], ...] = (ValueError, RuntimeError, *reading_errors())
    reachable = _reachable(hub, name, transport)
    try:
        with impatient(hub) if reachable else _offline(hub, datasets) as answers:
            if not isinstance(reference.split, str) or not reference.split:  # the library would give all of them
                builder = datasets.load_dataset_builder(name, config)
                raise _no_split(reference, name, list(builder.info.splits or builder.config.data_files or ()))
            dataset = datasets.load_dataset(name, config, split=reference.split)
    except DataError:
        raise
    except errors as error:
        if not reachable:
            raise _away(reference, name, config) from error
        raise _in_words(reference, name, config, error) from error
    if (why := _why_cached(reachable, answers)) is not None:
        why = f"{_endpoint()} {why}; there may be a newer one"
        notes.append(Finding("dataset", "warn", "the copy in the cache", "", why))
    if not len(dataset):
        raise _empty(reference, name)
    return dataset, notes


def hub_stream(reference: HubReference) -> tuple[Any, str | None, list[Finding]]:
    """(the ``datasets.IterableDataset``, the revision that is read, what was chosen for it); nothing is stored.

    Raises DataNotFound as ``hub_dataset``: what is in the cache is of no use here.
    """
    datasets, hub, transport = _libraries()
    errors: tuple[type[Exception], ...] = (ValueError, RuntimeError, *reading_errors())
    name, config, notes = _resolved(reference)
    if not _reachable(hub, name, transport):
        raise DataNotFound(
            f"the dataset {_named(name, config)} cannot be streamed: {_endpoint()} cannot be reached".replace(
                ", can", " can"
            ),
            _not_here(reference.name).strip(),
            "check the network; without --stream a copy in the cache is read",
        )
    try:
        with impatient(hub), impatient_reading:
            # one revision for the whole run, whatever is uploaded meanwhile
            revision = hub.HfApi().dataset_info(name).sha
            dataset = datasets.load_dataset(name, config, split=reference.split, streaming=True, revision=revision)
    except errors as error:
        raise _in_words(reference, name, config, error, streamed=True) from error
    return dataset, revision, notes


def _libraries() -> tuple[Any, Any, type[Exception]]:
    """datasets, huggingface_hub and the error of its transport."""
    datasets = require("datasets", purpose="reading a dataset from the hub")
    hub = require("huggingface_hub", purpose="reading a dataset from the hub")
    # HTTPError of httpx, under whatever name the library has it
    return datasets, hub, hub.errors.HfHubHTTPError.__bases__[0]


def reading_errors() -> tuple[type[Exception], ...]:
    """What the libraries raise where the connection breaks or the data is damaged."""
    datasets, _, transport = _libraries()
    return OSError, EOFError, Refused, datasets.exceptions.DatasetsError, transport


def _resolved(reference: HubReference) -> tuple[str, str | None, list[Finding]]:
    """Name and configuration as the hub knows them; what was chosen is said."""
    full, default = _KNOWN.get(reference.name.lower(), (reference.name, _USUAL.get(reference.name)))
    notes = []
    if full != reference.name:
        notes.append(Finding("dataset", "note", full, "", f"{reference.name!r} is short for it"))
    config = reference.config
    if config is None and default is not None:
        config = default
        reason = f"{reference.name} has several; name another by config_name, or hf:{reference.name}:CONFIG"
        notes.append(Finding("configuration", "note", config, "", reason))
    return full, config, notes


def _reachable(hub: Any, name: str, transport: type[Exception]) -> bool:
    """Whether the hub answers at all: the library tries a dead address for half a minute, or more."""
    if hub.constants.HF_HUB_OFFLINE:
        return True  # the user's own wish; the library looks in its cache
    try:
        hub.utils.get_session().head(f"{hub.constants.ENDPOINT}/api/datasets/{name}", timeout=PATIENCE)
    except transport:
        return False
    return True


def _why_cached(reachable: bool, answers: Answers) -> str | None:
    """Why a dataset that was loaded came from the cache; None where the hub gave it. The libraries do not say."""
    if not reachable:
        return "cannot be reached"
    refused = [status for status in answers.refused if status in (401, 403, 404)]
    if refused:
        return f"refuses it ({refused[-1]}): private, gated or gone, or the token (hf auth login, HF_TOKEN) is wrong"
    return f"gives no answer ({answers.refused[-1]})" if answers.gave_up else None


@contextmanager
def _offline(hub: Any, datasets: Any) -> Iterator[Answers]:
    """As HF_HUB_OFFLINE=1 does, which both libraries read only when they are imported."""
    before = hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    hub.constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield Answers()
    finally:
        hub.constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = before


# --- what went wrong, in words ------------------------------------------------------------------------------------


def _named(name: str, config: str | None) -> str:
    return f"{name!r}" + (f", configuration {config!r}," if config else "")


def _away(reference: HubReference, name: str, config: str | None) -> DataError:
    which = f"the dataset {_named(name, config)}".rstrip(",")
    return DataNotFound(
        f"{which} cannot be had: {_endpoint()} cannot be reached",
        _not_here(reference.name) + "no copy is in the cache",
        "check the network, or give a file of your own (--data FILE)",
    )


def _empty(reference: HubReference, name: str) -> DataError:
    return DataError(f"the split {reference.split!r} of {name!r} is empty", "it has 0 rows", "take another split")


def _no_split(reference: HubReference, name: str, names: list[str]) -> DataError:
    """The splits there are, those to train on first, and the one that is likely meant."""
    asked = reference.split
    ranked = sorted(names, key=_kind_of_split)
    what = f"the dataset {name!r} has no split {asked!r}"
    if not isinstance(asked, str) or not asked:
        what = f"split is {asked!r:.60}; one split of {name!r} is read at a time"
    if not ranked:
        return DataNotFound(what)
    likely = _likely_split(asked, ranked)
    fix = f"split={likely!r}, or {HubReference(reference.name, reference.config, likely)}"
    return DataNotFound(what, f"it has: {', '.join(ranked)}", fix)


def _kind_of_split(name: str) -> int:
    """Place among the usual parts, behind them for any other."""
    word = re.split("[^a-z]", name.lower())[0]  # "validation_matched", "dev[:10%]"
    return next((place for place, kind in enumerate(_SPLITS) if word in kind), len(_SPLITS))


def _likely_split(asked: Any, ranked: list[str]) -> str:
    """The one of the same kind; of what is held out, else another that is; else the nearest name; else the first."""
    head = asked if isinstance(asked, str) else ""
    kind = _kind_of_split(head)
    order = {1: (1, 2), 2: (2, 1)}.get(kind, (kind,)) if kind < len(_SPLITS) else ()
    alike = [name for wanted in order for name in ranked if _kind_of_split(name) == wanted]
    return [*alike, *difflib.get_close_matches(head, ranked, n=1), *ranked][0]


def _likely_configuration(asked: str | None, names: list[str], usual: str | None) -> str:
    """The usual one, unless the name that was asked for is nearer to another."""
    ranked = [usual, *names] if usual in names else names
    begins = [name for name in ranked if asked and name.startswith(asked)]
    near = difflib.get_close_matches(asked, names, n=1) if asked else []
    return [*begins, *near, *ranked][0]


def _in_words(
    reference: HubReference, name: str, config: str | None, error: BaseException, *, streamed: bool = False
) -> DataError:
    chain = list(_chain(error))
    refused = next((e for e in chain if isinstance(e, Refused)), None)
    statuses = [getattr(getattr(e, "response", None), "status_code", None) for e in chain]
    status = refused.status if refused else next((s for s in statuses if s is not None), None)
    kinds = {type(e).__name__ for e in chain}
    said = "\n".join(str(e) for e in chain)
    which = f"the dataset {_named(name, config)}"
    what = f"{which.rstrip(',')} cannot be had"
    page = f"{_endpoint()}/datasets/{name}"
    if "Not enough disk space" in said or any(getattr(e, "errno", None) in _DISK_FULL for e in chain):
        why = next((str(e) for e in chain if getattr(e, "errno", None) in _DISK_FULL), _first_line(error))
        return DataError(
            f"{what}: the disk is full", why, "free some space, or set HF_HOME to a folder on another disk"
        )
    if status == 429 or (refused is not None and status is not None):
        when = f"it asks to wait {refused.wait} s" if refused and refused.wait else "it does not say for how long"
        busy = "too many requests" if status == 429 else "the hub is in trouble"
        fix = "wait, then run again; a token (HF_TOKEN) raises the limit" if status == 429 else "wait, then run again"
        return DataNotFound(f"{what}: {busy} ({status})", when, fix)
    if "GatedRepoError" in kinds or "is a gated dataset" in said:
        return DataNotFound(
            f"{what}: its owner lets in only those who were accepted",
            f"ask for access at {page}",
            "then: hf auth login, or set HF_TOKEN",
        )
    if (listed := re.search(r"(?:Available|available configs): (\[.*?\])", said, re.S)) is not None:
        names = re.findall(r"'([^']+)'", listed[1])
        likely = _likely_configuration(config, names, _USUAL.get(name)) if names else ""
        which = f"no configuration {config!r}" if config else "several configurations, and none is named"
        return DataNotFound(
            f"the dataset {name!r} has {which}",
            f"it has: {', '.join(names)}",
            f"config_name={likely!r}, or {HubReference(reference.name, likely, reference.split)}" if names else "",
        )
    if (refusal := re.search(r"Unknown split.*Should be one of|Bad split.*Available splits", said, re.S)) is not None:
        return _no_split(reference, name, re.findall(r"'([^']+)'", said[refusal.end() :]))
    if "scripts are no longer supported" in said:
        return DataError(
            f"{what}: it is a program that fetches the data, and programs from the hub are not run",
            fix=_INSTEAD.get(
                name, "look for a version in parquet on the hub, or fetch the data yourself and give the files"
            ),
        )
    if kinds & {"EmptyDatasetError", "DataFilesNotFoundError"}:
        return DataError(f"the dataset {name!r} holds no data files", f"look at {page}")
    if status in (401, 403, 404) or kinds & {"RepositoryNotFoundError", "DatasetNotFoundError"}:
        return DataNotFound(
            f"there is no dataset {name!r} on the hub, or it is private",
            _not_here(reference.name) + f"looked at {page}",
            f"check the name{' (most are OWNER/NAME)' if '/' not in name else ''}; for a private one: hf auth login",
        )
    return _broken(reference, what, kinds, said, error, streamed)


def _broken(
    reference: HubReference, what: str, kinds: set[str], said: str, error: BaseException, streamed: bool
) -> DataError:
    """The connection, the transfer or the data itself."""
    local = "or give a file of your own (--data FILE)"
    if "OfflineModeIsEnabled" in said or "offline mode" in said.lower():
        return DataNotFound(
            f"{what}: the hub is switched off here (HF_HUB_OFFLINE), and no copy is in the cache",
            _not_here(reference.name).strip(),
            f"unset HF_HUB_OFFLINE, {local}",
        )
    if "Consistency check failed" in said or kinds & {"RemoteProtocolError", "ReadError", "IncompleteRead"}:
        fix = "run again" if streamed else "run again: it goes on where it broke off"
        return DataNotFound(f"{what}: the transfer was cut off", _first_line(error), fix)
    if kinds & {"ReadTimeout", "ConnectTimeout", "TimeoutException", "PoolTimeout"}:
        return DataNotFound(f"{what}: {_endpoint()} did not answer in time", _first_line(error), f"try again, {local}")
    if kinds & {"ConnectError", "ConnectionError"} or "Couldn't reach" in said:
        return DataNotFound(
            f"{what}: {_endpoint()} cannot be reached", _first_line(error), f"check the network, {local}"
        )
    if "BatchSize must be greater than 0" in said:  # what the library makes of a parquet file without rows
        return _empty(reference, what.split("'")[1])
    if kinds & {"DatasetGenerationError", "ArrowInvalid", "ParquetError"}:
        return DataError(
            f"{what}: its files cannot be read", said.strip().splitlines()[-1], "it may be damaged at its source"
        )
    return DataNotFound(what, _first_line(error), f"check the name on the hub and the network, {local}")


def _not_here(name: str) -> str:
    return "" if "/" in name else f"there is no file or folder {name!r} here either\n"


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _endpoint() -> str:
    return os.environ.get("HF_ENDPOINT", "https://huggingface.co").rstrip("/")


def _chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, each once."""
    seen: set[int] = set()
    here: BaseException | None = error
    while here is not None and id(here) not in seen:
        seen.add(id(here))
        yield here
        here = here.__cause__ or here.__context__
