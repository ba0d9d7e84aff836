"""The Python of README.md and docs/ runs as it stands there, to the interpreter's end."""

from __future__ import annotations

import ast
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from speechmill.dataset.commit import commit
from speechmill.dataset.schema import TokenColumn, row_schema, utterances_to_table
from speechmill.records import Codes, Part, Recording, Transcript, Utterance
from speechmill.storage import open_store
from tests.support.corpus import build, memory, wav, write
from tests.support.ends import Interpreter

ROOT = Path(__file__).resolve().parents[1]
BLOCK = re.compile(r"^```python\n(.*?)^```", re.DOTALL | re.MULTILINE)
TIMES = 10  # at once, of what reads by Arrow's threads: one by itself hardly ever ended wrongly

# Blocks that need what is not here, by words that only they have.
LEFT_OUT = {
    "Client(": "a Dask cluster; tests/contracts/test_runner.py has one",
    "ray.init": "a Ray cluster; tests/contracts/test_runner.py has one",
    "SparkRunner(spark)": "a Spark session; tests/contracts/test_runner.py has one",
    "kafka://broker": "a broker; tests/queues has some",
    'speechmill.build(speechmill.Job(source="./corpus"': "Whisper base; make demo has it",
    "decode_tokens(rows": "the weights of a codec; tests/tokens/test_decode.py has small ones",
}
# What blocks take from the text around them, by words that only they have.
GIVEN = {
    "to_levels(codes)": "import numpy as np\ncodes = np.arange(14, dtype=np.int16).reshape(7, 2)",
    "pytorch_model.bin": (
        "import os, torch\nos.makedirs('snac_24khz', exist_ok=True)\n"
        "torch.save({'a': torch.zeros(1)}, 'snac_24khz/pytorch_model.bin')"
    ),
    "sampler.set_epoch(3)": (
        "from speechmill.torch import BucketBatchSampler, SpeechDataset\n"
        "dataset = SpeechDataset(SINK)\n"
        "sampler = BucketBatchSampler(dataset, max_frames=20_000, batch_size=2)"
    ),
    "expand_runs(runs)": "import os\nos.chdir('units')",
}


def blocks() -> list[tuple[str, str, str]]:
    """Each block: its name, what it needs of the imports above it on its page, and itself."""
    found = []
    for page in [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]:
        imports: dict[str, str] = {}
        text = page.read_text(encoding="utf-8")
        for match in BLOCK.finditer(text):
            line = text.count("\n", 0, match.start()) + 1
            tree = ast.parse(match[1])
            used = {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
            needed = "".join(text for name, text in imports.items() if name in used)
            found.append((f"{page.name}:{line}", needed, match[1]))
            for node in tree.body:
                if isinstance(node, ast.Import | ast.ImportFrom):
                    for one in node.names:
                        bound = (one.asname or one.name).partition(".")[0]
                        imports[bound] = f"{ast.unparse(node)}\n"
    return found


BLOCKS = blocks()


def of(table: dict[str, str], block: str) -> str:
    return next((value for words, value in table.items() if words in block), "")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``sink`` has codes and a failure, ``out`` features, ``units/out`` runs of units."""
    root = tmp_path_factory.mktemp("documented")
    files = {f"{speaker}/{k}.wav": wav(k) for speaker in ("225", "p1", "p2") for k in range(4)}
    files["p1/bad.wav"] = b"no audio at all"
    build(memory(files), str(root / "sink"))
    build(write(root / "corpus", files), str(root / "out"), tokenizer=("mfcc",))
    runs = TokenColumn(
        name="units", sample_rate=16_000, hop_length=320, frame_rate=50.0, num_codebooks=2,
        codebook_size=500, recipe={},
    )  # fmt: skip
    utterance = Utterance(
        Recording("p1/1.wav", 1, "e", 1), "p1", 0.0, 1.0, 16_000, 1, Transcript("one"),
        (Codes(np.array([[5, 7, 5], [1, 2, 3]], np.int16)),),
    )  # fmt: skip
    shutil.copytree(root / "out", root / "units" / "out")
    shutil.rmtree(root / "units" / "out" / "data")
    table = utterances_to_table([utterance], row_schema([runs]), "r")
    commit(
        open_store(str(root / "units" / "out")), Part("p1", 0, 1), table, [],
        recipe="r", replaces={}, is_current=lambda: True,
    )  # fmt: skip
    return root


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Interpreter]:
    cache = str(tmp_path_factory.mktemp("cache"))
    modules = ("speechmill", "pyarrow.dataset", "pandas", "torch.utils.data", "datasets")
    path = os.pathsep.join([str(ROOT), str(ROOT / "src")])
    with Interpreter(
        modules, {"HF_HOME": cache, "HF_HUB_OFFLINE": "1", "PYTHONPATH": path}
    ) as found:
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(("name", "imports", "block"), BLOCKS, ids=[b[0] for b in BLOCKS])
def test_a_block_runs_to_its_end(
    interpreter: Interpreter, folder: Path, name: str, imports: str, block: str
) -> None:
    if reason := of(LEFT_OUT, block):
        pytest.skip(f"{name} needs {reason}")
    given = f"SINK = {str(folder / 'sink')!r}\n{imports}{of(GIVEN, block)}\n"
    program = given + block.replace("s3://voices/output", str(folder / "sink"))
    times = TIMES if "open_dataset" in block else 1
    ended = interpreter.run(program, folder, times)
    wrong = [one for one in ended if one.status or "terminate called" in one.text]
    assert not wrong, wrong[0]


def test_what_is_left_out_or_given_is_there() -> None:
    everything = "\n".join(block for _, _, block in BLOCKS)
    assert all(words in everything for words in (*LEFT_OUT, *GIVEN))
