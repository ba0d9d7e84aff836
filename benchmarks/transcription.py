"""Transcription: seconds, word error rate and memory, of Speechmill and of its peers.

Each system has a process of its own, which loads the model before the clock starts. The recordings
are handed out in portions, to one system after the other, so that whatever else the machine does
hits all of them alike. Peers transcribe one recording after the other, as they do for their users;
Speechmill gets a portion at once, and its time includes voice detection, which the others leave
out. All decode with the same model, number format, beam size, cores and language (openai-whisper,
where it is installed, in float32).

A corpus is a folder that holds LibriSpeech's *.trans.txt, or a .txt beside each recording (as in
VCTK), or a manifest.jsonl with path, transcript and language (there or above).
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from benchmarks.figures import command, machine, peak_rss_mb, print_table, rss_mb
from benchmarks.references import SAMPLE_RATE, Clip, bootstrap, errors, read_clips
from speechmill.models.weights import resolve_whisper
from speechmill.records import Transcript
from speechmill.text.figures import repetition

CORPUS = Path(__file__).parents[1] / "examples" / "corpus"
Samples = NDArray[np.float32]
Transcribe = Callable[[Sequence[tuple[Samples, str]]], list[str]]


@dataclass(frozen=True, slots=True)
class Setting:
    """What all systems are given."""

    model: str
    compute_type: str
    beam_size: int
    threads: int


class Clock(defaultdict[str, float]):
    """Seconds by stage, summed over threads."""

    def __init__(self) -> None:
        super().__init__(float)

    def timed(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function, with its time put to a stage."""

        def run(*args: Any, **kwargs: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*args, **kwargs)
            finally:
                self[stage] += time.perf_counter() - started

        return run


def rows_of(
    setting: Setting, clock: Clock, window: str = "adaptive"
) -> Callable[[Sequence[tuple[Samples, str]]], list[list[Transcript]]]:
    """Ours, with voice detection and segmentation as in a build: each recording's transcripts."""
    from concurrent.futures import ThreadPoolExecutor

    from speechmill.records import Speech
    from speechmill.speech.segmentation import SegmentOptions, segment
    from speechmill.speech.voice import VoiceOptions, listen
    from speechmill.transcribers import TranscriberOptions, ctranslate, open_transcriber

    options = TranscriberOptions(
        window="full" if window == "full" else "adaptive",
        beam_size=setting.beam_size,
        compute_type=setting.compute_type,
        cpu_threads=setting.threads,
        device="cpu",
    )
    transcriber: Any = open_transcriber("whisper", setting.model, options)
    ctranslate.encode = clock.timed("encoder", ctranslate.encode)
    encoder = transcriber._encoder
    encoder.features = clock.timed("features", encoder.features)
    full = transcriber._full
    full.transcribe = clock.timed("full window", full.transcribe)
    inner = transcriber._ctranslate2
    inner.generate = clock.timed("decoder (with the fallback's)", inner.generate)

    def cut(item: tuple[Samples, str]) -> list[Speech]:
        samples, language = item
        voice = listen(lambda a, b: samples[a:b], len(samples), VoiceOptions())
        found = segment(voice, "auto", SegmentOptions(), VoiceOptions(), 30.0)
        return [
            Speech(
                samples[round(p.start_s * SAMPLE_RATE) : round(p.end_s * SAMPLE_RATE)],
                p.voiced and tuple((a - p.start_s, b - p.start_s) for a, b in p.voiced),
                language,
                1.0,
            )
            for row in found.rows
            for p in row.pieces
        ]

    cut = clock.timed("voice detection", cut)
    pool = ThreadPoolExecutor(setting.threads)

    def transcribe(portion: Sequence[tuple[Samples, str]]) -> list[list[Transcript]]:
        pieces = list(pool.map(cut, portion))
        told = iter(transcriber.transcribe([one for found in pieces for one in found]))
        return [[next(told) for _ in found] for found in pieces]

    return transcribe


def speechmill(setting: Setting, clock: Clock, window: str = "adaptive") -> Transcribe:
    """Ours, as a text a recording."""
    rows = rows_of(setting, clock, window)
    return lambda portion: [" ".join(row.text for row in r).strip() for r in rows(portion)]


def full_window(setting: Setting, clock: Clock) -> Transcribe:
    """Ours with ``--window full``."""
    return speechmill(setting, clock, "full")


def faster_whisper(setting: Setting, _: Clock, *, batched: bool = False) -> Transcribe:
    """faster-whisper's ``transcribe``, with its defaults."""
    from faster_whisper import BatchedInferencePipeline, WhisperModel

    model: Any = WhisperModel(
        str(resolve_whisper(setting.model).folder),
        device="cpu",
        compute_type=setting.compute_type,
        cpu_threads=setting.threads,
    )
    if batched:
        model = BatchedInferencePipeline(model)

    def transcribe(portion: Sequence[tuple[Samples, str]]) -> list[str]:
        texts = []
        for samples, language in portion:
            found, _ = model.transcribe(samples, language=language, beam_size=setting.beam_size)
            texts.append("".join(segment.text for segment in found).strip())
        return texts

    return transcribe


def faster_whisper_batched(setting: Setting, clock: Clock) -> Transcribe:
    """faster-whisper's BatchedInferencePipeline, with its defaults."""
    return faster_whisper(setting, clock, batched=True)


def openai_whisper(setting: Setting, _: Clock) -> Transcribe:
    """The authors' own code in float32, on the same weights (dequantised)."""
    from tests.support.ct2_weights import whisper_folder

    from speechmill.records import Speech
    from speechmill.transcribers import TranscriberOptions, open_transcriber

    options = TranscriberOptions(
        beam_size=setting.beam_size, device="cpu", cpu_threads=setting.threads
    )
    transcriber = open_transcriber("openai-whisper", str(whisper_folder(setting.model)), options)

    def transcribe(portion: Sequence[tuple[Samples, str]]) -> list[str]:
        return [
            transcriber.transcribe([Speech(samples, None, language, 1.0)])[0].text
            for samples, language in portion
        ]

    return transcribe


SYSTEMS: dict[str, Callable[[Setting, Clock], Transcribe]] = {
    "speechmill": speechmill,
    "speechmill --window full": full_window,
    "faster-whisper": faster_whisper,
    "faster-whisper, batched pipeline": faster_whisper_batched,
    "openai-whisper": openai_whisper,
}


def serve(name: str, setting: Setting, connection: Connection) -> NoReturn:
    """A system in its process: portions in; texts, seconds and memory out."""
    clock = Clock()
    transcribe = SYSTEMS[name](setting, clock)
    transcribe([(np.zeros(SAMPLE_RATE, np.float32), "en")])
    clock.clear()
    before = rss_mb()
    connection.send(None)
    while True:
        portion = connection.recv()
        wall, cpu = time.perf_counter(), time.process_time()
        texts = transcribe(portion)
        seconds = time.perf_counter() - wall, time.process_time() - cpu
        connection.send((texts, *seconds, peak_rss_mb() - before, dict(clock)))


@dataclass(slots=True)
class Outcome:
    """What a system made of all recordings."""

    texts: list[str] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    cpu_s: list[float] = field(default_factory=list)
    memory_mb: float = 0.0
    stages: dict[str, float] = field(default_factory=dict)


def portions(clips: Sequence[Clip], size: int) -> Iterator[Sequence[Clip]]:
    """The recordings, ``size`` at a time; each portion has all lengths."""
    step = -(-len(clips) // size)
    for first in range(step):
        yield clips[first::step]


def measure(
    names: Iterable[str], setting: Setting, clips: Sequence[Clip], size: int
) -> tuple[list[Clip], dict[str, Outcome]]:
    """All systems, portion by portion in turn. Returns the recordings in the order of the texts."""
    context = multiprocessing.get_context("spawn")
    outcomes: dict[str, Outcome] = {name: Outcome() for name in names}
    pipes: dict[str, Connection] = {}
    processes = []
    for name in outcomes:
        pipes[name], theirs = context.Pipe()
        process = context.Process(target=serve, args=(name, setting, theirs), daemon=True)
        process.start()
        theirs.close()  # so that its death is an end of file here
        processes.append(process)
        pipes[name].recv()
    ordered: list[Clip] = []
    for portion in portions(clips, size):
        ordered += portion
        for name, outcome in outcomes.items():
            pipes[name].send([(clip.samples, clip.language) for clip in portion])
            texts, wall_s, cpu_s, outcome.memory_mb, outcome.stages = pipes[name].recv()
            outcome.texts += texts
            outcome.wall_s.append(wall_s)
            outcome.cpu_s.append(cpu_s)
    for process in processes:
        process.terminate()
    return ordered, outcomes


def report(setting: Setting, clips: Sequence[Clip], outcomes: dict[str, Outcome]) -> None:
    """The table, and what it says of ours."""
    audio_s = sum(clip.duration_s for clip in clips)
    wrong = {
        name: [errors(clip, text) for clip, text in zip(clips, outcome.texts, strict=True)]
        for name, outcome in outcomes.items()
    }
    words = [w for _, w in next(iter(wrong.values()))]
    ours = outcomes.get("speechmill")
    print(
        f"\nWhisper {setting.model}, {setting.compute_type}, beam size {setting.beam_size}, "
        f"{setting.threads} threads; {len(clips)} recordings, {audio_s:.0f} s "
        f"({audio_s / len(clips):.1f} s on average), {sum(words)} words\n"
    )
    rows = []
    for name, outcome in outcomes.items():
        ratios = (
            [theirs / mine for theirs, mine in zip(outcome.wall_s, ours.wall_s, strict=True)]
            if ours
            else []
        )
        wall_s = sum(outcome.wall_s)
        rows.append(
            (
                name,
                f"{wall_s / len(clips):.3f} s",
                f"{audio_s / wall_s:.1f} ×",
                f"{wall_s / sum(ours.wall_s):.1f} ×" if ours else "",
                f"{sum(outcome.cpu_s) / sum(ours.cpu_s):.1f} ×" if ours else "",
                f"{min(ratios):.1f} to {max(ratios):.1f}" if ratios else "",
                f"{100 * sum(e for e, _ in wrong[name]) / sum(words):.2f} %" if any(words) else "",
                str(sum(repetition(text) >= 0.3 for text in outcome.texts)),
                f"{outcome.memory_mb:.0f} MB",
            )
        )
    print_table(
        ("system", "a clip", "real time", "wall, to ours", "processor", "by portion", "WER",
         "repeats", "memory"),
        rows,
    )  # fmt: skip
    if ours is None:
        return
    for name in outcomes:
        if name != "speechmill" and any(words):
            mine, theirs = [e for e, _ in wrong["speechmill"]], [e for e, _ in wrong[name]]
            low, high = bootstrap(mine, theirs, words)
            difference = 100 * (sum(mine) - sum(theirs)) / sum(words)
            print(
                f"\nWER of Speechmill against {name}: {difference:+.2f} points "
                f"(95 % interval {low:+.2f} to {high:+.2f})"
            )
    total = sum(ours.wall_s) * setting.threads
    print(f"\nSpeechmill, share of {setting.threads} threads' time:", end=" ")
    print(", ".join(f"{stage} {100 * s / total:.0f} %" for stage, s in ours.stages.items()))
    if any(words):
        by_corpus(clips, wrong)


def by_corpus(clips: Sequence[Clip], wrong: dict[str, list[tuple[int, int]]]) -> None:
    """WER of each corpus and language."""
    groups: defaultdict[str, list[int]] = defaultdict(list)
    for i, clip in enumerate(clips):
        groups[f"{clip.corpus}, {clip.language}"].append(i)
    print()
    print_table(
        ("WER", "recordings", *wrong),
        [
            (
                group,
                len(chosen),
                *(
                    f"{100 * sum(w[i][0] for i in chosen) / sum(w[i][1] for i in chosen):.2f} %"
                    for w in wrong.values()
                ),
            )
            for group, chosen in sorted(groups.items())
        ],
    )


def with_noise(clips: Sequence[Clip], snr_db: float) -> list[Clip]:
    """The clips, in white noise so far below them."""
    rng = np.random.default_rng(0)
    noisy = []
    for clip in clips:
        power = float(np.mean(np.square(clip.samples)))
        scale = np.sqrt(power / 10 ** (snr_db / 10))
        noise = rng.standard_normal(len(clip.samples)) * scale
        samples = np.clip(clip.samples + noise, -1, 1).astype(np.float32)
        noisy.append(
            Clip(
                clip.name,
                f"{clip.corpus} in noise ({snr_db:.0f} dB)",
                samples,
                clip.reference,
                clip.language,
            )
        )
    return noisy


def cut_anew(clips: Sequence[Clip], seconds: float, count: int) -> list[Clip]:
    """The speech of each language, joined and cut to pieces of one length, whose words nobody
    knows: for the speed of lengths that a corpus lacks."""
    size = round(seconds * SAMPLE_RATE)
    pieces = []
    for language in sorted({clip.language for clip in clips}):
        joined = np.concatenate([clip.samples for clip in clips if clip.language == language])
        pieces += [
            Clip(f"{language}-{first}", f"pieces of {seconds:g} s", piece, "", language)
            for first in range(0, len(joined) - size + 1, size)
            for piece in [joined[first : first + size]]
        ]
    return pieces[:: max(1, len(pieces) // count)][:count]


def joined(clips: Sequence[Clip], times: int) -> list[Clip]:
    """The recordings of each language as one, in so many orders, with pauses of 0.2 to 1.5 s."""
    rng = np.random.default_rng(0)
    long = []
    for language in sorted({clip.language for clip in clips}):
        some = [clip for clip in clips if clip.language == language]
        for number in range(times):
            order = [some[i] for i in rng.permutation(len(some))]
            pauses = [round(s * SAMPLE_RATE) for s in rng.uniform(0.2, 1.5, len(some))]
            faint = [1e-3 * rng.standard_normal(length) for length in pauses]
            samples = [
                x for clip, pause in zip(order, faint, strict=True) for x in (clip.samples, pause)
            ]
            text = " ".join(clip.reference for clip in order)
            name = f"{language}-{number}"
            long.append(
                Clip(name, "joined", np.concatenate(samples, dtype=np.float32), text, language)
            )
    return long


def plot(path: Path, outcomes: dict[str, Outcome], clips: Sequence[Clip]) -> None:
    """Real-time factor and WER of each system, as a picture."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "speechmill"})
    from matplotlib import pyplot as plt

    audio_s = sum(clip.duration_s for clip in clips)
    figure, axes = plt.subplots(figsize=(7, 3.2), layout="constrained")
    for name, outcome in outcomes.items():
        found = [errors(clip, text) for clip, text in zip(clips, outcome.texts, strict=True)]
        wer = 100 * sum(e for e, _ in found) / sum(w for _, w in found)
        axes.plot(audio_s / sum(outcome.wall_s), wer, "o")
        axes.annotate(
            name,
            (audio_s / sum(outcome.wall_s), wer),
            xytext=(6, 6),
            textcoords="offset points",
            ha="right" if name == "speechmill" else "left",
        )
    axes.set_xscale("log")
    axes.set_xlabel("times real time")
    axes.set_ylabel("WER, %")
    axes.margins(x=0.25, y=0.3)
    figure.savefig(path, metadata={"Date": None})


def main() -> None:
    """Run the systems and print the tables."""
    parser = command("transcription", __doc__, "--corpus ~/VCTK --corpus ~/LibriSpeech/test-other")
    parser.add_argument("--corpus", type=Path, action="append", help="a folder with references")
    parser.add_argument("--model", default="base")
    parser.add_argument("--compute-type", default="int8")
    parser.add_argument("--beam-size", type=int, default=5)
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--system", action="append", choices=SYSTEMS, help="leave the others out")
    parser.add_argument("--shortest", type=float, default=0.0, help="seconds")
    parser.add_argument("--longest", type=float, default=30.0, help="seconds")
    parser.add_argument("--every", type=int, default=1, help="take each so many-th recording")
    parser.add_argument("--noise", type=float, help="each recording again, at this SNR in dB")
    parser.add_argument("--cut", type=float, help="the speech in pieces of so many seconds, no WER")
    parser.add_argument("--pieces", type=int, default=200, help="of --cut, at most")
    parser.add_argument("--join", type=int, help="each language's recordings in one, so many times")
    parser.add_argument("--portion", type=int, default=48, help="recordings handed out at once")
    parser.add_argument("--plot", type=Path, help="draw speed against WER into this file")
    arguments: argparse.Namespace = parser.parse_args()
    print(machine(), flush=True)
    setting = Setting(
        arguments.model, arguments.compute_type, arguments.beam_size, arguments.threads
    )
    clips = read_clips(
        arguments.corpus or [CORPUS], shortest_s=arguments.shortest, longest_s=arguments.longest
    )[:: arguments.every]
    if arguments.cut is not None:
        clips = cut_anew(clips, arguments.cut, arguments.pieces)
    if arguments.join is not None:
        clips = joined(clips, arguments.join)
    if arguments.noise is not None:
        clips += with_noise(clips, arguments.noise)
    installed = [name for name in SYSTEMS if name != "openai-whisper" or find_spec("whisper")]
    names = arguments.system or installed
    clips, outcomes = measure(names, setting, clips, arguments.portion)
    report(setting, clips, outcomes)
    if arguments.plot:
        plot(arguments.plot, outcomes, clips)


if __name__ == "__main__":
    main()
