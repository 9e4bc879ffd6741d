"""Models rented through a cloud: where its endpoint is, and what of a config or an environment is missing for it.

The SDKs read the same environment variables; their own URLs from it are not used, so that keys and texts go where the
config says.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator, Mapping

import msgspec

from providers.settings import Kind, Settings, Via

#: What the SDKs need for the cloud's own credentials, and the extra that installs it.
_PACKAGES: dict[Via, tuple[str, ...]] = {"bedrock": ("boto3", "botocore"), "vertex": ("google.auth", "requests")}
_REGIONS: dict[Via, tuple[str, ...]] = {
    "bedrock": ("AWS_REGION", "AWS_DEFAULT_REGION"),
    "vertex": ("GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION"),
}
_PROJECTS = ("GOOGLE_CLOUD_PROJECT", "ANTHROPIC_VERTEX_PROJECT_ID")


class Place(msgspec.Struct, frozen=True):
    """A cloud's endpoint. `region` and `project` are empty where it has none."""

    url: str
    region: str
    project: str


def key_variable(kind: Kind, via: Via | None) -> str:
    """The environment variable with the key, by default; empty where only the cloud's own credentials are taken."""
    if via == "bedrock":
        return "AWS_BEARER_TOKEN_BEDROCK"
    if via == "vertex":
        return ""
    if via == "azure":
        return "ANTHROPIC_FOUNDRY_API_KEY" if kind == "anthropic" else "AZURE_OPENAI_API_KEY"
    return "ANTHROPIC_API_KEY" if kind == "anthropic" else "OPENAI_API_KEY"


def problems(kind: Kind, settings: Settings, *, key: bool, environ: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """(key of the config, what to do) for what `via` lacks. `key`: there is one, in the environment."""
    via = settings.via
    if via is None:
        return
    if kind == "openai-decisions":
        yield "via", 'OpenAI Decisions is only to be had from OpenAI; take `via` out, or use kind = "openai"'
    if via == "azure":
        if not settings.base_url:
            named = "https://RESOURCE." + (
                "services.ai.azure.com/anthropic" if kind == "anthropic" else "openai.azure.com"
            )
            yield "base_url", f"Azure gives every resource an address of its own; write it here, like {named}"
        return
    if not key:
        missing = [name for name in _PACKAGES[via] if not _installed(name)]
        if missing:
            yield (
                "via",
                f"{' and '.join(missing)} must be installed for the credentials of {via} (the extra `{via}`): "
                f"pip install {' '.join(name.replace('.', '-') for name in missing)}",
            )
    if not _first(settings.region, _REGIONS[via], environ):
        yield "region", f"{via} needs a region; write it here, or set {_REGIONS[via][0]}"
    if via == "vertex" and not _first(settings.project, _PROJECTS, environ):
        yield "project", f"vertex needs the name of a project; write it here, or set {_PROJECTS[0]}"


def place(kind: Kind, name: str, settings: Settings, *, key: bool, environ: Mapping[str, str]) -> Place:
    """Where the provider `name` is asked. Raises `ValueError` for what is missing."""
    via = settings.via
    assert via is not None
    for where, what in problems(kind, settings, key=key, environ=environ):
        raise ValueError(f"provider {name!r}: {where}: {what}")
    region = _first(settings.region, _REGIONS.get(via, ()), environ)
    project = _first(settings.project, _PROJECTS, environ) if via == "vertex" else ""
    return Place(settings.base_url or _url(kind, via, region, project), region, project)


def _url(kind: Kind, via: Via, region: str, project: str) -> str:
    if via == "bedrock":
        # As the SDKs have it: each speaks to another endpoint of Bedrock.
        if kind == "anthropic":
            return f"https://bedrock-runtime.{region}.amazonaws.com"
        return f"https://bedrock-mantle.{region}.api.aws/openai/v1"
    if region in ("us", "eu"):
        host = f"aiplatform.{region}.rep.googleapis.com"
    else:
        host = "aiplatform.googleapis.com" if region == "global" else f"{region}-aiplatform.googleapis.com"
    if kind == "anthropic":
        return f"https://{host}/v1"
    # Chat is Vertex' own endpoint, for Gemini and open models; Responses is OpenAI's.
    end = "endpoints/openapi" if kind == "openai-chat" else "publishers/openai/v1"
    return f"https://{host}/v1/projects/{project}/locations/{region}/{end}"


def _first(given: str | None, variables: tuple[str, ...], environ: Mapping[str, str]) -> str:
    return given or next((environ[name] for name in variables if environ.get(name)), "")


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of the parent
        return False
