"""Files of a Hugging Face hub: it is asked once, and where it does not answer the local cache is used and that said."""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Iterable, Iterator
from functools import cached_property
from pathlib import Path

from anyformer.core.errors import SourceError
from anyformer.core.findings import Finding
from anyformer.core.optional import require

_PURPOSE = "loading a Hugging Face model"
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PROBE = "config.json"  # a file that every model has
_PASSING = (429, 500, 502, 503, 504)  # HTTP states that may be over in a second
_TRIES = 3


class HubRepository:
    """One revision of a repository of the hub that HF_ENDPOINT names.

    hf_hub_download alone would retry a hub that is not there for half a minute, and no setting of the library changes
    that. So one request without retries comes first; its timeout is HF_HUB_ETAG_TIMEOUT, 10 s if that is not set.
    """

    def __init__(self, repository: str, revision: str | None) -> None:
        self._repository = repository
        self._revision = revision
        self._hub = require("huggingface_hub", purpose=_PURPOSE)
        self._errors = require("huggingface_hub.errors", purpose=_PURPOSE)
        self._asked = False

    def file(self, name: str) -> Path | None:
        """The file in the hub's cache, fetched where need be; None where the repository has none of that name.

        Raises SourceError where the hub cannot give it and the cache has not got it.
        """
        with self._silent():
            if self._revision and _COMMIT.fullmatch(self._revision):  # what a commit holds does not change
                known, path = self._cached(name)
                if known:
                    return path
            return self._fetched(name) if self._trouble is None else self._left(name, self._trouble)

    def first(self, names: Iterable[str]) -> Path | None:
        """The first of these files that there is. Raises SourceError where hub and cache cannot tell."""
        unknown: SourceError | None = None
        for name in names:
            try:
                path = self.file(name)
            except SourceError as error:
                if self._trouble is None:
                    raise
                unknown = unknown or error
                continue
            if path is not None:
                return path
        if unknown is not None:
            raise unknown
        return None

    @property
    def finding(self) -> Finding | None:
        """Said where the files came from the cache alone."""
        said = f"{self._repository} from the cache"
        if not self._asked:
            return Finding("hub", "note", said, reason="a commit does not change: the hub was not asked")
        if self._trouble is None:
            return None
        return Finding("hub", "warn", said, reason=f"{self._answer(self._trouble)}; a newer revision would not be seen")

    @cached_property
    def _trouble(self) -> Exception | None:
        """Why the hub cannot be used; None where it answers."""
        self._asked = True
        for tries_left in reversed(range(_TRIES)):
            error = self._request()
            status = getattr(getattr(error, "response", None), "status_code", None)
            if status not in _PASSING or not tries_left:
                break
            time.sleep(1)
        return error

    def _request(self) -> Exception | None:
        """One request, no retries."""
        try:
            endpoint = os.environ.get("HF_ENDPOINT") or None
            address = self._hub.hf_hub_url(self._repository, _PROBE, revision=self._revision, endpoint=endpoint)
            found = self._hub.get_hf_file_metadata(address, timeout=self._hub.constants.HF_HUB_ETAG_TIMEOUT)
        except self._errors.EntryNotFoundError:
            return None  # it answers: there is no such file
        except Exception as error:  # noqa: BLE001 - whatever the transport raises; _refusal says it
            return error
        return None if found.commit_hash else OSError("something answers that is no hub; a login page of the network?")

    def _fetched(self, name: str) -> Path | None:
        endpoint = os.environ.get("HF_ENDPOINT") or None
        try:
            path = self._hub.hf_hub_download(self._repository, name, revision=self._revision, endpoint=endpoint)
        except self._errors.LocalEntryNotFoundError as error:  # its cause is what happened
            raise self._refusal(name, error.__cause__ if isinstance(error.__cause__, Exception) else error) from error
        except self._errors.EntryNotFoundError:
            return None
        except Exception as error:  # whatever the transport raises
            raise self._refusal(name, error) from error
        return Path(path)

    def _left(self, name: str, trouble: Exception) -> Path | None:
        if not isinstance(trouble, self._errors.HFValidationError):
            known, path = self._cached(name)
            if known:
                return path
        raise self._refusal(name, trouble) from trouble

    def _cached(self, name: str) -> tuple[bool, Path | None]:
        """Whether the cache knows about the file, and where it lies; it also keeps that a file does not exist."""
        found = self._hub.try_to_load_from_cache(self._repository, name, revision=self._revision)
        return found is not None, Path(found) if isinstance(found, str) else None

    def _answer(self, error: Exception) -> str:
        """What the hub did, in a few words."""
        if isinstance(error, self._errors.OfflineModeIsEnabled):
            return "HF_HUB_OFFLINE is set"
        status = getattr(getattr(error, "response", None), "status_code", None)
        return f"the hub answers {status}" if status else f"the hub does not answer ({_first_line(error)})"

    def _refusal(self, name: str, error: Exception) -> SourceError:
        """The one message for a file that can be had neither from the hub nor from the cache."""
        errors, text = self._errors, f"hf:{self._repository}"
        if isinstance(error, errors.GatedRepoError):
            return SourceError(
                f"{text} is gated", _first_line(error), "accept its terms on the hub, then: hf auth login"
            )
        if isinstance(error, errors.RevisionNotFoundError):
            return SourceError(f"{text} has no revision {self._revision}", _first_line(error))
        if isinstance(error, errors.RepositoryNotFoundError | errors.HFValidationError):
            return SourceError(
                f"the hub has no model {self._repository!r}",
                _first_line(error),
                "check the id (OWNER/NAME), or log in if it is private: hf auth login",
            )
        cache = self._hub.constants.HF_HUB_CACHE
        away = isinstance(error, errors.OfflineModeIsEnabled)
        return SourceError(
            f"{text} cannot be fetched: {self._answer(error)}",
            ("" if away else f"asked: {os.environ.get('HF_ENDPOINT') or self._hub.constants.ENDPOINT}\n")
            + f"{name} is not in the cache on this machine: {cache}",
            "unset HF_HUB_OFFLINE"
            if away
            else "check the network, or download the folder elsewhere and give hf:FOLDER",
        )

    @contextlib.contextmanager
    def _silent(self) -> Iterator[None]:
        """Without the library's own warnings, of which one says each retry; its progress bars stay."""
        log = self._hub.utils.logging
        level = log.get_verbosity()
        log.set_verbosity_error()
        try:
            yield
        finally:
            log.set_verbosity(level)


def _first_line(error: BaseException) -> str:
    return f"{type(error).__name__}: {(str(error).strip().splitlines() or [''])[0]}"
