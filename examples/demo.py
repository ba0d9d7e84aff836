"""The main job on real sound: from one bucket to another, through a profile.

``make demo`` runs it. It starts a real object store on loopback, puts ``examples/corpus`` into a
bucket, and then types the commands that a user would type.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
import tempfile
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


def type_command(environment: dict[str, str], *arguments: str) -> None:
    """Show a command as a user types it, and run it."""
    shown = shlex.join(["speechmill", *arguments]).replace("'", '"')
    console.print(Text(f"\n$ {shown}", style="bold cyan"), soft_wrap=True)
    command = [sys.executable, "-m", "speechmill", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, check=False)
    if done.returncode:
        sys.exit(done.returncode)


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
    shutil.rmtree(OUTPUT, ignore_errors=True)
    with tempfile.TemporaryDirectory() as home, SeaweedFS(["voices"]) as store:
        console.print(Rule("a real object store on loopback, and a profile for it"))
        profile = store.write_profile(Path(home), "r2", endpoint_url=None)
        environment = {**os.environ, **profile, "COLUMNS": "100"}
        console.print(f"{upload(store, 'voices')} files put into s3://voices/vctk")
        access = ["--profile", "r2", "--endpoint-url", store.endpoint_url]
        source, sink = "s3://voices/vctk", "s3://voices/output"
        console.print(Rule("bucket to bucket"))
        type_command(environment, "build", source, sink, *access, "--language", "en")
        console.print(Rule("what came out"))
        type_command(environment, "show", sink, *access)
        console.print(Rule("again: nothing to do"))
        type_command(environment, "build", source, sink, *access, "--language", "en")
        console.print(Rule("the plain layout"))
        template = "{folder_name}/data.parquet"
        type_command(
            environment, "export", "parquet", sink, "output", *access, "--template", template
        )
        console.print()
        show_rows()


if __name__ == "__main__":
    main()
