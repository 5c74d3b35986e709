"""Sources on S3, from moto's server."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from stages.corpus_prep.reading.damage import ReadNotes
from stages.corpus_prep.reading.downloads import FOLDER_VARIABLE
from stages.corpus_prep.reading.readers import read_rows
from stages.corpus_prep.reading.sources import expand, source_digests
from stages.corpus_prep.spec import CorpusPrepConfig
from stages.runtime.errors import UserError

DATA = json.dumps({"text": "from a bucket"}).encode() + b"\n"


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """boto3's bucket of that name; the usual variables lead to the server."""
    import boto3
    import s3fs
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    _, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "no_proxy": "127.0.0.1",
        FOLDER_VARIABLE: str(tmp_path / "downloads"),
    }.items():
        monkeypatch.setenv(name, value)
    s3fs.S3FileSystem.clear_instance_cache()  # one of another test would know another server
    made = boto3.resource("s3").Bucket("texts")
    made.create()
    yield made
    s3fs.S3FileSystem.clear_instance_cache()
    server.stop()


def test_folders_globs_and_pins(bucket: Any) -> None:
    for name in ("zh/a.jsonl", "zh/b.jsonl", "zh/c.png"):
        bucket.put_object(Key=name, Body=DATA)
    files = expand("sources", ["s3://texts/zh;weight=2"])
    assert [(file.name, file.weight) for file in files] == [("a.jsonl", 2.0), ("b.jsonl", 2.0)]
    assert [row["text"] for row in read_rows(files[1], ReadNotes())] == ["from a bucket"]
    sha256 = hashlib.sha256(DATA).hexdigest()
    digests = source_digests(CorpusPrepConfig(sources=("s3://texts/*/a.jsonl",)))
    assert digests["000 a.jsonl"] == sha256
    bucket.put_object(Key="zh/a.jsonl", Body=DATA * 2)
    assert source_digests(CorpusPrepConfig(sources=("s3://texts/zh/a.jsonl",)))["000 a.jsonl"] != sha256
    with pytest.raises(UserError, match=f"and {sha256} was expected"):
        expand("sources", [f"s3://texts/zh/a.jsonl#sha256={sha256}"])
    with pytest.raises(UserError, match=r"s3://texts/none\.jsonl"):
        expand("sources", ["s3://texts/none.jsonl"])
