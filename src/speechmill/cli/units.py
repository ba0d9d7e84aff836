"""The commands that make units: ``units fit``."""

from __future__ import annotations

from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from speechmill.cli.console import err, out
from speechmill.cli.exits import leave
from speechmill.cli.options import ReadStorage, with_flags

if TYPE_CHECKING:
    from speechmill.tokenizers.features import FeatureOptions

__all__ = ["units_app"]

units_app = typer.Typer(no_args_is_help=True, help="Make units: tokens by k-means over features.")


@units_app.callback()
def _units() -> None:
    pass


@dataclass(frozen=True, slots=True)
class ClusteredFeatures:
    """What is clustered, see ``FeatureOptions``."""

    features: Annotated[
        str,
        typer.Option(help="What is clustered: mfcc, logmel, whisper, hubert, wavlm or wav2vec2."),
    ] = "whisper"
    model: Annotated[
        str,
        typer.Option(
            help="The features' model, by name, hub id or folder (default: base).",
            show_default=False,
        ),
    ] = ""
    layer: Annotated[
        int,
        typer.Option(
            help="The layer of HuBERT and the like, from 1 (default: the middle one).",
            show_default=False,
            min=0,
        ),
    ] = 0
    compute_type: Annotated[
        str, typer.Option(help="Whisper's number format; that of the build shares its work.")
    ] = "auto"
    n_mfcc: Annotated[int, typer.Option(help="Coefficients of MFCC a frame.")] = 20
    device: Annotated[str, typer.Option(help="Where the features run: auto, cpu or cuda.")] = "auto"

    def options(self) -> FeatureOptions:
        """The same, as the features have them."""
        from speechmill.tokenizers.features import FeatureOptions

        return FeatureOptions(
            kind=self.features,
            model=self.model,
            layer=self.layer,
            compute_type=self.compute_type,
            n_mfcc=self.n_mfcc,
            device=self.device,
        )


@units_app.command(
    "fit",
    epilog="Example: `speechmill units fit s3://voices/vctk --features whisper --model base "
    "--clusters 500 --hours 10 --out units.safetensors --profile r2`",
)
@with_flags
def fit(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Where the recordings are: s3://…, a folder.")
    ],
    *,
    target: Annotated[
        Path, typer.Option("--out", help="The file to write.", show_default=True)
    ] = Path("units.safetensors"),
    features: ClusteredFeatures,
    clusters: Annotated[int, typer.Option(help="How many units.")] = 500,
    hours: Annotated[float, typer.Option(help="Hear at most so much audio.")] = 10.0,
    seed: Annotated[int, typer.Option(help="Another seed draws another sample.")] = 0,
    max_frames: Annotated[
        int,
        typer.Option(
            help="Train on at most so many frames (default: what 1 GiB holds).",
            show_default=False,
            min=0,
        ),
    ] = 0,
    standardize: Annotated[
        bool | None,
        typer.Option(
            "--standardize/--no-standardize",
            help="Divide each dimension by its deviation (default: for mfcc).",
            show_default=False,
        ),
    ] = None,
    folder: Annotated[
        str,
        typer.Option(
            help="Spread over these folders: parent, first, path or a regex, as in build."
        ),
    ] = "parent",
    include: Annotated[
        list[str] | None, typer.Option(help="Choose only paths that match this glob or folder.")
    ] = None,
    exclude: Annotated[
        list[str] | None, typer.Option(help="Leave out paths that match this glob or folder.")
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace the file if it is there.")
    ] = False,
    storage: ReadStorage,
) -> None:
    """Fit units to a corpus: k-means over the frames of a sample of it.

    The sample is spread over the folders; the same corpus and seed give the same file. Recordings
    that cannot be read are skipped and named. `--tokenizer units:FILE` then uses the file.
    Exit codes: 0 done, 1 could not run, 2 wrong usage, 3 done but some recordings were skipped.
    """
    from speechmill.cli.views.units import FitDisplay, print_fit
    from speechmill.units.fit import FitOptions, fit_units

    options = FitOptions(
        source=source,
        out=target,
        features=features.options(),
        clusters=clusters,
        hours=hours,
        seed=seed,
        folder=folder,
        include=tuple(include or ()),
        exclude=tuple(exclude or ()),
        standardize=standardize,
        max_frames=max_frames,
        overwrite=overwrite,
        store=storage.options(),
    )
    with closing(FitDisplay(err)) as display:
        report = fit_units(options, display)
    print_fit(out, report)
    leave(not report.skipped)
