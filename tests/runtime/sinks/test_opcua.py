"""An OPC UA server that a real client reads, writes, subscribes to and calls; who may connect, and who may not."""

from __future__ import annotations

import asyncio
import datetime
import socket
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nnet_edge.errors import ConfigError, NnetEdgeError, SinkError
from nnet_edge.events import Event
from nnet_edge.frame import Prediction, Triggered
from nnet_edge.runtime.sinks.base import Orders
from nnet_edge.runtime.sinks.queued import serve

asyncua = pytest.importorskip("asyncua", reason="asyncua is not installed")
x509 = pytest.importorskip("cryptography.x509")

from nnet_edge.runtime.sinks.opcua import METHODS, NAMESPACE, TEXTS, Door, OpcuaSettings, OpcuaSink  # noqa: E402
from nnet_edge.runtime.sinks.station import CODES, POINTS  # noqa: E402

DAY = datetime.timedelta(days=1)
URI = "urn:nnet-edge:test"
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of asyncua's own imports


def write_certificate(
    folder: Path, name: str, from_days: int = -1, to_days: int = 90, uri: str = URI
) -> tuple[Path, Path]:
    """A self-signed certificate of an OPC UA application and its key, PEM."""
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa

    key, oids = rsa.generate_private_key(65537, 2048), x509.ExtendedKeyUsageOID
    now = datetime.datetime.now(datetime.timezone.utc)
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    usage = x509.KeyUsage(True, True, True, True, False, True, False, False, False)
    builder = (
        x509.CertificateBuilder(subject, subject, key.public_key(), x509.random_serial_number())
        .not_valid_before(now + from_days * DAY)
        .not_valid_after(now + to_days * DAY)
        .add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), False)
        .add_extension(x509.BasicConstraints(True, None), True)
        .add_extension(usage, True)
        .add_extension(x509.ExtendedKeyUsage([oids.CLIENT_AUTH, oids.SERVER_AUTH]), False)
    )
    certificate = builder.sign(key, hashes.SHA256())
    paths = folder / f"{name}.pem", folder / f"{name}_key.pem"
    paths[0].write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    paths[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return paths


@pytest.fixture(scope="session")
def papers(made_once: Callable[..., Path]) -> Path:
    """A folder with certificates: server, plc, stranger, expired; trusted/ holds those of plc and of expired."""

    def fill(folder: Path) -> None:
        trusted = folder / "trusted"
        trusted.mkdir()
        for name, days in (("server", 90), ("plc", 90), ("stranger", 90), ("expired", 0)):
            path, _ = write_certificate(folder, name, -2, days, f"{URI}:{name}")
            if name in ("plc", "expired"):
                (trusted / path.name).write_bytes(path.read_bytes())

    return made_once("opcua", fill)


class Site:
    """A served sink, and what it ordered."""

    def __init__(self, **settings: Any) -> None:
        self.settings = OpcuaSettings(**({"heartbeat_s": 0.05} | settings))
        self.url = f"opc.tcp://127.0.0.1:{self.settings.port}/nnet-edge/"
        self.sink = serve(self.settings)
        self.orders: list[tuple[Any, ...]] = []

    def __enter__(self) -> Site:
        self.sink.__enter__()
        self.sink.obey(Orders(self._trigger, self._use_recipe, ("m8", "m10"), "m8"))
        return self

    def __exit__(self, *about: object) -> None:
        self.sink.__exit__(None, None, None)

    def _trigger(self, stream: str | None, number: int | None, by: str) -> int:
        self.orders.append((stream, number, by))
        return number or 41

    def _use_recipe(self, name: str, by: str) -> None:
        if name not in ("m8", "m10"):
            raise ConfigError("unknown")
        self.orders.append((name, by))


class Plc:
    """A real client."""

    def __init__(self, client: Any, home: Any, space: int) -> None:
        self._client, self.home, self._space = client, home, space

    def node(self, name: str) -> Any:
        return self._client.get_node(asyncua.ua.NodeId(name, self._space))

    async def read(self, *names: str) -> list[Any]:
        return [await self.node(name).read_value() for name in names]

    async def write(self, name: str, value: Any, kind: str = "Boolean") -> None:
        await self.node(name).write_value(asyncua.ua.Variant(value, asyncua.ua.VariantType[kind]))

    async def call(self, name: str, *arguments: Any) -> Any:
        return await self.home.call_method(f"{self._space}:{name}", *arguments)

    async def until(self, name: str, value: Any, limit_s: float = 5.0) -> None:
        end_s = time.monotonic() + limit_s
        while await self.node(name).read_value() != value:
            assert time.monotonic() < end_s, f"{name} did not become {value}"
            await asyncio.sleep(0.01)


@asynccontextmanager
async def plc_at(url: str, papers: tuple[Path, Path, Path] | None = None, **given: Any) -> AsyncIterator[Plc]:
    """A client there, signing and encrypting with (certificate, key, server's certificate) where they are given."""
    client = asyncua.Client(url, timeout=4)
    if papers is not None:
        certificate, key, server = papers
        client.application_uri = f"{URI}:{certificate.stem}"
        await client.set_security_string(f"Basic256Sha256,SignAndEncrypt,{certificate},{key},{server}")
    for name, value in given.items():
        getattr(client, f"set_{name}")(value)
    async with client:
        space = await client.get_namespace_index(NAMESPACE)
        yield Plc(client, client.get_node(asyncua.ua.NodeId("line", space)), space)


@pytest.fixture
def answer(make_prediction: Callable[..., Prediction]) -> Callable[..., Prediction]:
    """A function that gives the verdict of a trigger."""

    def make(number: int, is_good: bool = True) -> Prediction:
        now_s = time.monotonic()
        found = make_prediction(0, is_good)
        trigger = Triggered(number, now_s, "plc", now_s + 5)
        return replace(found, frame=replace(found.frame, trigger=trigger), part_verdict=not is_good)

    return make


def test_a_plc_reads_writes_calls_and_subscribes(
    free_port: Callable[[], int], answer: Callable[..., Prediction]
) -> None:
    async def work(site: Site) -> None:
        async with plc_at(site.url) as plc:
            children = {(await node.read_browse_name()).Name for node in await plc.home.get_children()}
            assert children == {point.name for point in POINTS} | set(TEXTS) | set(METHODS)
            await plc.until("ready", True)
            seen: list[tuple[str, Any]] = []

            class Changes:
                def datachange_notification(self, node: Any, value: Any, data: Any) -> None:
                    seen.append((node.nodeid.Identifier, value))

            subscription = await plc._client.create_subscription(20, Changes())
            await subscription.subscribe_data_change([plc.node(name) for name in ("done", "good", "trigger")])
            assert await plc.call("inspect", asyncua.ua.Variant(65541, asyncua.ua.VariantType.UInt32)) == 65541
            assert site.orders == [(None, 65541, "opcua")]
            await plc.until("busy", True)
            site.sink.write(answer(65541))
            await plc.until("done", True)
            assert await plc.read("good", "reject", "verdict", "stage", "trigger", "outcome") == [
                True, False, "good", "done", 65541, CODES["verdict"]]  # fmt: skip
            assert await plc.read("answers", "rejects") == [1, 0]
            await plc.call("take_answer")
            await plc.until("done", False)
            assert await plc.read("good", "verdict", "stage") == [False, "", "idle"]
            await asyncio.sleep(0.1)
            names = [name for name, value in seen if value]
            assert names.index("trigger") < names.index("done")  # whoever hears of done finds the answer there
            await plc.write("request", True)  # the same by writing
            await plc.until("busy", True)
            site.sink.tell(Event("trigger.failed", "a", facts={"trigger": 41, "outcome": "late", "answer": "reject"}))
            await plc.until("done", True)
            assert await plc.read("good", "reject", "fault", "outcome") == [False, True, True, CODES["late"]]
            await plc.write("acknowledge", True)
            await plc.until("done", False)
            await plc.call("use_recipe", "m10")
            assert site.orders[-1] == ("m10", "opcua")
            site.sink.tell(Event("recipe.changed", facts={"recipe": "m10"}))
            await plc.until("recipe_name", "m10")
            assert await plc.read("recipe", "recipe_state") == [2, 0]
            with pytest.raises(asyncua.ua.UaStatusCodeError):
                await plc.call("use_recipe", "m9")
            with pytest.raises(asyncua.ua.UaStatusCodeError):
                await plc.write("good", True)
            beats = (await plc.read("beats"))[0]
            await asyncio.sleep(0.15)
            assert (await plc.read("beats"))[0] > beats

    with Site(port=free_port(), plain=True, anonymous=True) as site:
        asyncio.run(work(site))


def test_who_may_connect(free_port: Callable[[], int], papers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPCUA_PASSWORD", "long enough")

    def paper(name: str) -> tuple[Path, Path, Path]:
        return papers / f"{name}.pem", papers / f"{name}_key.pem", papers / "server.pem"

    async def tries(url: str, *who: tuple[Any, dict[str, Any], bool]) -> None:
        for shown, given, may in who:
            try:
                async with plc_at(url, shown, **given) as plc:
                    assert await plc.read("ready") in ([True], [False])
            except (asyncua.ua.UaError, ConnectionError, TimeoutError, asyncio.TimeoutError) as error:
                came_in: object = error
            else:
                came_in = True
            assert (came_in is True) is may, f"{shown} {given}: {came_in!r}"

    certificate = {"certificate_file": papers / "server.pem", "key_file": papers / "server_key.pem"}
    right, wrong = {"user": "plc", "password": "long enough"}, {"user": "plc", "password": "long"}
    asked = {"user": "plc", "password_from": "env:OPCUA_PASSWORD", "trusted_clients": papers / "trusted"}
    who = [(paper("plc"), right, True), (paper("plc"), wrong, False), (paper("plc"), {}, False), (None, right, False),
           (paper("stranger"), right, False), (paper("expired"), right, False)]  # fmt: skip
    with Site(port=free_port(), **certificate, **asked) as site:
        asyncio.run(tries(site.url, *who))


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({}, "needs certificate_file and key_file to sign and encrypt; plain = true"),
        ({"plain": True}, "needs to know who may connect"),
        ({"plain": True, "user": "plc"}, "a user needs a password|user needs a password"),
        ({"anonymous": True, "certificate_file": Path("a.pem")}, "needs its key"),
        ({"plain": True, "anonymous": True, "policies": ("Basic256",)}, "OPC UA policy 'Basic256' is unknown"),
        ({"plain": True, "trusted_clients": Path("x")}, "shows no certificate where nothing is signed"),
    ],
)
def test_settings_that_would_let_anybody_in_by_mistake(settings: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        OpcuaSettings(**settings)


def test_certificates_that_are_of_no_use_are_one_sentence(tmp_path: Path, papers: Path) -> None:
    def sink_of(certificate: Path, key: Path) -> OpcuaSink:
        return OpcuaSink(OpcuaSettings(anonymous=True, certificate_file=certificate, key_file=key))

    expired = papers / "expired.pem", papers / "expired_key.pem"
    with pytest.raises(ConfigError, match=r"expired.pem expired on 20..-..-..: no client connects; make another"):
        sink_of(*expired)
    with pytest.raises(ConfigError, match=r"is valid from .* on: is the clock right"):
        sink_of(*write_certificate(tmp_path, "early", 2, 9))
    with pytest.raises(ConfigError, match="is not the key of the OPC UA certificate"):
        sink_of(papers / "server.pem", papers / "plc_key.pem")
    (tmp_path / "torn.pem").write_bytes((papers / "server.pem").read_bytes()[:200])
    with pytest.raises(ConfigError, match=r"torn.pem or its key .* cannot be used"):
        sink_of(tmp_path / "torn.pem", papers / "server_key.pem")
    with pytest.raises(ConfigError, match=r"absent.pem: No such file"):
        sink_of(tmp_path / "absent.pem", papers / "server_key.pem")


def test_a_certificate_alone_may_let_a_client_in(papers: Path) -> None:
    from asyncua.crypto.truststore import TrustStore
    from cryptography.hazmat.primitives.serialization import Encoding

    store = TrustStore([papers / "trusted"], [])
    asyncio.run(store.load())
    settings = OpcuaSettings(
        trusted_clients=papers / "trusted", certificate_file=papers / "server.pem", key_file=papers / "server_key.pem"
    )
    door = Door(settings, None, store)
    shown = {
        name: x509.load_pem_x509_certificate((papers / f"{name}.pem").read_bytes()).public_bytes(Encoding.DER)
        for name in ("plc", "stranger", "expired")
    }
    assert [name for name, data in shown.items() if door.get_user(None, certificate=data) is not None] == ["plc"]
    assert door.get_user(None) is None


def test_the_table_of_the_document_is_the_code_s() -> None:
    document = (Path(__file__).parents[3] / "docs/plc.md").read_text()
    for name, text in (TEXTS | METHODS).items():
        assert f"| `{name}`{', a method' * (name in METHODS)} | {text} |" in document


def test_a_port_that_is_taken_is_one_sentence(free_port: Callable[[], int]) -> None:
    port = free_port()
    with socket.socket() as other:
        other.bind(("127.0.0.1", port))
        other.listen()
        with pytest.raises(SinkError, match=f"OPC UA cannot be served on 127.0.0.1:{port} .Address already in use."):
            serve(OpcuaSettings(port=port, plain=True, anonymous=True)).__enter__()
    assert issubclass(SinkError, NnetEdgeError)
