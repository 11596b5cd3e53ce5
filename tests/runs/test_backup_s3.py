"""The same against a real S3 server on loopback (moto's) that fails now and then, or is away for a while."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("s3fs", reason="needs the extra remote")
pytest.importorskip("moto.server", reason="needs the dev extra")

import boto3
from flask import Response
from moto.server import DomainDispatcherApplication, ThreadedMotoServer

from anyformer.core.errors import CorruptCheckpoint
from anyformer.runs.checkpoints import DirectoryCheckpointIO
from anyformer.runs.remote import RemoteFolder, checkpoints_at, fetch_checkpoint
from tests.runs.test_backup import Noting, backup, contents, flipped, local, save

URL = "s3://bucket/runs/mine"


class Server:
    """moto's server; ``answers`` are statuses that the next requests get instead of its own."""

    def __init__(self, client: Any) -> None:
        self.client = client
        self.answers: list[int] = []
        self.seen: list[tuple[str, str]] = []


@pytest.fixture(scope="module")
def started() -> Iterator[tuple[str, Server]]:
    state = Server(None)
    plain = DomainDispatcherApplication.__call__

    def call(self: Any, environ: dict[str, Any], start_response: Any) -> Any:
        state.seen.append((environ["REQUEST_METHOD"], environ["PATH_INFO"]))
        if state.answers and environ["REQUEST_METHOD"] in ("PUT", "GET", "HEAD", "POST"):
            status = state.answers.pop(0)
            if status != 200:
                return Response("<Error><Code>Fault</Code></Error>", status=status)(environ, start_response)
        return plain(self, environ, start_response)

    DomainDispatcherApplication.__call__ = call  # type: ignore[method-assign]
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}", state
    server.stop()
    DomainDispatcherApplication.__call__ = plain  # type: ignore[method-assign]


@pytest.fixture
def s3(started: tuple[str, Server], monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    url, state = started
    for name, value in {
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": url,
        "AWS_MAX_ATTEMPTS": "1",
    }.items():
        monkeypatch.setenv(name, value)
    state.client = boto3.client("s3", endpoint_url=url)
    state.client.create_bucket(Bucket="bucket")
    state.answers, state.seen = [], []
    yield state
    state.answers = []
    for item in state.client.list_objects_v2(Bucket="bucket").get("Contents", []):
        state.client.delete_object(Bucket="bucket", Key=item["Key"])
    state.client.delete_bucket(Bucket="bucket")


def objects(s3: Server) -> dict[str, bytes]:
    """What is in the bucket, asked with another library."""
    keys = [item["Key"] for item in s3.client.list_objects_v2(Bucket="bucket").get("Contents", [])]
    return {
        key.removeprefix("runs/mine/"): s3.client.get_object(Bucket="bucket", Key=key)["Body"].read() for key in keys
    }


def test_checkpoints_arrive_are_pruned_and_come_back(tmp_path: Path, s3: Server) -> None:
    one = backup(tmp_path, URL)
    for step in (1, 2, 3, 4):
        one.offer(save(tmp_path, step))
        if step > 2:
            DirectoryCheckpointIO().remove_checkpoint(tmp_path / "checkpoints" / f"step-{step - 2:08d}")
        assert one.close(60)[0].verdict == "ok"
    assert objects(s3) == local(tmp_path, 3, 4) == contents(RemoteFolder(URL))
    assert checkpoints_at(RemoteFolder(URL)) == ["step-00000004", "step-00000003"]
    back = fetch_checkpoint(RemoteFolder(URL), "step-00000004", tmp_path / "back")
    assert {f"{back.name}/{file.name}": file.read_bytes() for file in back.iterdir()} == local(tmp_path, 4)
    body = objects(s3)["step-00000004/state.pt"]
    s3.client.put_object(Bucket="bucket", Key="runs/mine/step-00000004/state.pt", Body=flipped(body))
    with pytest.raises(CorruptCheckpoint, match=r"state\.pt"):
        fetch_checkpoint(RemoteFolder(URL), "step-00000004", tmp_path / "again")


@pytest.mark.parametrize("status", [403, 404, 500, 503])
def test_a_server_that_fails_now_and_then_delays_the_copy_and_no_more(tmp_path: Path, s3: Server, status: int) -> None:
    for at in (0, 2, 4, 6, 8):
        folder = tmp_path / str(at)
        view = Noting()
        one = backup(folder, f"s3://bucket/runs/mine/{at}", view)
        s3.answers = [200] * at + [status]
        one.offer(save(folder, 10))
        (said,) = one.close(60)
        one.stop()
        assert said.verdict == "ok", (at, said)
        there = {name.partition("/")[2]: body for name, body in objects(s3).items() if name.startswith(f"{at}/")}
        assert there == local(folder, 10)


@pytest.mark.soak  # s3fs itself tries five times before it says so
def test_a_server_that_is_away_is_waited_for(tmp_path: Path, s3: Server) -> None:
    view = Noting()
    one = backup(tmp_path, URL, view)
    s3.answers = [503] * 12
    one.offer(save(tmp_path, 10))
    assert one.close(60)[0].verdict == "ok"
    assert len(view.found) == 1
    assert "the training goes on" in view.found[0].reason
    assert objects(s3) == local(tmp_path, 10)


def test_no_such_bucket_is_a_warning_with_its_name(tmp_path: Path, s3: Server) -> None:
    view = Noting()
    one = backup(tmp_path, "s3://absent/runs", view)
    one.offer(save(tmp_path, 10))
    (said,) = one.close(1.5)
    assert said.verdict == "warn"
    assert "step-00000010" in said.measured
    assert view.found[0].verdict == "warn"
    s3.client.create_bucket(Bucket="absent")  # somebody makes it while the run goes on
    assert one.close(30)[0].verdict == "ok"
    for item in s3.client.list_objects_v2(Bucket="absent")["Contents"]:
        s3.client.delete_object(Bucket="absent", Key=item["Key"])
    s3.client.delete_bucket(Bucket="absent")
