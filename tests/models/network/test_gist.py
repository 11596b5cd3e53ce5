"""Gists over a real socket: names, the API, every fault, the cache. Nothing here executes a gist."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from pathlib import Path

import pytest

from anyformer.core.errors import SourceError
from anyformer.core.gistref import GistRef, parse_gist
from anyformer.core.names import default_run_name
from anyformer.core.protocols import Progress
from anyformer.core.view import QuietView
from anyformer.models.network.gist import fetch_gist
from anyformer.models.network.gistcache import Gist
from anyformer.models.network.http import Client
from tests.gist_server import CASES, CONFIG, ID, LIMITED, MODEL, SLOW, Case, Fault, GistServer

REVISION = "a" * 40
REF = GistRef(ID)


@pytest.fixture
def server():
    with GistServer() as running:
        running.put()
        yield running


@pytest.fixture
def cache(tmp_path) -> Path:
    return tmp_path / "cache"


def fetch(server: GistServer, cache: Path, ref: GistRef = REF, **options) -> Gist:
    given = {"token": "", "timeout": SLOW / 4, "sleep": lambda seconds: None, **options}
    return fetch_gist(ref, base_url=server.url, cache_dir=cache, **given)


def fetch_text(server: GistServer, cache: Path, text: str) -> Gist:
    """As load_model does: the name is read, then fetched."""
    ref = parse_gist(text)
    assert ref is not None
    return fetch(server, cache, ref)


def words(gist: Gist) -> str:
    return "\n".join(f"{f.verdict} {f.name}: {f.measured} {f.reason}" for f in gist.findings)


# names


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (f"gist:{ID}", GistRef(ID)),
        (ID, GistRef(ID)),
        (f"gist:octocat/{ID}", GistRef(ID)),
        (f"gist:{ID}@{REVISION}", GistRef(ID, REVISION)),
        (f"gist:{ID}:transformer.py", GistRef(ID, file="transformer.py")),
        (f"gist:{ID}:Net", GistRef(ID, class_name="Net")),
        (f"gist:{ID}@{REVISION}:my file.py:Net", GistRef(ID, REVISION, "my file.py", "Net")),
        (f"https://gist.github.com/octocat/{ID}", GistRef(ID)),
        (f"https://gist.github.com/octocat/{ID}.git", GistRef(ID)),
        (f"https://gist.github.com/octocat/{ID}/", GistRef(ID)),
        (f"https://gist.github.com/octocat/{ID}/revisions", GistRef(ID)),
        (f"https://gist.github.com/octocat/{ID}/{REVISION}", GistRef(ID, REVISION)),
        (f"https://gist.github.com/octocat/{ID}?permalink=1#file-net-py", GistRef(ID, file="#file-net-py")),
        (f"https://gist.github.com/{ID}", GistRef(ID)),
        (f"https://gist.githubusercontent.com/o/{ID}/raw/{REVISION}/net.py", GistRef(ID, REVISION, "net.py")),
        (f"https://gist.githubusercontent.com/o/{ID}/raw/net.py", GistRef(ID, file="net.py")),
        (f"#gist_id={ID}&name=My%20GPT&revision={REVISION}", GistRef(ID, REVISION, name="My GPT")),
        (f"https://colab.research.google.com/github/a/b/training.ipynb#gist_id={ID}&name=N", GistRef(ID, name="N")),
    ],
)
def test_the_forms_of_a_gist(text, expected):
    assert parse_gist(text) == expected


@pytest.mark.parametrize("text", ["model.py", "model.py:Net", "hf:gpt2", "runs/a", "example:gpt", "https://x.org/y"])
def test_what_is_no_gist(text):
    assert parse_gist(text) is None


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gist:", "'' is not the id"),
        ("gist:../../etc/passwd", "not an id"),
        ("gist:a.b", "'a.b' is not the id"),
        ("gist:a%2e%2e", "is not the id"),
        (f"gist:{ID}@../x", "not an id"),
        (f"gist:{ID}@", "no revision after @"),
        (f"gist:{ID}@a..b", "'a..b' is no revision"),
        (f"gist:{ID}:../x.py", "'../x.py' is not the name"),
        (f"gist:{ID}:a b", "no class name"),
        ("#gist_id=../../x&name=y", "is not the id"),
        ("https://gist.github.com/", "names no gist"),
        ("https://github.com/a/b/blob/main/model.py", "not a gist"),
        ("https://raw.githubusercontent.com/a/b/main/model.py", "not a gist"),
        (f"https://gist.githubusercontent.com/o/{ID}/raw/r/..%2fx.py", "is not the name"),
    ],
)
def test_impossible_names(text, says):
    with pytest.raises(SourceError) as caught:
        parse_gist(text)
    assert says in str(caught.value)


def test_a_reference_made_by_hand_is_checked_too():
    with pytest.raises(SourceError):
        GistRef("../../x")


@pytest.mark.parametrize("ref", [GistRef(ID), GistRef(ID, REVISION, "net.py", "Net"), GistRef(ID, class_name="Net")])
def test_the_short_form_reads_back(ref):
    assert parse_gist(str(ref)) == ref


def test_runs_of_gists_have_short_names():
    assert default_run_name(f"gist:{ID}@{REVISION}", "corpus.txt") == "gist-01234567-corpus"
    assert default_run_name(f"https://colab.research.google.com/x.ipynb#gist_id={ID}&name=My%20GPT", "a.txt") == (
        "My-GPT-a"
    )


# what is fetched


def test_what_a_gist_holds(server, cache):
    revision = server.put()
    gist = fetch(server, cache)
    assert (gist.id, gist.revision, gist.owner, gist.main) == (ID, revision, "octocat", "model.py")
    assert (gist.folder / "model.py").read_text() == MODEL
    assert gist.files == {
        "model.py": hashlib.sha256(MODEL.encode()).hexdigest(),
        "config.json": hashlib.sha256(CONFIG.encode()).hexdigest(),
    }
    assert gist.location == f"gist:{ID}@{revision}"
    assert "by octocat" in words(gist)
    asked = server.asked[0]
    assert asked.path == f"/gists/{ID}"
    assert asked.headers["accept"] == "application/vnd.github+json"
    assert asked.headers["user-agent"].startswith("anyformer")
    assert asked.headers["x-github-api-version"]


def test_an_anonymous_owner_is_said(server, cache):
    server.put(owner=None)
    gist = fetch(server, cache)
    assert gist.owner is None
    assert "unknown owner (anonymous gist)" in words(gist)


def test_only_code_settings_and_text_are_stored(server, cache):
    server.put({"model.py": MODEL, "helper.pyc": "x", "net.so": "x", "vocab.txt": "a", "anyformer.yaml": "a: 1"})
    gist = fetch(server, cache)
    assert sorted(p.name for p in gist.folder.iterdir()) == ["anyformer.yaml", "model.py", "vocab.txt"]
    assert "left out: helper.pyc, net.so" in words(gist)


def test_another_file_and_the_pages_anchor(server, cache):
    server.put({"my_Net.py": MODEL, "config.json": CONFIG})
    assert fetch(server, cache, GistRef(ID, file="my_Net.py")).main == "my_Net.py"
    assert fetch(server, cache, GistRef(ID, file="#file-my_net-py")).main == "my_Net.py"


def test_a_pinned_revision_is_asked_for(server, cache):
    old = server.put({"model.py": "old"})
    server.put({"model.py": "new"})
    gist = fetch(server, cache, GistRef(ID, old))
    assert server.paths == [f"/gists/{ID}/{old}"]
    assert (gist.folder / "model.py").read_text() == "old"
    assert gist.revision == old


def test_progress_of_a_download(server, cache):
    content = MODEL.encode() + b"#" * 600_000
    server.put_long("model.py", content)
    seen: list[tuple[int, int]] = []

    class Seen(QuietView):
        bars: list[Progress] = []  # noqa: RUF012
        stages: list[str] = []  # noqa: RUF012

        def progress(self, progress: Progress) -> None:
            self.bars.append(progress)

        def stage(self, name: str, value: str, detail: str = "") -> None:
            self.stages.append(f"{name} {value} {detail}")

    fetch(server, cache, view=Seen(), progress=lambda done, total: seen.append((done, total)))
    whole = [done for done, total in seen if total == len(content)]
    assert len(whole) > 3
    assert whole == sorted(whole)
    assert whole[-1] == len(content)
    assert Seen.bars[-1].done == Seen.bars[-1].total == len(content)
    assert Seen.stages[0].startswith(f"gist {ID} by octocat revision ")


# faults


@pytest.mark.parametrize("case", CASES, ids=[case.name for case in CASES])
def test_a_fault(case: Case, server, cache):
    if case.cached:
        fetch(server, cache)
        server.asked.clear()
    case.arrange(server)
    begin = time.monotonic()
    if case.loads:
        gist = fetch(server, cache, parse_gist(case.ref))
        said = words(gist)
        assert (gist.folder / gist.main).read_text() == MODEL
    else:
        with pytest.raises(SourceError) as caught:
            fetch_text(server, cache, case.ref)
        said = str(caught.value)
        assert not list(cache.rglob("model.py")), "nothing is kept of a fetch that failed"
    for part in case.says:
        assert part in said
    assert case.requests in (None, len(server.asked))
    assert time.monotonic() - begin < 10


def test_waits_grow_and_a_server_may_ask_for_longer(server, cache):
    server.faults += [Fault(500), Fault(500), Fault(503, {"Retry-After": "7"})]
    waits: list[float] = []
    fetch(server, cache, sleep=waits.append)
    assert len(waits) == 3
    assert 0.25 <= waits[0] <= 0.75 <= 2 * waits[0] + 1
    assert 0.5 <= waits[1] <= 1.5
    assert waits[2] == 7


def test_the_rate_limit_speaks_of_the_token_that_is_there(server, cache):
    server.always = Fault(403, LIMITED)
    with pytest.raises(SourceError) as caught:
        fetch(server, cache, token="ghp_secret")
    assert "5,000 requests an hour with a token" in str(caught.value)
    assert "ghp_secret" not in str(caught.value)


# token


def test_the_token_is_sent_to_the_api_alone(server, cache, monkeypatch):
    monkeypatch.setenv("GITHUB_TOKEN", "ghp_secret")
    server.put_long("model.py", MODEL.encode())
    fetch(server, cache, token=None)
    by_path = {asked.path: asked.headers.get("authorization") for asked in server.asked}
    assert by_path == {f"/gists/{ID}": "Bearer ghp_secret", "/raw/model.py": None}


def test_no_token_no_header(server, cache, monkeypatch):
    monkeypatch.delenv("GITHUB_TOKEN", raising=False)
    fetch(server, cache, token=None)
    assert "authorization" not in server.asked[0].headers


def test_a_redirect_to_another_port_loses_the_token(server, cache):
    with GistServer() as other:
        other.put()
        server.faults.append(Fault(302, {"Location": f"{other.url}/gists/{ID}"}))
        fetch(server, cache, token="ghp_secret")
        assert server.asked[0].headers["authorization"] == "Bearer ghp_secret"
        assert "authorization" not in other.asked[0].headers


def test_a_broken_token_is_refused_and_not_shown(server, cache):
    with pytest.raises(SourceError) as caught:
        fetch(server, cache, token="ghp\nsecret")
    assert "GITHUB_TOKEN" in str(caught.value)
    assert "secret" not in str(caught.value)
    assert server.asked == []


@pytest.mark.parametrize("base", ["http://api.github.com", "ftp://127.0.0.1", "https://", "file:///etc"])
def test_the_server_is_asked_by_https_or_is_this_machine(base, cache):
    with pytest.raises(SourceError, match="cannot be the gist server"):
        fetch_gist(REF, base_url=base, cache_dir=cache)


def test_the_environment_names_the_server(server, cache, monkeypatch):
    monkeypatch.setenv("ANYFORMER_GIST_API", server.url + "/")
    assert fetch_gist(REF, cache_dir=cache, token="").id == ID


# cache


def test_an_unchanged_gist_is_not_sent_again(server, cache):
    first = fetch(server, cache)
    second = fetch(server, cache)
    assert server.asked[1].headers["if-none-match"]
    assert "if-none-match" not in server.asked[0].headers
    assert second.files == first.files
    assert second.folder == first.folder


def test_a_changed_gist_is_fetched(server, cache):
    first = fetch(server, cache)
    server.put({"model.py": MODEL + "# more\n"})
    second = fetch(server, cache)
    assert first.revision != second.revision
    assert (second.folder / "model.py").read_text().endswith("# more\n")
    assert (first.folder / "model.py").read_text() == MODEL, "the old revision stays"


def test_a_revision_in_the_cache_needs_no_network(server, cache):
    revision = server.put()
    fetch(server, cache)
    server.stop()
    gist = fetch(server, cache, GistRef(ID, revision))
    assert gist.revision == revision
    assert "from the cache" in words(gist)


def test_offline_says_so_as_a_warning(server, cache):
    fetch(server, cache)
    server.stop()
    found = [f for f in fetch(server, cache).findings if "from the cache" in f.measured]
    assert [f.verdict for f in found] == ["warn"]
    assert "may have changed since" in found[0].reason


def test_a_gist_deleted_since_names_the_copy_that_is_kept(server, cache):
    first = fetch(server, cache)
    server.gists.clear()
    with pytest.raises(SourceError) as caught:
        fetch(server, cache)
    assert "there is no gist" in str(caught.value)
    assert f"→ the revision fetched {first.fetched} is kept: {first.location}" in str(caught.value)
    assert fetch(server, cache, parse_gist(first.location)).files == first.files


@pytest.mark.parametrize("damage", ["edited", "added", "removed", "record"])
def test_a_damaged_copy_is_fetched_again(server, cache, damage):
    gist = fetch(server, cache)
    hurt(gist, damage)
    again = fetch(server, cache)
    assert "if-none-match" not in server.asked[1].headers
    assert sorted(p.name for p in again.folder.iterdir()) == ["config.json", "model.py"]
    assert (again.folder / "model.py").read_text() == MODEL
    assert "damaged" in words(again)


def test_a_damaged_copy_offline_is_an_error(server, cache):
    hurt(fetch(server, cache), "edited")
    server.stop()
    with pytest.raises(SourceError) as caught:
        fetch(server, cache)
    assert "damaged" in str(caught.value)
    assert "sha256 of model.py" in str(caught.value)


def hurt(gist: Gist, damage: str) -> None:
    file = gist.folder / "model.py"
    if damage == "edited":
        file.write_text(MODEL.replace("tanh", "tan"))
    elif damage == "added":
        (gist.folder / "torchx.py").write_text("print('never reviewed')")
    elif damage == "removed":
        file.unlink()
    else:
        (gist.folder.parent / "gist.json").write_text("{")


def test_servers_do_not_share_copies(server, cache):
    fetch(server, cache)
    with GistServer() as other, pytest.raises(SourceError, match="there is no gist"):
        fetch(other, cache)


def test_a_folder_that_cannot_be_written(server, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SourceError) as caught:
        fetch(server, tmp_path / "file")
    assert "ANYFORMER_CACHE" in str(caught.value)


def test_no_half_written_revision_is_left(server, cache):
    fetch(server, cache)
    assert not [p for p in cache.rglob("*") if p.name.startswith(".new-") or p.suffix == ".tmp"]
    record = json.loads(next(cache.rglob("gist.json")).read_text())
    assert record["files"]["model.py"] == hashlib.sha256(MODEL.encode()).hexdigest()


def test_a_gist_without_history_is_kept_by_content(server, cache):
    server.put(edit=lambda record: record.pop("history"))
    gist = fetch(server, cache)
    assert gist.revision is None
    assert gist.location == f"gist:{ID}"
    assert fetch(server, cache).files == gist.files


def test_the_client_gives_up_after_four_tries(server):
    client = Client(lambda url: True, 1.0, lambda seconds: None)
    server.always = Fault(500)
    with pytest.raises(Exception, match="4 times"):
        client.get(server.url + "/gists/x", headers={}, limit=10, what="x")
    with pytest.raises(Exception, match="2 times"):
        replace(client, tries=2).get(server.url + "/gists/x", headers={}, limit=10, what="x")
    assert len(server.asked) == 6
