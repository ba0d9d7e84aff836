"""Arguments and options that several commands have."""

from __future__ import annotations

from typing import Annotated

import typer

__all__ = ["EndpointUrl", "OutEndpointUrl", "OutProfile", "Profile", "Region", "Sink"]

Sink = Annotated[str, typer.Argument(metavar="SINK", help="The dataset: s3://…, a folder.")]
Profile = Annotated[
    str | None, typer.Option(help="Profile of ~/.aws to read credentials from, such as r2.")
]
EndpointUrl = Annotated[
    str | None, typer.Option(help="The object store's endpoint, where it is not AWS.")
]
Region = Annotated[str | None, typer.Option(help="The bucket's region.")]
OutProfile = Annotated[
    str | None, typer.Option(help="Profile of OUT, where it differs from SINK's.")
]
OutEndpointUrl = Annotated[
    str | None, typer.Option(help="Endpoint of OUT, where it differs from SINK's.")
]
