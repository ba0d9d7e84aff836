"""Decode bytes to a waveform, and raise errors where FFmpeg silently drops audio."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from speechmill.audio.formats import aiff, au, boxes, caf, flac, mp4, mpeg, ogg, riff, sphere
from speechmill.audio.formats.files import inspect_all
from speechmill.audio.formats.octets import Octets
from speechmill.audio.formats.structure import Structure
from speechmill.audio.limits import DEFAULT_LIMITS, Limits, Meter
from speechmill.audio.mixing import Choice
from speechmill.audio.packets import WITH_PAUSES, Taken, decode_packets
from speechmill.audio.resampling import resample
from speechmill.audio.sniffing import Kind, describe, recognise
from speechmill.audio.spilling import PIECE_SAMPLES, Spool, pieces
from speechmill.audio.tally import Tally, as_error, find_problem, has_gap, nothing_decoded
from speechmill.errors import AudioError, DamagedError, EmptyAudioError, NotAudioError
from speechmill.records import Waveform

__all__ = ["Decoded", "decode"]

_INSPECTORS: dict[Kind, Callable[[Octets, int, Meter], Structure]] = {
    "aac": mpeg.inspect_aac,
    "aiff": partial(inspect_all, aiff.inspect_aiff),
    "amr": partial(inspect_all, mpeg.inspect_amr),
    "asf": partial(inspect_all, boxes.inspect_asf),
    "au": partial(inspect_all, au.inspect_au),
    "caf": partial(inspect_all, caf.inspect_caf),
    "flac": flac.inspect_flac,
    "mp3": mpeg.inspect_mp3,
    "mp4": partial(inspect_all, mp4.inspect_mp4),
    "ogg": ogg.inspect_ogg,
    "sph": partial(inspect_all, sphere.inspect_sph),
    "w64": partial(inspect_all, riff.inspect_w64),
    "wav": partial(inspect_all, riff.inspect_wav),
    "webm": partial(inspect_all, boxes.inspect_webm),
}
# Samples. Encoders pad by a frame or two (AAC: 1,024 or 2,048 a frame); a stated length that is
# shorter by more is taken for wrong, so that it cuts no sound away.
_MAX_PADDING = 4096
# Sound that begins so much later than its file keeps its times; tracks of a video begin some frames
# apart.
_LATE_S = 0.1
_TRACKS_HEARD = 8  # where the one that was taken is silent: each costs as much as it did
_LARGEST_PEAK = 2.0**31  # of 32-bit integers that a file stores as floats; more is no sound
_CLEAR_OVERSHOOT = 1.122  # 1 dB above full scale; what lossy codecs add stays below it


@dataclass(frozen=True, slots=True)
class Decoded:
    """A recording's waveform, and the facts about its source that a row states.

    ``waveform`` is mono, at the source's rate. ``sample_rate`` (Hz) and ``channels`` are the
    source's, at its start. ``flags`` are sorted and name what is suspicious; docs/audio.md lists
    them. The samples of a long recording are read-only. ``overlaps`` are where two channels that
    were mixed hold voices of their own at the same time: (start_s, end_s), in order.
    """

    waveform: Waveform
    sample_rate: int
    channels: int
    flags: tuple[str, ...]
    overlaps: tuple[tuple[float, float], ...] = ()


def decode(
    data: Octets,
    *,
    keep_damaged: bool = False,
    track: int | None = None,
    channel: int | None = None,
    limits: Limits = DEFAULT_LIMITS,
) -> Decoded:
    """Decode a whole recording to mono, at its own sample rate.

    The content tells the format, never a name. Of several audio tracks the one of the number
    ``track`` is taken; without, the default one, else the first. Its channels are mixed, or the one
    of the number ``channel`` is taken alone. Both count from 0. With ``keep_damaged`` a truncated
    or damaged recording gives what could be decoded of it, flagged ``truncated``, ``damaged`` or
    ``non_finite``.

    Memory does not grow with the length of a long recording: its waveform is held in a temporary
    file, and ``data`` may be a map of one.

    Raises EmptyAudioError, NotAudioError, TruncatedError or DamagedError; ChannelError where it has
    no such track or channel; LimitError as soon as it costs more than ``limits`` say; NoRoomError
    or StorageError where the temporary folder has no room, or cannot be written to.
    """
    if not data:
        raise EmptyAudioError("the file is empty (0 bytes)")
    found = recognise(data)
    if found is None:
        raise NotAudioError(f"this is no audio but {describe(data)}")
    kind, start = found
    meter = Meter(limits, len(data))
    structure = _INSPECTORS[kind](data, start, meter)
    if structure.name == "FLAC" and not keep_damaged:  # with less than it declares it would fail
        meter.check_duration(structure.declared_s or 0.0)
    taken = Taken(track, channel)
    tally = decode_packets(data, structure, None, meter, taken=taken)
    if tally.pauses and not tally.bad:
        decoder = WITH_PAUSES[tally.codec]
        tally.spool.clear()
        tally = decode_packets(data, structure, None, meter, decoder, taken)
    tally.bad += tally.pauses
    problem = find_problem(structure, tally)
    if not tally.samples:
        raise nothing_decoded(structure, tally)
    if problem is not None and not keep_damaged:
        raise as_error(problem, structure, tally)
    flags = _flags_of(structure, tally)
    if problem is not None:
        flags.add(problem.kind)
    is_default = tally.num_tracks > 1 and track is None
    if is_default and tally.is_silent and _others_sound(data, structure, tally, meter):
        flags.add("silent_track")
    return _to_mono(data, structure, tally, flags, meter, track=track, keep_damaged=keep_damaged)


def _flags_of(structure: Structure, tally: Tally) -> set[str]:
    """What is odd about a file as it was read."""
    flags = set(structure.flags)
    if has_gap(structure, tally):
        flags.add("gap")
    if structure.name == "FLAC" and any(check.has_more() for check in tally.checks):
        flags.add("trailing_data")
    if tally.num_tracks > 1:
        flags.add("several_tracks")
    return flags


def _others_sound(data: Octets, structure: Structure, silent: Tally, meter: Meter) -> bool:
    """Whether another track than the silent one that was taken has sound."""
    for number in range(min(silent.num_tracks, _TRACKS_HEARD)):
        with suppress(AudioError):  # what cannot be decoded is no better than silence
            other = decode_packets(data, structure, None, meter, taken=Taken(number))
            if other.samples and not other.is_silent:
                return True
    return False


def _to_mono(
    data: Octets,
    structure: Structure,
    tally: Tally,
    flags: set[str],
    meter: Meter,
    *,
    track: int | None,
    keep_damaged: bool,
) -> Decoded:
    """Choose the channels to mix, join the runs, scale to full scale, and flag what is odd."""
    first = tally.mixers[0]
    non_finite = sum(mixer.non_finite for mixer in tally.mixers)
    if non_finite:
        if not keep_damaged:
            raise DamagedError(f"{non_finite} samples are not finite (NaN or infinite)")
        flags.add("non_finite")
    if any(mixer.clipped for mixer in tally.mixers):
        flags.add("clipped")
    chosen = [mixer.choose() for mixer in tally.mixers]
    flags.update(flag for one in chosen for flag in one.flags)
    mixed = tally
    if any(one.weights is not None for one in chosen):
        tally.spool.clear()  # the mix that is not wanted, before the next one is made
        weights = [one.weights for one in chosen]
        mixed = decode_packets(data, structure, weights, meter, taken=Taken(track))
    samples = _join_runs(mixed, first.sample_rate)
    samples = samples[: _unpadded_length(structure, tally)]
    late_samples = round(tally.late_s * first.sample_rate) if tally.late_s >= _LATE_S else 0
    if late_samples:
        meter.sound(late_samples, first.sample_rate)
        samples = _delay(samples, late_samples)
        flags.add("late_start")
    peak = max(float(samples.max()), -float(samples.min()))
    if not peak <= _LARGEST_PEAK:  # NaN is what resampling makes of such samples
        raise DamagedError(f"a sample of {peak:.3g} is no sound: full scale is 1.0")
    if peak > 1.0:
        samples = _scale_to_peak(samples, peak)
        if peak > _CLEAR_OVERSHOOT:
            flags.add("scaled")
    waveform = Waveform(samples, first.sample_rate)
    overlaps = _overlaps(tally, chosen, late_samples / first.sample_rate, waveform.duration_s)
    return Decoded(waveform, first.sample_rate, first.key[1], tuple(sorted(flags)), overlaps)


def _overlaps(
    tally: Tally, chosen: Sequence[Choice], begin_s: float, duration_s: float
) -> tuple[tuple[float, float], ...]:
    """The overlaps of all runs, one behind the other, of which the first begins at ``begin_s``."""
    spans, at_s = [], begin_s
    for mixer, one in zip(tally.mixers, chosen, strict=True):
        spans += [(at_s + first, min(at_s + end, duration_s)) for first, end in one.overlaps]
        at_s += mixer.samples / mixer.sample_rate
    return tuple(spans)


def _join_runs(tally: Tally, sample_rate: int) -> NDArray[np.float32]:
    """Join all runs to one waveform, float32 [num_samples]; resample runs of another rate."""
    for mixer in tally.mixers:
        mixer.flush()
    samples = tally.spool.join()
    if all(mixer.sample_rate == sample_rate for mixer in tally.mixers):
        return samples
    seconds = sum(mixer.samples / mixer.sample_rate for mixer in tally.mixers)
    joined, at = Spool(int(seconds * sample_rate)), 0
    for mixer in tally.mixers:
        run = samples[at : at + mixer.samples]
        at += mixer.samples
        if mixer.sample_rate != sample_rate and len(run):
            run = resample(Waveform(run, mixer.sample_rate), sample_rate).samples
        for piece in pieces(run):
            joined.add(piece)
    return joined.join()


def _delay(samples: NDArray[np.float32], count: int) -> NDArray[np.float32]:
    """Put ``count`` zeros before samples, float32 [num_samples]."""
    delayed = Spool(count + len(samples))
    for left in range(count, 0, -PIECE_SAMPLES):
        delayed.add(np.zeros(min(left, PIECE_SAMPLES), np.float32))
    for piece in pieces(samples):
        delayed.add(piece)
    return delayed.join()


def _scale_to_peak(samples: NDArray[np.float32], peak: float) -> NDArray[np.float32]:
    """Divide samples, float32 [num_samples], by their peak."""
    scaled = Spool(len(samples))
    for piece in pieces(samples):
        quotient = piece / np.float32(peak)
        scaled.add(np.clip(quotient, -1.0, 1.0, out=quotient))  # rounding
    return scaled.join()


def _unpadded_length(structure: Structure, tally: Tally) -> int | None:
    """Count the samples before the padding that FFmpeg leaves in place; None if there is none."""
    if len(tally.mixers) != 1:
        return None
    if structure.declared_samples is not None:
        return structure.declared_samples
    declared = structure.padded_samples
    if structure.name == "MP4" and tally.stream_s is not None:
        # FFmpeg takes the padding off a track's length, but for one that starts late.
        seconds = tally.span_s if tally.late_s else tally.stream_s
        declared = round(seconds * tally.mixers[0].sample_rate)
    if len(tally.starts) == 1 and tally.stated_samples is not None:
        declared = tally.stated_samples
    # Padding is at most a frame or two: a wrong number must not cut sound away.
    return declared if declared and 0 < tally.samples - declared < _MAX_PADDING else None
