"""Models rented through a cloud, by the SDKs' own clients on a real socket: path, credentials, body, answer."""

from __future__ import annotations

import asyncio
import importlib.util
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple, Self

import pytest

from providers.build import build
from providers.platforms import place, problems
from providers.settings import Kind, Settings, Via
from providers.simulator import Simulator
from providers.simulator.http import Http
from providers.types import AuthFailed, Question, RateLimited

KEY = "key-of-the-cloud"
FORMATS: dict[Kind, str] = {
    "anthropic": "/v1/messages",
    "openai": "/v1/responses",
    "openai-chat": "/v1/chat/completions",
}
VARIABLES = (
    *("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_BEARER_TOKEN_BEDROCK", "AWS_PROFILE", "AWS_BEDROCK_BASE_URL"),
    *("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "ANTHROPIC_BEDROCK_BASE_URL"),
    *("GOOGLE_CLOUD_PROJECT", "GOOGLE_CLOUD_LOCATION", "CLOUD_ML_REGION", "ANTHROPIC_VERTEX_PROJECT_ID"),
    *("GOOGLE_APPLICATION_CREDENTIALS", "ANTHROPIC_VERTEX_BASE_URL", "AZURE_OPENAI_ENDPOINT", "OPENAI_API_VERSION"),
)


def installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # `google` alone may be there
        return False


aws = pytest.mark.skipif(not installed("boto3"), reason="boto3 is not installed (the extra bedrock)")
google = pytest.mark.skipif(
    not (installed("google.auth") and installed("cryptography")),
    reason="google-auth is not installed (the extra vertex)",
)


class Seen(NamedTuple):
    path: str
    query: str
    headers: dict[str, str]
    body: Any
    raw: bytes


class Cloud:
    """Answers every path like the model of one format; hands out tokens at /token."""

    def __init__(self, kind: Kind, answers: Mapping[str, str]) -> None:
        self.seen: list[Seen] = []
        self.refuses: int | None = None
        self._format = FORMATS[kind]
        self._model = Simulator(answers)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._connection, "127.0.0.1", 0)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(self, *exc: object) -> None:
        self._server.close()
        await self._server.wait_closed()

    async def _connection(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        http = Http(reader, writer)
        try:
            while (request := await http.read()) is not None:
                _, path, query, headers, raw = request
                if path == "/token":
                    await http.send(200, {"access_token": KEY, "expires_in": 3600, "token_type": "Bearer"})
                    continue
                body = json.loads(raw)
                self.seen.append(Seen(path, query, headers, body, raw))
                if self.refuses:
                    await http.send(self.refuses, {"error": {"type": "x", "message": "no"}}, {"retry-after": "7"})
                else:
                    await http.send(*self._model.answered(self._format, {"model": "in-the-path"} | body, batch=False))
        except (ConnectionError, asyncio.CancelledError):
            writer.transport.abort()
        finally:
            writer.close()


@pytest.fixture(autouse=True)
def _clean(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing of this machine's own clouds."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")


def asked(kind: Kind, via: Via, question: Question, *, root: str = "", **settings: Any) -> tuple[Any, Seen, Cloud]:
    """One question through a cloud: the answer, and what was sent."""

    async def main() -> tuple[Any, Seen, Cloud]:
        async with Cloud(kind, {question.text: "card_arrival"}) as cloud:
            key, model = settings.pop("api_key", KEY), settings.pop("model", "rented-model")
            there = Settings(cloud.url + root, via, **settings)
            provider = build(kind, name="p", model=model, api_key=key, settings=there)
            answer = await provider.ask(question, timeout=10)
            cloud.refuses = 429
            with pytest.raises(RateLimited) as caught:
                await provider.ask(question, timeout=10)
            assert caught.value.retry_after == 7
            await provider.close()
            assert len(cloud.seen) == 2  # the SDK retried nothing
            return answer, cloud.seen[0], cloud

    return asyncio.run(main())


CALLS: list[tuple[Kind, Via, str, dict[str, str], str, str, tuple[str, str]]] = [
    (
        "anthropic",
        "bedrock",
        "",
        {"region": "eu-west-1", "model": "eu.anthropic.claude-haiku-5-5-v1:0"},
        "/model/eu.anthropic.claude-haiku-5-5-v1:0/invoke",
        "",
        ("authorization", f"Bearer {KEY}"),
    ),
    (
        "anthropic",
        "vertex",
        "/v1",
        {"region": "europe-west1", "project": "house", "model": "claude-haiku-5-5@20261001"},
        "/v1/projects/house/locations/europe-west1/publishers/anthropic/models/claude-haiku-5-5@20261001:rawPredict",
        "",
        ("authorization", f"Bearer {KEY}"),
    ),
    ("anthropic", "azure", "/anthropic", {}, "/anthropic/v1/messages", "", ("x-api-key", KEY)),
    ("openai", "azure", "", {}, "/openai/v1/responses", "", ("authorization", f"Bearer {KEY}")),
    ("openai-chat", "azure", "/openai/v1/", {}, "/openai/v1/chat/completions", "", ("authorization", f"Bearer {KEY}")),
    (
        "openai",
        "azure",
        "",
        {"api_version": "2025-03-01-preview"},
        "/openai/responses",
        "api-version=2025-03-01-preview",
        ("api-key", KEY),
    ),
    (
        "openai-chat",
        "azure",
        "",
        {"api_version": "2024-10-21"},
        "/openai/deployments/rented-model/chat/completions",
        "api-version=2024-10-21",
        ("api-key", KEY),
    ),
    (
        "openai",
        "bedrock",
        "/openai/v1",
        {"region": "us-east-1"},
        "/openai/v1/responses",
        "",
        ("authorization", f"Bearer {KEY}"),
    ),
    (
        "openai-chat",
        "bedrock",
        "/openai/v1",
        {"region": "us-east-1"},
        "/openai/v1/chat/completions",
        "",
        ("authorization", f"Bearer {KEY}"),
    ),
    (
        "openai",
        "vertex",
        "/v1/projects/house",
        {"region": "global", "project": "house"},
        "/v1/projects/house/responses",
        "",
        ("authorization", f"Bearer {KEY}"),
    ),
    (
        "openai-chat",
        "vertex",
        "/v1/endpoints/openapi",
        {"region": "global", "project": "house"},
        "/v1/endpoints/openapi/chat/completions",
        "",
        ("authorization", f"Bearer {KEY}"),
    ),
]


@pytest.mark.parametrize(("kind", "via", "root", "settings", "path", "query", "header"), CALLS)
def test_a_question_goes_to_the_clouds_own_address_with_its_credentials(
    question: Question,
    kind: Kind,
    via: Via,
    root: str,
    settings: dict[str, str],
    path: str,
    query: str,
    header: tuple[str, str],
) -> None:
    """And is answered; a rate limit is one; nothing is tried again below us."""
    answer, sent, _ = asked(kind, via, question, root=root, **settings)
    assert answer.label == "card_arrival"
    assert not answer.usage.estimated
    assert (sent.path, sent.query) == (path, query)
    name, value = header
    assert sent.headers[name] == value
    assert sent.headers["accept-encoding"] == "identity"
    if kind == "anthropic":
        assert sent.body["system"][0]["cache_control"] == {"type": "ephemeral"}
        assert sent.body["output_config"]["format"]["type"] == "json_schema"
        # Where the path names the model, the body has the API's version instead.
        assert ("model" in sent.body) == (via == "azure") == ("anthropic_version" not in sent.body)
    else:
        assert sent.body["model"] == "rented-model"
    assert json.dumps(sent.body).count("canarytext") == 1


SIGNED: list[tuple[Kind, str, str]] = [
    ("anthropic", "", "bedrock"),
    ("openai", "/openai/v1", "bedrock-mantle"),
    ("openai-chat", "/openai/v1", "bedrock-mantle"),
]


@aws
@pytest.mark.parametrize(("kind", "root", "service"), SIGNED)
def test_without_a_key_bedrock_gets_a_signature_that_is_right(
    question: Question, monkeypatch: pytest.MonkeyPatch, kind: Kind, root: str, service: str
) -> None:
    """Computed again here from what arrived."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "AKIDEXAMPLE")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY")
    monkeypatch.setenv("AWS_REGION", "us-east-1")
    answer, sent, cloud = asked(kind, "bedrock", question, root=root, api_key="")
    assert answer.label == "card_arrival"
    given = sent.headers["authorization"]
    assert given.startswith("AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/")
    assert f"/us-east-1/{service}/aws4_request" in given
    assert given == signed(sent, cloud.url, service)


def signed(sent: Seen, url: str, service: str) -> str:
    """The authorization that what arrived should have."""
    from botocore.auth import SigV4Auth
    from botocore.awsrequest import AWSRequest
    from botocore.credentials import Credentials

    signer = SigV4Auth(Credentials("AKIDEXAMPLE", "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY"), service, "us-east-1")
    names = sent.headers["authorization"].partition("SignedHeaders=")[2].partition(",")[0].split(";")
    request = AWSRequest("POST", url + sent.path, data=sent.raw, headers={name: sent.headers[name] for name in names})
    request.context["timestamp"] = sent.headers["x-amz-date"]
    to_sign = signer.string_to_sign(request, signer.canonical_request(request))
    parts = [
        f"{signer.scope(request)}",
        f"SignedHeaders={';'.join(names)}",
        f"Signature={signer.signature(to_sign, request)}",
    ]
    return "AWS4-HMAC-SHA256 Credential=" + ", ".join(parts)


@aws
def test_without_any_credentials_bedrock_fails_like_a_wrong_key(question: Question) -> None:
    """At once and free of charge: nothing was sent."""

    async def main() -> None:
        for kind, root, _ in SIGNED:
            async with Cloud(kind, {}) as cloud:
                # The SDK keeps a session, credentials and all, by region.
                settings = Settings(cloud.url + root, "bedrock", "eu-north-1")
                provider = build(kind, name="p", model="m", api_key="", settings=settings)
                with pytest.raises(AuthFailed, match="no credentials") as caught:
                    await provider.ask(question, timeout=10)
                assert caught.value.billed == "no"
                assert not cloud.seen
                await provider.close()

    asyncio.run(main())


@google
@pytest.mark.parametrize("kind", list(FORMATS))
def test_without_a_token_vertex_gets_one_from_googles_default_credentials(
    question: Question, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, kind: Kind
) -> None:
    async def main() -> None:
        async with Cloud(kind, {question.text: "card_arrival"}) as cloud:
            credentials = service_account(tmp_path, f"{cloud.url}/token")
            monkeypatch.setenv("GOOGLE_APPLICATION_CREDENTIALS", str(credentials))
            monkeypatch.setenv("GOOGLE_CLOUD_PROJECT", "house")
            monkeypatch.setenv("GOOGLE_CLOUD_LOCATION", "global")
            settings = Settings(cloud.url + "/v1", "vertex")
            provider = build(kind, name="p", model="m", api_key="", settings=settings)
            assert (await provider.ask(question, timeout=10)).label == "card_arrival"
            assert cloud.seen[0].headers["authorization"] == f"Bearer {KEY}"
            await provider.close()

    asyncio.run(main())


def service_account(folder: Path, token_uri: str) -> Path:
    """A file as Google gives it, with a key made here."""
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key = rsa.generate_private_key(public_exponent=65537, key_size=2048).private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    path = folder / "account.json"
    account = {"type": "service_account", "client_email": "a@b", "token_uri": token_uri, "private_key": key.decode()}
    path.write_text(json.dumps(account | {"project_id": "house", "private_key_id": "1", "client_id": "1"}))
    return path


# what is missing -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings", "key", "environ", "wrong"),
    [
        ("anthropic", Settings(via="bedrock"), True, {}, {"region": "AWS_REGION"}),
        ("anthropic", Settings(via="bedrock"), True, {"AWS_DEFAULT_REGION": "eu-west-1"}, {}),
        ("openai", Settings(via="vertex"), True, {}, {"region": "GOOGLE_CLOUD", "project": "GOOGLE_CLOUD_PROJECT"}),
        ("anthropic", Settings(via="vertex", region="eu", project="house"), True, {}, {}),
        ("anthropic", Settings(via="azure"), True, {}, {"base_url": "https://RESOURCE.services.ai.azure.com"}),
        ("openai-chat", Settings(via="azure"), True, {}, {"base_url": "https://RESOURCE.openai.azure.com"}),
        ("openai-decisions", Settings(via="azure", base_url="https://x"), True, {}, {"via": "only to be had from"}),
        ("openai", Settings(), False, {}, {}),
    ],
)
def test_what_a_cloud_lacks_is_named_with_its_key(
    kind: Kind, settings: Settings, key: bool, environ: dict[str, str], wrong: dict[str, str]
) -> None:
    found = dict(problems(kind, settings, key=key, environ=environ))
    assert found.keys() == wrong.keys()
    for name, word in wrong.items():
        assert word in found[name]


@pytest.mark.parametrize(("via", "package"), [("bedrock", "boto3"), ("vertex", "google.auth")])
def test_a_package_that_is_missing_is_named_with_the_command_that_installs_it(
    monkeypatch: pytest.MonkeyPatch, via: Via, package: str
) -> None:
    """Unless there is a key, which needs none of it."""
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    settings = Settings(via=via, region="eu-west-1", project="house")
    assert list(problems("anthropic", settings, key=True, environ={})) == []
    (found,) = problems("anthropic", settings, key=False, environ={})
    assert found[0] == "via"
    assert package in found[1]
    assert f"(the extra `{via}`): pip install {package.replace('.', '-')}" in found[1]
    with pytest.raises(ValueError, match=f"provider 'p': via: {package}"):
        build("openai", name="p", model="m", api_key="", settings=settings)


@pytest.mark.parametrize("kind", list(FORMATS))
def test_a_key_for_azure_is_needed_and_never_quoted(kind: Kind) -> None:
    settings = Settings("https://r.openai.azure.com", "azure")
    for bad in ("", "sk a"):
        with pytest.raises(ValueError, match="key of provider 'p'") as caught:
            build(kind, name="p", model="m", api_key=bad, settings=settings)
        assert not bad or bad not in str(caught.value)


ADDRESSES: list[tuple[Kind, Via, str, str]] = [
    ("anthropic", "bedrock", "eu-west-1", "https://bedrock-runtime.eu-west-1.amazonaws.com"),
    ("openai", "bedrock", "us-east-1", "https://bedrock-mantle.us-east-1.api.aws/openai/v1"),
    ("anthropic", "vertex", "europe-west1", "https://europe-west1-aiplatform.googleapis.com/v1"),
    ("anthropic", "vertex", "global", "https://aiplatform.googleapis.com/v1"),
    ("anthropic", "vertex", "eu", "https://aiplatform.eu.rep.googleapis.com/v1"),
    (
        "openai",
        "vertex",
        "global",
        "https://aiplatform.googleapis.com/v1/projects/house/locations/global/publishers/openai/v1",
    ),
    (
        "openai-chat",
        "vertex",
        "us-east5",
        "https://us-east5-aiplatform.googleapis.com/v1/projects/house/locations/us-east5/endpoints/openapi",
    ),
]


@pytest.mark.parametrize(("kind", "via", "region", "url"), ADDRESSES)
def test_where_the_config_names_no_address_it_is_the_clouds_whatever_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, kind: Kind, via: Via, region: str, url: str
) -> None:
    for name in ("ANTHROPIC_BEDROCK_BASE_URL", "AWS_BEDROCK_BASE_URL", "ANTHROPIC_VERTEX_BASE_URL"):
        monkeypatch.setenv(name, "https://elsewhere.example.com")
    settings = Settings(via=via, region=region, project="house")
    assert place(kind, "p", settings, key=True, environ={}).url == url

    async def main() -> None:
        provider = build(kind, name="p", model="m", api_key=KEY, settings=settings)
        assert str(provider.client.base_url).rstrip("/") == url  # type: ignore[attr-defined]
        assert "elsewhere" not in repr(vars(provider.client))
        await provider.close()

    asyncio.run(main())


def test_the_same_model_through_a_cloud_is_told_apart(question: Question) -> None:
    """Some serve another version of it."""
    places = (Settings(), Settings(via="bedrock", region="eu-west-1"), Settings(via="bedrock", region="us-east-1"))
    plain, rented, elsewhere = (
        build("anthropic", name="p", model="m", api_key="k", settings=place).identity for place in places
    )
    assert plain != rented == elsewhere


PLACES: list[tuple[Kind, Via | None, str]] = [
    ("anthropic", None, ""),
    ("openai", None, ""),
    ("openai-chat", None, ""),
    *((kind, via, version) for kind, via, _, given, *_ in CALLS for version in [given.get("api_version", "")]),
]


@pytest.mark.parametrize(("kind", "via", "api_version"), PLACES)
def test_no_header_of_the_environment_is_sent(
    kind: Kind, via: Via | None, api_version: str, question: Question, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever `base_url` names would get another's key, or ours would be replaced."""
    secret = "\n".join(f"{name}: Bearer env-secret" for name in ("Authorization", "x-api-key", "api-key", "x-gateway"))
    for name in ("OPENAI_CUSTOM_HEADERS", "ANTHROPIC_CUSTOM_HEADERS"):
        monkeypatch.setenv(name, secret)
    for name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
        monkeypatch.setenv(name, "env-secret")

    async def main() -> None:
        async with Cloud(kind, {question.text: "card_arrival"}) as cloud:
            region = None if via in (None, "azure") else "us-east-1"
            there = Settings(
                cloud.url, via, region, "house" if via == "vertex" else None, api_version=api_version or None
            )
            provider = build(kind, name="p", model="m", api_key=KEY, settings=there)
            assert (await provider.ask(question, timeout=10)).label == "card_arrival"
            await provider.close()
        headers = str(cloud.seen[0].headers)
        assert KEY in headers
        assert "env-secret" not in headers

    asyncio.run(main())
