"""Which keys and which endpoint are used, and what is said when they are wrong."""

from __future__ import annotations

import http.server
import json
import pickle
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

import speechmill.storage.credentials
import speechmill.storage.s3
from speechmill.errors import AccessDeniedError, JobError, NotFoundError, SpeechmillError
from speechmill.storage import StoreOptions, inside, open_store
from speechmill.storage.credentials import resolve
from tests.support.services import SeaweedFS


class AwsFiles:
    """The two files of ~/.aws, and the environment that points at them."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.config, self.credentials = folder / "config", folder / "credentials"
        monkeypatch.setenv("AWS_CONFIG_FILE", str(self.config))
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(self.credentials))
        self.write("", "")

    def write(self, config: str, credentials: str) -> None:
        self.config.write_text(config)
        self.credentials.write_text(credentials)


KEYS = "aws_access_key_id = AKIAFILE\naws_secret_access_key = from-the-file\n"


@pytest.fixture
def aws(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AwsFiles:
    return AwsFiles(tmp_path, monkeypatch)


@pytest.fixture
def metadata(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """Stands in for 169.254.169.254. Holds what was asked of it."""
    asked: list[str] = []

    class Trap(http.server.BaseHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            """Quiet."""

        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404)

        def do_PUT(self) -> None:
            self.do_GET()

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Trap)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv(
        "AWS_EC2_METADATA_SERVICE_ENDPOINT", f"http://127.0.0.1:{server.server_port}/"
    )
    yield asked
    server.shutdown()
    server.server_close()


# Profiles, against the real store


def test_a_profile_with_its_own_endpoint_is_enough(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.write_profile(tmp_path).items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://dst/credentials", StoreOptions(profile="r2"))
    store.put("a", b"x")
    assert store.get("a").data == b"x"
    monkeypatch.setenv("AWS_PROFILE", "r2")
    assert open_store("s3://dst/credentials").get("a").data == b"x"


def test_a_profile_goes_before_keys_in_the_environment(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.write_profile(tmp_path).items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIAWRONG")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    monkeypatch.setenv("AWS_SESSION_TOKEN", "wrong")
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    open_store("s3://dst/credentials", StoreOptions(profile="r2")).check()


def test_keys_and_endpoint_of_the_environment_are_enough(
    object_store: SeaweedFS, monkeypatch: pytest.MonkeyPatch, metadata: list[str]
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", object_store.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", object_store.secret_key)
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", object_store.endpoint_url + "/")
    open_store("s3://dst/credentials").check()
    assert metadata == []


def test_a_wrong_secret_is_denied_and_never_shown(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = "Wrong+Secret/0123456789"
    for name, value in object_store.write_profile(tmp_path, secret_key=wrong).items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://src", StoreOptions(profile="r2"))
    for ask in (
        lambda: store.get("a"),
        lambda: list(store.list()),
        lambda: store.get("odd//key"),
        store.check,
    ):
        with pytest.raises(AccessDeniedError, match="secret key is wrong") as caught:
            ask()
        assert wrong not in str(caught.value)
    assert wrong not in f"{store!r} {store.url} {vars(store)}"


def test_an_unknown_access_key_says_what_to_check(
    object_store: SeaweedFS, aws: AwsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.write("", f"[r2]\n{KEYS}")
    options = StoreOptions(profile="r2", endpoint_url=object_store.endpoint_url)
    with pytest.raises(AccessDeniedError, match="does not know the access key"):
        open_store("s3://src", options).get("a")


def test_a_key_that_may_only_read_reads_and_fails_the_check(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    object_store.client().put_object(Bucket="src", Key="readable/a", Body=b"x")
    for name, value in object_store.write_profile(tmp_path, read_only=True).items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://src/readable", StoreOptions(profile="r2"))
    assert [o.key for o in store.list()] == ["a"]
    assert store.get("a").data == b"x"
    with pytest.raises(AccessDeniedError, match="may not do this"):
        store.check()


def test_a_bucket_that_is_not_there_is_named(
    object_store: SeaweedFS, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in object_store.write_profile(tmp_path).items():
        monkeypatch.setenv(name, value)
    store = open_store("s3://no-such-bucket/x", StoreOptions(profile="r2"))
    with pytest.raises(NotFoundError, match="no bucket 'no-such-bucket'"):
        list(store.list())


def test_requests_without_a_signature_need_no_keys(
    object_store: SeaweedFS, metadata: list[str]
) -> None:
    options = StoreOptions(endpoint_url=object_store.endpoint_url, anonymous=True)
    with pytest.raises(AccessDeniedError):
        open_store("s3://src", options).get("a")
    assert metadata == []


def test_keys_that_expire_are_renewed(
    object_store: SeaweedFS, aws: AwsFiles, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given = tmp_path / "given.json"

    def give(secret: str) -> None:
        expires = datetime.now(UTC) + timedelta(seconds=120)
        given.write_text(
            json.dumps(
                {
                    "Version": 1,
                    "AccessKeyId": object_store.access_key,
                    "SecretAccessKey": secret,
                    "Expiration": expires.isoformat(),
                }
            )
        )

    aws.write(
        f"[profile r2]\nendpoint_url = {object_store.endpoint_url}\n"
        f"credential_process = {sys.executable} -c \"print(open('{given}').read())\"\n",
        "",
    )
    monkeypatch.setattr(speechmill.storage.s3, "CREDENTIALS_TTL", timedelta(0))
    give("stale")
    store = open_store("s3://dst/credentials", StoreOptions(profile="r2"))
    with pytest.raises(AccessDeniedError):
        store.get("a")
    give(object_store.secret_key)
    store.put("renewed", b"x")
    assert [o.key for o in store.list("")].count("renewed") == 1


# Where nothing is asked of any store


def test_the_endpoint_comes_from_flag_then_profile_then_environment(
    aws: AwsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = "[profile r2]\nendpoint_url = http://profile:1\n"
    aws.write(config, f"[r2]\n{KEYS}[plain]\n{KEYS}")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://environment:1")
    flag = StoreOptions(profile="r2", endpoint_url="http://flag:1/")
    assert resolve("b", flag).endpoint_url == "http://flag:1"
    assert resolve("b", StoreOptions(profile="r2")).endpoint_url == "http://profile:1"
    assert resolve("b", StoreOptions(profile="plain")).endpoint_url == "http://environment:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://for-s3:1")
    assert resolve("b", StoreOptions(profile="plain")).endpoint_url == "http://for-s3:1"
    assert resolve("b", StoreOptions(profile="r2")).endpoint_url == "http://profile:1"


def test_an_endpoint_in_a_services_section_is_the_profiles_own(aws: AwsFiles) -> None:
    aws.write(
        "[profile r2]\nservices = mine\nendpoint_url = http://general:1\n"
        "[services mine]\ns3 =\n  endpoint_url = http://service:1\n",
        f"[r2]\n{KEYS}",
    )
    assert resolve("b", StoreOptions(profile="r2")).endpoint_url == "http://service:1"


def test_the_environment_goes_before_a_default_profile_that_nobody_named(
    aws: AwsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    aws.write("[default]\nendpoint_url = http://default:1\n", f"[default]\n{KEYS}")
    assert resolve("b", StoreOptions()).endpoint_url == "http://default:1"
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://environment:1")
    assert resolve("b", StoreOptions()).endpoint_url == "http://environment:1"


@pytest.mark.parametrize(
    ("endpoint", "expected"),
    [
        ("https://account.r2.cloudflarestorage.com", "https://account.r2.cloudflarestorage.com"),
        ("https://account.r2.cloudflarestorage.com/", "https://account.r2.cloudflarestorage.com"),
        (
            "https://account.r2.cloudflarestorage.com/voices",
            "https://account.r2.cloudflarestorage.com",
        ),
        ("http://localhost:9000/voices/", "http://localhost:9000"),
        ("https://host/storage/v1/s3", "https://host/storage/v1/s3"),
    ],
)
def test_endpoints_as_people_paste_them(aws: AwsFiles, endpoint: str, expected: str) -> None:
    aws.write("[profile r2]\nregion = eu-west-1\n", f"[r2]\n{KEYS}")
    access = resolve("voices", StoreOptions(profile="r2", endpoint_url=endpoint))
    assert access.endpoint_url == expected
    assert access.region == ("auto" if "cloudflare" in endpoint else "eu-west-1")


@pytest.mark.parametrize(
    ("endpoint", "says"),
    [
        ("account.r2.cloudflarestorage.com", "https://"),
        ("ftp://host", "https://"),
        ("https://account.r2.cloudflarestorage.com/other", "'other'"),
        ("https://KEY:SECRET@host", "profile"),
    ],
)
def test_endpoints_that_cannot_work_are_refused(aws: AwsFiles, endpoint: str, says: str) -> None:
    aws.write("", f"[r2]\n{KEYS}")
    with pytest.raises(JobError, match=says) as caught:
        open_store("s3://voices", StoreOptions(profile="r2", endpoint_url=endpoint))
    assert "SECRET" not in str(caught.value)


def test_aws_is_the_endpoint_where_none_is_given(aws: AwsFiles) -> None:
    aws.write("[profile p]\nregion = eu-central-1\n", f"[p]\n{KEYS}")
    access = resolve("b", StoreOptions(profile="p"))
    assert access.endpoint_url == "https://s3.eu-central-1.amazonaws.com"
    assert resolve("b", StoreOptions(profile="p", region="us-west-2")).region == "us-west-2"
    assert "from-the-file" not in repr(access)


def test_a_profile_that_is_not_there_says_where_and_what_to_run(
    aws: AwsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(JobError, match="aws configure --profile r3") as caught:
        open_store("s3://b", StoreOptions(profile="r3"))
    assert str(aws.config) in str(caught.value)
    monkeypatch.setenv("AWS_PROFILE", "r4")
    with pytest.raises(JobError, match="'r4'"):
        open_store("s3://b")


def test_a_profile_without_keys_never_asks_a_metadata_address(
    aws: AwsFiles, metadata: list[str]
) -> None:
    aws.write("[profile r2]\nregion = auto\n", "")
    with pytest.raises(AccessDeniedError, match=r"holds no keys.*aws configure --profile r2"):
        open_store("s3://b", StoreOptions(profile="r2"))
    with pytest.raises(AccessDeniedError, match="no credentials"):
        open_store("s3://b", StoreOptions(endpoint_url="http://127.0.0.1:9"))
    aws.write("", "[r2]\naws_access_key_id = AKIA\n")
    with pytest.raises(AccessDeniedError, match="aws_secret_access_key"):
        open_store("s3://b", StoreOptions(profile="r2"))
    assert metadata == []


def test_where_nothing_is_given_the_machines_role_is_asked_for(
    aws: AwsFiles, metadata: list[str]
) -> None:
    with pytest.raises(AccessDeniedError, match="AWS_ACCESS_KEY_ID"):
        open_store("s3://b")
    assert metadata


PROCESSES = {
    "no JSON": ("echo hello", "has not printed JSON"),
    "nothing": ("true", "has not printed JSON"),
    "a list": ("echo [1]", "has not printed JSON"),
    "deep": (f"{sys.executable} -c \"print('[' * 100000)\"", "has not printed JSON"),
    "not UTF-8": (r"printf \\377", "has not printed JSON"),
    "numbers as keys": (
        """echo '{"Version": 1, "AccessKeyId": 5, "SecretAccessKey": 6}'""",
        "has not printed JSON",
    ),
    "no keys": ("""echo '{"Version": 1}'""", "CredentialRetrievalError"),
    "it fails": ("false", "CredentialRetrievalError"),
    "it is not there": ("/no/such/program", "cannot be started: No such file"),
    "it never ends": ("sleep 600", "has not ended within 1 s"),
    "a quote that is open": ("echo 'x", "has not printed JSON"),
}


@pytest.mark.parametrize("case", PROCESSES)
def test_a_credential_process_that_gives_no_keys_is_a_clear_error(
    case: str, aws: AwsFiles, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(speechmill.storage.credentials, "PROCESS_S", 1.0)
    command, says = PROCESSES[case]
    aws.write(f"[profile r2]\nendpoint_url = http://h:1\ncredential_process = {command}\n", "")
    with pytest.raises(AccessDeniedError, match=says) as caught:
        open_store("s3://b", StoreOptions(profile="r2"))
    assert "hello" not in str(caught.value)


def test_keys_that_cannot_be_renewed_are_a_clear_error(aws: AwsFiles, tmp_path: Path) -> None:
    soon = (datetime.now(UTC) + timedelta(seconds=30)).isoformat()
    keys = {"Version": 1, "AccessKeyId": "K", "SecretAccessKey": "S", "Expiration": soon}
    said = tmp_path / "said"
    said.write_text(json.dumps(keys))
    config = f"[profile r2]\nendpoint_url = http://127.0.0.1:9\ncredential_process = cat {said}\n"
    aws.write(config, "")
    store = open_store("s3://b", StoreOptions(profile="r2", retry_s=1))
    said.write_text("hello")
    for ask in (lambda: list(store.list()), lambda: store.get("a")):
        with pytest.raises(AccessDeniedError, match="log in again"):
            ask()


def test_broken_aws_files_are_a_clear_error(aws: AwsFiles) -> None:
    aws.write("[profile r2\nbroken", "")
    with pytest.raises(JobError, match="AWS configuration"):
        open_store("s3://b", StoreOptions(profile="r2"))


@pytest.mark.parametrize(
    "url", ["s3://KEY:SECRET@bucket/x", "s3://SECRET@bucket", "gs://u:SECRET@b", "s3://b:SECRET/x"]
)
def test_secrets_in_a_url_are_refused_and_not_repeated(url: str) -> None:
    with pytest.raises(JobError) as caught:
        open_store(url)
    assert "SECRET" not in str(caught.value)


@pytest.mark.parametrize(
    "url", ["ftp://x/y", "http://x/y", "s3://", "s3:///x", "", "file://host/x"]
)
def test_urls_that_name_no_store_are_refused(url: str) -> None:
    with pytest.raises(JobError):
        open_store(url)


def test_options_travel_to_other_processes() -> None:
    options = StoreOptions(profile="r2", region="auto", retry_s=5)
    assert pickle.loads(pickle.dumps(options)) == options


@pytest.mark.parametrize(
    ("given", "name"),
    [
        ("./a b", "a b"),
        ("50%20#?", "50%20#?"),
        ("x/../y//z/", "y/z"),
        ("file://{cwd}/a%20b", "a b"),
        ("file://localhost{cwd}/a", "a"),
    ],
)
def test_plain_paths_are_literal_and_file_urls_are_decoded(
    given: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert open_store(given.replace("{cwd}", str(tmp_path))).url == str(tmp_path / name)


def test_a_tilde_is_the_home_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert open_store("~/x").url == str(tmp_path / "x")


@pytest.mark.parametrize(
    ("outer", "inner", "expected"),
    [
        ("s3://b", "s3://b/out", "out"),
        ("s3://b/", "s3://b", ""),
        ("s3://b/a", "s3://b/a/x/y/", "x/y"),
        ("s3://b/a", "s3://b/ab", None),
        ("s3://b/a", "s3://b", None),
        ("s3://b", "s3://c", None),
        ("s3://b", "gs://b", None),
        ("/data", "/data/out", "out"),
        ("/data/", "/data/../data", ""),
        ("/data", "/database", None),
        ("/", "/data/x", "data/x"),
        ("/data", "file:///data/o%20ut", "o ut"),
    ],
)
def test_a_sink_inside_its_source_is_seen(outer: str, inner: str, expected: Any) -> None:
    assert inside(outer, inner) == expected


def test_a_sink_inside_its_source_is_seen_through_links(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    assert inside(str(tmp_path / "real"), str(tmp_path / "link" / "out")) == "out"
    assert inside(str(tmp_path / "link"), str(tmp_path / "real" / "out")) == "out"


@pytest.mark.parametrize("url", ["gs://bucket/x", "az://container/x"])
def test_other_clouds_open_or_say_what_is_missing(url: str) -> None:
    try:
        store = open_store(url, StoreOptions(anonymous=True))
    except SpeechmillError as error:
        assert url in str(error)  # noqa: PT017 which of the two depends on the environment
    else:
        assert store.url == url
