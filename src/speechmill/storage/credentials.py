"""Find an S3 bucket's endpoint, region and keys: what boto3 knows, in our order of precedence."""

from __future__ import annotations

import os
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import boto3.session
import botocore.credentials
import botocore.exceptions

from speechmill.errors import AccessDeniedError, JobError
from speechmill.storage.base import StoreOptions

__all__ = ["KEY_ERRORS", "S3Access", "frozen_keys", "resolve"]

KEY_ERRORS = (
    botocore.exceptions.BotoCoreError,
    botocore.exceptions.ClientError,
    RuntimeError,  # keys that are expired again as soon as they are renewed; JSON too deep
    # A profile's credential_process that cannot be started, does not end, or prints something else
    # than JSON of keys.
    OSError,
    subprocess.SubprocessError,
    ValueError,
    TypeError,
    AttributeError,
)
"""What goes wrong where keys are obtained."""

PROCESS_S = 60.0  # for a profile's credential_process: it may ask its user for a code
_R2 = ".r2.cloudflarestorage.com"
_FALLBACK_REGION = "us-east-1"  # stores other than AWS accept it; AWS names the right one


@dataclass(frozen=True, slots=True)
class S3Access:
    """How to reach a bucket.

    ``endpoint_url`` has no trailing slash and no bucket. ``credentials`` are botocore's, which
    refresh themselves, or None for unsigned requests. ``ca_bundle``: a PEM file to trust.
    ``request_payer``: whether their owner agrees to pay for the requests.
    """

    bucket: str
    endpoint_url: str
    region: str
    credentials: Any = field(repr=False)
    ca_bundle: str | None = None
    request_payer: bool = False


def resolve(bucket: str, options: StoreOptions) -> S3Access:
    """Find the bucket's endpoint, region and credentials.

    Raises:
        JobError: no such profile, or an endpoint that is no URL.
        AccessDeniedError: there are no credentials, or they cannot be obtained.
    """
    try:
        session = boto3.session.Session(
            profile_name=options.profile or None, region_name=options.region or None
        )
        core = session._session
        configured = _configured_endpoint(core, options)
        endpoint = _normalise_endpoint(configured, bucket) if configured else None
        region = _region(session, options, endpoint)
        if endpoint is None:
            endpoint = _aws_endpoint(session, region)
        credentials = (
            None if options.anonymous else _credentials(session, options, bucket, bool(configured))
        )
        ca_bundle = core.get_config_variable("ca_bundle")
    except botocore.exceptions.ProfileNotFound as error:
        name = str(error.kwargs.get("profile", options.profile))
        raise JobError(
            f"there is no profile {name!r} in {_config_files()}: "
            f"run `aws configure --profile {name}`"
        ) from None
    except (
        botocore.exceptions.ConfigParseError,
        botocore.exceptions.InvalidRegionError,
        botocore.exceptions.InvalidConfigError,
    ) as error:
        raise JobError(f"the AWS configuration cannot be used: {error}") from None
    if ca_bundle and not Path(ca_bundle).is_file():
        raise JobError(f"the file of trusted certificates (ca_bundle) {ca_bundle} does not exist")
    return S3Access(
        bucket,
        endpoint,
        region or _FALLBACK_REGION,
        credentials,
        ca_bundle if endpoint.startswith("https:") else None,
        options.request_payer,
    )


def _aws_endpoint(session: Any, region: str | None) -> str:
    # The keys are placeholders: without any, making a client looks for some, and may ask
    # a metadata address.
    client = session.client(
        "s3",
        region_name=region,
        aws_access_key_id="none",
        aws_secret_access_key="none",  # noqa: S106 see above
    )
    return str(client.meta.endpoint_url).rstrip("/")


def _configured_endpoint(core: Any, options: StoreOptions) -> str | None:
    """Choose the flag's endpoint, else a named profile's own, else the environment's.

    Where no profile is named, the environment goes before the default profile, as it does in
    every AWS tool.
    """
    if options.endpoint_url:
        return options.endpoint_url
    if core.get_config_variable("ignore_configured_endpoint_urls"):
        return None
    environment = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    profile = core.get_scoped_config()
    services = core.full_config.get("services", {}).get(profile.get("services"), {})
    in_services = services.get("s3", {})
    own = in_services.get("endpoint_url") if isinstance(in_services, dict) else None
    own = own or profile.get("endpoint_url")
    named = options.profile or core.get_config_variable("profile")
    return (own or environment) if named else (environment or own)


def _normalise_endpoint(url: str, bucket: str) -> str:
    # Errors do not show it: what is written wrongly may hold keys.
    try:
        parts = urlsplit(url.strip())
        _ = parts.port
    except ValueError:
        raise JobError(
            "the endpoint is no URL such as https://s3.example.com: its host or port cannot be read"
        ) from None
    if parts.username or parts.password or "@" in parts.netloc:
        raise JobError(
            "the endpoint URL holds a user name or password. Keys do not belong into a URL: put "
            "them into a profile (aws configure --profile NAME)"
        )
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query:
        raise JobError(
            "the endpoint is no URL such as https://s3.example.com: it must start with https:// or "
            "http://, and have no '?'"
        )
    path = parts.path.strip("/")
    # R2's dashboard shows the endpoint with the bucket behind it: many paste it like that.
    if path == bucket:
        path = ""
    elif path and parts.hostname.endswith(_R2):
        raise JobError(
            f"the endpoint ends in the bucket {path!r}, but the URL's bucket is {bucket!r}: "
            f"the endpoint is {parts.scheme}://{parts.netloc}"
        )
    return f"{parts.scheme}://{parts.netloc}" + (f"/{path}" if path else "")


def _region(session: Any, options: StoreOptions, endpoint: str | None) -> str | None:
    if options.region:
        return options.region
    # R2 knows no AWS regions; one that the profile or the environment has would be refused.
    if endpoint and (urlsplit(endpoint).hostname or "").endswith(_R2):
        return "auto"
    region: str | None = session.region_name
    return region


def _credentials(session: Any, options: StoreOptions, bucket: str, has_endpoint: bool) -> Any:
    core = session._session
    named = options.profile or core.get_config_variable("profile")
    resolver = core.get_component("credential_provider")
    if named or has_endpoint:
        resolver.remove("iam-role")  # asks 169.254.169.254
    if named:
        resolver.remove("container-role")  # a container's keys are not the profile's
    for provider in resolver.providers:
        if isinstance(provider, botocore.credentials.ProcessProvider):
            provider._popen = _Process
    try:
        credentials = session.get_credentials()
        frozen = frozen_keys(credentials) if credentials is not None else None
    except botocore.exceptions.PartialCredentialsError as error:
        raise AccessDeniedError(f"s3://{bucket}: {error}; {_login_hint(named)}") from None
    except (botocore.exceptions.SSOError, botocore.exceptions.TokenRetrievalError) as error:
        again = f" --profile {named}" if named else ""
        raise AccessDeniedError(f"s3://{bucket}: {error} (run `aws sso login{again}`)") from None
    except (botocore.exceptions.ProfileNotFound, botocore.exceptions.InvalidConfigError):
        raise
    except KEY_ERRORS as error:
        raise AccessDeniedError(
            f"s3://{bucket}: no credentials ({_why(error)}); {_login_hint(named)}"
        ) from None
    if frozen is None or not frozen.access_key or not frozen.secret_key:
        where = f"the profile {named!r} holds no keys" if named else "there are no credentials"
        raise AccessDeniedError(
            f"s3://{bucket}: {where} (looked at {_config_files()}"
            f"{'' if named else ', the environment'}); {_login_hint(named)}"
        )
    return credentials


class _Process(subprocess.Popen[bytes]):
    """A credential process, which gets ``PROCESS_S``: botocore would wait for ever."""

    def communicate(
        self,
        input: bytes | None = None,  # noqa: A002 it is the base class's
        timeout: float | None = None,
    ) -> tuple[bytes, bytes]:
        try:
            return super().communicate(input, timeout or PROCESS_S)
        except subprocess.TimeoutExpired:
            self.kill()
            self.wait()
            raise


def frozen_keys(credentials: Any) -> Any:
    """Return the keys of this moment, renewed where they expire.

    Raises:
        KEY_ERRORS: they cannot be obtained.
    """
    frozen = credentials.get_frozen_credentials()
    for text in (frozen.access_key, frozen.secret_key, frozen.token):
        if text is not None and not isinstance(text, str):
            raise TypeError("a key is no text")
    return frozen


def _why(error: Exception) -> str:
    """Say why there are no keys. Not by the error's own text: it may quote what was printed."""
    if isinstance(error, subprocess.TimeoutExpired):
        return f"the profile's credential_process has not ended within {PROCESS_S:.0f} s"
    if isinstance(error, OSError):
        return f"the profile's credential_process cannot be started: {error.strerror}"
    if isinstance(error, ValueError | TypeError | AttributeError | RecursionError):
        return (
            "the profile's credential_process has not printed JSON with Version, AccessKeyId and "
            "SecretAccessKey"
        )
    return type(error).__name__


def _login_hint(profile: str | None) -> str:
    return (
        f"run `aws configure --profile {profile}`"
        if profile
        else "run `aws configure --profile NAME` and pass --profile NAME, "
        "or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
    )


def _config_files() -> str:
    config = os.environ.get("AWS_CONFIG_FILE", "~/.aws/config")
    credentials = os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials")
    return f"{config} and {credentials}"
