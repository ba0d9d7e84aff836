"""The main job on real sound: from one bucket to another, through a profile.

``make demo`` runs it. It starts a real object store on loopback, puts ``examples/corpus`` into a
bucket, and then types the commands that a user would type, and says how long each took.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow.parquet as pq
from rich.console import Console
from rich.rule import Rule
from rich.table import Table
from rich.text import Text
from tests.support.services import SeaweedFS

ROOT = Path(__file__).resolve().parent.parent
CORPUS = ROOT / "examples" / "corpus"
OUTPUT = ROOT / "output"
SHOWN_ROWS = 6

console = Console(width=100)


NEXT = """
Your own bucket, with the credentials of the AWS tools:
  .venv/bin/speechmill doctor s3://BUCKET/recordings s3://BUCKET/dataset --profile PROFILE
  .venv/bin/speechmill build s3://BUCKET/recordings s3://BUCKET/dataset --profile PROFILE
Folders work the same:
  .venv/bin/speechmill build ./recordings ./dataset
README.md goes on from here.
"""


def chapter(title: str) -> None:
    """Begin a part of the demo."""
    console.print()
    console.print(Rule(title))


def type_command(environment: dict[str, str], *arguments: str) -> None:
    """Show a command as a user types it, run it, and say how long it took."""
    shown = shlex.join(["speechmill", *arguments]).replace("'", '"')
    console.print(Text(f"$ {shown}", style="bold cyan"), soft_wrap=True)
    command = [sys.executable, "-m", "speechmill", *arguments]
    started = time.monotonic()
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)
    console.print(f"({time.monotonic() - started:.1f} s)", style="dim", highlight=False)


def upload(store: SeaweedFS, bucket: str) -> int:
    """Put the corpus into the bucket, below ``vctk/``."""
    client = store.client()
    files = sorted(p for p in CORPUS.rglob("*") if p.suffix in (".flac", ".txt"))
    for path in files:
        key = f"vctk/{path.relative_to(CORPUS).as_posix()}"
        client.put_object(Bucket=bucket, Key=key, Body=path.read_bytes())
    return len(files)


def show_rows() -> None:
    """A few rows of the plain layout, beside what was really said."""
    table = Table("file_name", "transcription", "reference", "token", box=None, show_edge=False)
    for path in sorted(OUTPUT.glob("*/data.parquet"))[:SHOWN_ROWS]:
        row = pq.read_table(path).slice(0, 1).to_pylist()[0]
        reference = (CORPUS / row["file_name"]).with_suffix(".txt").read_text().strip()
        shape = f"{len(row['token'])} × {len(row['token'][0])}"
        table.add_row(row["file_name"], row["transcription"], reference, shape)
    console.print(table)


def main() -> None:
    """Run the demo."""
    began = time.monotonic()
    shutil.rmtree(OUTPUT, ignore_errors=True)
    console.print(
        "36 clips of six voices, 1 min 44 s, become a dataset in the same bucket: transcribed by "
        "Whisper base, with MFCC as tokens."
    )
    chapter("a real object store on loopback, with a profile for it")
    with tempfile.TemporaryDirectory() as home, SeaweedFS(["voices"]) as store:
        profile = store.write_profile(Path(home), "r2", endpoint_url=None)
        environment = {**os.environ, **profile, "COLUMNS": "100"}
        uploaded = upload(store, "voices")
        console.print(
            f"SeaweedFS at {store.endpoint_url}; {uploaded} files put into s3://voices/vctk: "
            f"{time.monotonic() - began:.1f} s",
            highlight=False,
        )
        access = ["--profile", "r2", "--endpoint-url", store.endpoint_url]
        source, sink = "s3://voices/vctk", "s3://voices/output"
        chapter("bucket to bucket")
        type_command(environment, "build", source, sink, *access, "--language", "en")
        chapter("what came out")
        type_command(environment, "show", sink, *access)
        chapter("again: nothing to do")
        type_command(environment, "build", source, sink, *access, "--language", "en")
        chapter("the plain layout, here: output/")
        template = "{folder_name}/data.parquet"
        type_command(
            environment, "export", "parquet", sink, "output", *access, "--template", template
        )
    chapter("the first row of each, beside what was really said")
    show_rows()
    chapter(f"done in {time.monotonic() - began:.0f} s; the store is gone, output/ stays")
    console.print(NEXT.strip(), highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()
