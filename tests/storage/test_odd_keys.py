"""Keys that no tool would make but buckets and folders hold: listed, once, and read."""

from __future__ import annotations

import http.server
import itertools
import os
import tempfile
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import parse_qs, quote_plus, unquote_to_bytes

import pytest

from speechmill.errors import AccessDeniedError, NotFoundError, StorageError, UnavailableError
from speechmill.storage import StoreOptions, open_store
from speechmill.storage.remote import nameable
from tests.support.services import SeaweedFS

ODD = [
    b"in/a//b.flac",
    b"in/./b.flac",
    b"in/../b.flac",
    b"in//lead.flac",
    b"in/tab\tnl\ncr\r\x01\x7f.flac",
    b"in/latin-\xe9\xff\xfe.flac",
    b"in/full/",
    b"in/plain.flac",
    b"in/sp ace+plus%25&amp;<>#?.flac",
    "in/Zoë 😀.flac".encode(),
]
MARKERS = [b"in/", b"in/folder/"]


class _Bucket(http.server.BaseHTTPRequestHandler):
    """S3 as far as reading goes, for keys that no real server here can hold."""

    protocol_version = "HTTP/1.1"
    objects: dict[bytes, bytes]

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path, _, query = self.path.partition("?")
        if query:
            self._reply(
                200, self._page(parse_qs(query, keep_blank_values=True, encoding="latin-1")), {}
            )
            return
        data = self.objects.get(unquote_to_bytes(path.removeprefix("/odd/")))
        if data is None:
            self._reply(404, b"<Error><Code>NoSuchKey</Code></Error>", {})
            return
        status = 200
        headers = {"ETag": '"tag"', "Last-Modified": "Mon, 23 Nov 2026 05:52:50 GMT"}
        if span := self.headers.get("Range"):
            first, last = span.removeprefix("bytes=").split("-")
            headers["Content-Range"] = f"bytes {first}-{last}/{len(data)}"
            data, status = data[int(first) : int(last) + 1], 206
        self._reply(status, data, headers)

    def _page(self, query: dict[str, list[str]]) -> bytes:
        prefix = query["prefix"][0].encode("latin-1")
        assert query["encoding-type"] == ["url"]
        keys = sorted(k for k in self.objects if k.startswith(prefix))
        start = int(query.get("continuation-token", ["0"])[0])
        contents = "".join(
            f"<Contents><Key>{quote_plus(key)}</Key><Size>{len(self.objects[key])}</Size>"
            "<ETag>&quot;tag&quot;</ETag><LastModified>2026-11-23T05:52:50.123Z</LastModified>"
            "</Contents>"
            for key in keys[start : start + 3]
        )
        more = start + 3 < len(keys)
        token = f"<NextContinuationToken>{start + 3}</NextContinuationToken>" if more else ""
        return (
            '<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/">'
            f"<EncodingType>url</EncodingType>{contents}{token}"
            f"<IsTruncated>{str(more).lower()}</IsTruncated></ListBucketResult>"
        ).encode()

    def _reply(self, status: int, body: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


@pytest.fixture
def bucket() -> Iterator[StoreOptions]:
    class Bucket(_Bucket):
        objects = {key: b"data of " + key for key in ODD} | dict.fromkeys(MARKERS, b"")

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Bucket)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield StoreOptions(
        endpoint_url=f"http://127.0.0.1:{server.server_port}", anonymous=True, retry_s=2
    )
    server.shutdown()
    server.server_close()


@pytest.mark.parametrize("base", ["", "in"])
def test_every_odd_key_of_a_bucket_is_listed_once_and_read(bucket: StoreOptions, base: str) -> None:
    store = open_store(f"s3://odd/{base}", bucket)
    listed = list(store.list())
    start = f"{base}/" if base else ""
    keys = [(start + o.key).encode("utf-8", "surrogateescape") for o in listed]
    assert keys == sorted(ODD)
    for found, key in zip(listed, keys, strict=True):
        data = b"data of " + key
        blob = store.get(found.key)
        assert (blob.data, blob.etag) == (data, "tag")
        assert store.head(found.key) == found
        assert found.size == len(data)
        assert found.modified_us == blob.modified_us
        assert store.read(found.key, 5, 2, etag="tag") == b"of"


def test_an_odd_key_that_is_gone_is_not_found(bucket: StoreOptions) -> None:
    with pytest.raises(NotFoundError):
        open_store("s3://odd", bucket).get("gone//x")


def test_odd_keys_of_a_real_store_are_listed_and_read(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for variable, value in object_store.write_profile(tmp_path).items():
        monkeypatch.setenv(variable, value)
    base = uuid.uuid4().hex
    keys = ["t\tab.flac", "nl\nx.flac", "x\x01y.flac", "cr\r.flac", "x\x7f.flac", "a b+c%.flac"]
    client = object_store.client()
    for key in [*keys, "plain.flac", "marker/"]:
        body = b"" if key == "marker/" else key.encode()
        client.put_object(Bucket="src", Key=f"{base}/{key}", Body=body)
    store = open_store(f"s3://src/{base}", StoreOptions(profile="r2"))
    listed = list(store.list())
    assert sorted(o.key for o in listed) == sorted([*keys, "plain.flac"])
    for found in listed:
        assert store.get(found.key).data == found.key.encode()
        assert store.read(found.key, 0, 1, etag=found.etag) == found.key[0].encode()


@pytest.mark.parametrize(
    ("key", "expected"),
    [
        ("a/b", True),
        ("a/.b", True),
        ("a..b/...", True),
        ("é 😀", True),
        ("", False),
        ("a/", False),
        ("/a", False),
        ("a//b", False),
        (".", False),
        ("a/..", False),
        ("../a", False),
        ("a\t", False),
        ("a\udcff", False),
    ],
)
def test_what_obstore_can_name(key: str, expected: bool) -> None:
    assert nameable(key) is expected


# Folders


def _tree(root: Path) -> None:
    for name in (b"latin-\xe9.wav", b"tab\t\n.wav", b"50% #?.wav", b"-dash", b"a\\b.wav"):
        (root / os.fsdecode(name)).write_bytes(name)
    (root / "sub" / "deep").mkdir(parents=True)
    (root / "sub" / "deep" / "x.wav").write_bytes(b"x")
    (root / "sub" / "loop").symlink_to(root / "sub")
    (root / "sub" / "self").symlink_to(root / "sub" / "self")
    (root / "nothing.wav").symlink_to(root / "gone.wav")
    (root / "linked.wav").symlink_to(root / "sub" / "deep" / "x.wav")
    (root / "linked").symlink_to(root / "sub" / "deep")
    os.mkfifo(root / "pipe.wav")


def test_every_odd_file_of_a_folder_is_accounted_for(tmp_path: Path) -> None:
    _tree(tmp_path)
    store = open_store(str(tmp_path))
    listed = {o.key: o for o in store.list()}
    assert sorted(map(os.fsencode, listed)) == sorted(
        [
            b"latin-\xe9.wav",
            b"tab\t\n.wav",
            b"50% #?.wav",
            b"-dash",
            b"a\\b.wav",
            b"sub/deep/x.wav",
            b"sub/self",
            b"nothing.wav",
            b"linked.wav",
            b"linked/x.wav",
        ]
    )
    for key, found in listed.items():
        if key in ("nothing.wav", "sub/self"):
            assert (found.size, found.etag) == (0, "")
            with pytest.raises(StorageError, match="symbolic link") as caught:
                store.get(key)
            assert not isinstance(caught.value, NotFoundError)
        else:
            blob = store.get(key)
            assert (len(blob.data), blob.etag) == (found.size, found.etag)
            assert blob.modified_us == found.modified_us


def test_reading_a_source_creates_nothing_in_it(tmp_path: Path) -> None:
    _tree(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    store = open_store(str(tmp_path))
    for found in store.list():
        store.head(found.key) if found.etag else None
    store.delete("never/there")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.fixture
def as_nobody() -> Iterator[Path]:
    """A folder of a user who may not everything: permissions do not hold for root."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        folder.chmod(0o755)
        (folder / "locked").mkdir()
        (folder / "locked" / "x.wav").write_bytes(b"x")
        (folder / "open.wav").write_bytes(b"x")
        (folder / "secret.wav").write_bytes(b"x")
        (folder / "secret.wav").chmod(0)
        (folder / "locked").chmod(0)
        root = os.geteuid() == 0
        if root:
            os.seteuid(65534)
        else:
            folder.chmod(0o555)
        try:
            yield folder
        finally:
            if root:
                os.seteuid(0)
            folder.chmod(0o755)
            (folder / "locked").chmod(0o755)


def test_an_unreadable_folder_is_listed_as_such_and_does_not_stop_the_listing(
    as_nobody: Path,
) -> None:
    store = open_store(str(as_nobody))
    listed = {o.key: o.etag for o in store.list()}
    assert sorted(listed) == ["locked", "open.wav", "secret.wav"]
    assert listed["locked"] == ""
    for key in ("locked", "secret.wav", "locked/x.wav"):
        with pytest.raises(AccessDeniedError, match=key):
            store.get(key)


def test_a_folder_that_cannot_be_written_fails_the_check(as_nobody: Path) -> None:
    with pytest.raises(AccessDeniedError):
        open_store(str(as_nobody)).check()


def test_a_folder_that_is_not_there_is_an_error_not_an_empty_source(tmp_path: Path) -> None:
    with pytest.raises(NotFoundError, match="no folder"):
        list(open_store(str(tmp_path / "typo")).list())
    (tmp_path / "file").write_bytes(b"x")
    with pytest.raises(NotFoundError, match="not a folder"):
        list(open_store(str(tmp_path / "file")).list())


def test_a_file_that_keeps_changing_is_an_error_in_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.wav"
    path.write_bytes(b"x")
    looks = itertools.count(1)

    def change_and_look(descriptor: int) -> os.stat_result:
        now = next(looks)
        os.utime(path, ns=(now, now))
        return os.stat(descriptor)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fstat", change_and_look)
        with pytest.raises(UnavailableError, match="keeps changing"):
            open_store(str(tmp_path)).get("a.wav")
    assert open_store(str(tmp_path)).get("a.wav").data == b"x"
