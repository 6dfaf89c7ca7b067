"""An OPC UA server that a PLC or a SCADA reads and writes; the only file that imports asyncua.

`Objects/NnetEdge` has a variable for every point, named as there, and three methods; docs/plc.md has the table. Nobody reads it
without a name and a password, or a certificate that is trusted here, unless `anonymous` says so.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from nnet_edge.errors import ConfigError, MissingExtraError, NnetEdgeError, SinkError
from nnet_edge.runtime.sinks.station import INPUTS, POINTS, LoopThread, Station, StationSettings, require_free
from nnet_edge.settings.registry import SINKS, SinkKind
from nnet_edge.settings.runner import require_between, require_choice
from nnet_edge.settings.secrets import read_secret, require_secret_place

log = logging.getLogger(__name__)

NAMESPACE = "urn:nnet-edge:line"
POLICIES = tuple(
    f"{name}_{mode}"
    for name in ("Basic256Sha256", "Aes128Sha256RsaOaep", "Aes256Sha256RsaPss")
    for mode in ("SignAndEncrypt", "Sign")
)
TYPES = {"bit": "Boolean", "short": "UInt16", "number": "UInt32", "real": "Float", "text": "String"}
TEXTS = {  # nodes beside the points
    "verdict": "good, reject, or empty while nothing is answered",
    "stage": "of the handshake: idle, busy, done, cleared, lost",
    "recipe_name": "the recipe that judges",
}
METHODS = {
    "inspect": "a part is there: its number, 0: the line counts; gives the number",
    "take_answer": "the answer was taken",
    "use_recipe": "judge by the recipe of that name",
}
LARGEST = {"bit": 1, "short": 2**16 - 1, "number": 2**32 - 1}
SOON = timedelta(days=30)  # a certificate that expires by then is warned of


@dataclass(frozen=True, kw_only=True)
class OpcuaSettings(StationSettings):
    """Answers to a PLC or a SCADA by OPC UA."""

    kind = "opcua"

    host: str = "127.0.0.1"  # another one lets every machine of that network reach the port
    port: int = 4840  # where the server listens
    certificate_file: Path | None = None  # of this server, PEM or DER
    key_file: Path | None = None  # of the certificate
    policies: tuple[str, ...] = POLICIES[::2]  # of signature and encryption, that clients may choose from
    plain: bool = False  # an endpoint without signature and encryption too
    user: str | None = None  # that clients must name; None: they show a certificate of trusted_clients
    password_from: str | None = None  # "env:NAME" or "file:PATH"
    trusted_clients: Path | None = (
        None  # a folder of certificates, or of their authorities: no other client may connect
    )
    anonymous: bool = False  # whoever reaches the port may read and write

    def __post_init__(self) -> None:
        super().__post_init__()
        require_between("OPC UA port", self.port, 1, 65_535)
        for policy in self.policies:
            require_choice("OPC UA policy", policy, POLICIES)
        if (self.certificate_file is None) != (self.key_file is None):
            raise ConfigError("an OPC UA certificate needs its key, and the key its certificate: give both, or neither")
        if self.certificate_file is None and not self.plain:
            raise ConfigError(
                "OPC UA needs certificate_file and key_file to sign and encrypt; plain = true serves it without"
            )
        if (self.user is None) != (self.password_from is None):
            raise ConfigError("an OPC UA user needs a password, and a password a user: give both, or neither")
        if self.password_from is not None:
            require_secret_place("password_from", self.password_from)
        if self.user is None and self.trusted_clients is None and not self.anonymous:
            raise ConfigError(
                "OPC UA needs to know who may connect: user and password_from, trusted_clients, or anonymous = true for all"
            )
        if self.trusted_clients is not None and self.plain:
            raise ConfigError(
                "a client shows no certificate where nothing is signed: leave plain out, or trusted_clients"
            )


class OpcuaSink(Station):
    """Serves the points; see the top of this file."""

    name = "opcua"

    def __init__(self, settings: OpcuaSettings) -> None:
        super().__init__(settings)
        self._opcua = settings
        place = settings.password_from
        self._password = None if place is None else read_secret("password_from", place)
        try:
            import asyncua
        except ImportError as error:
            raise MissingExtraError("asyncua is not installed: pip install 'nnet-edge[opcua]'") from error
        self._asyncua = asyncua
        self._uri = "urn:nnet-edge"
        if settings.certificate_file is not None and settings.key_file is not None:
            self._uri = check_certificate(settings.certificate_file, settings.key_file) or self._uri
        if settings.trusted_clients is not None and not settings.trusted_clients.is_dir():
            raise ConfigError(
                f"trusted_clients {settings.trusted_clients} is no folder: put their certificates into one"
            )
        self._loop: LoopThread | None = None
        self._server: Any = None
        self._nodes: dict[str, Any] = {}
        self._written: dict[str, object] = {}
        self._next: dict[str, object] | None = None  # to be written

    def open(self) -> None:
        settings = self._opcua
        require_free("OPC UA", settings.host, settings.port)
        self._loop = LoopThread(f"server of {settings.label}")
        try:
            self._loop.run(self._start(), 60.0)
        except Exception as error:
            self._loop.close()
            self._loop = None
            raise SinkError(f"OPC UA cannot be served on {settings.host}:{settings.port}: {error!r}") from error

    async def _start(self) -> None:
        settings, ua = self._opcua, self._asyncua.ua
        store = None
        if settings.trusted_clients is not None:
            from asyncua.crypto.truststore import TrustStore

            store = TrustStore([settings.trusted_clients], [])
            await store.load()
        door: Any = Door(settings, self._password, store)
        server = self._asyncua.Server(user_manager=door)
        await server.init()
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}/nnet-edge/")
        server.set_server_name("nnet-edge")
        await server.set_application_uri(self._uri)
        policies = [ua.SecurityPolicyType[policy] for policy in settings.policies]
        if settings.certificate_file is not None:
            assert settings.key_file is not None  # OpcuaSettings saw to it
            for path, load in (
                (settings.certificate_file, server.load_certificate), (settings.key_file, server.load_private_key)
            ):  # fmt: skip
                data = path.read_bytes()
                await load(data, format="pem" if is_pem(data) else "der")  # asyncua goes by the file's name
        else:
            policies = []
        server.set_security_policy(policies + [ua.SecurityPolicyType.NoSecurity] * settings.plain)
        tokens = [] if settings.user is None else [ua.UserNameIdentityToken]
        if settings.user is None:  # then a certificate says who it is, or nothing
            tokens.append(ua.AnonymousIdentityToken)
        server.set_identity_tokens(tokens)
        await self._add_nodes(server)
        server.subscribe_server_callback(self._asyncua.common.callback.CallbackType.PostWrite, self._take_written)
        await server.start()
        self._server = server

    async def _add_nodes(self, server: Any) -> None:
        ua = self._asyncua.ua
        space = await server.register_namespace(NAMESPACE)
        home = await server.nodes.objects.add_object(ua.NodeId("line", space), ua.QualifiedName("NnetEdge", space))
        kinds = {point.name: point.kind for point in POINTS} | dict.fromkeys(TEXTS, "text")
        for name, kind in kinds.items():
            variant = ua.Variant(as_type(kind, "" if kind == "text" else 0), ua.VariantType[TYPES[kind]])
            self._nodes[name] = await home.add_variable(ua.NodeId(name, space), ua.QualifiedName(name, space), variant)
        for point in INPUTS:
            await self._nodes[point.name].set_writable()
        number, text = ua.VariantType.UInt32, ua.VariantType.String
        methods: dict[str, tuple[Callable[..., Any], list[Any], list[Any]]] = {
            "inspect": (self._inspect, [number], [number]),
            "take_answer": (self._take_answer, [], []),
            "use_recipe": (self._use_recipe_named, [text], []),
        }
        for name, (work, takes, gives) in methods.items():
            identity = ua.NodeId(f"{name}()", space), ua.QualifiedName(name, space)
            await home.add_method(*identity, work, takes, gives)

    def close(self) -> None:
        loop, self._loop = self._loop, None
        if loop is not None:
            if self._server is not None:
                loop.run(self._server.stop())
            loop.close()
        self._server = None

    # ---- what is shown

    def show(self, values: dict[str, float]) -> None:
        loop, shown = self._loop, dict[str, object](values)
        lamps = self._handshake.lamps
        shown["verdict"] = "good" if lamps.good else "reject" if lamps.reject else ""
        shown["stage"], shown["recipe_name"] = self._handshake.stage.value, self.recipe_name
        is_planned, self._next = self._next is not None, shown
        if loop is not None and not is_planned:
            loop.soon(self._write())

    async def _write(self) -> None:
        """Write what has changed: what an answer consists of before `done` comes, and behind its going."""
        with self._changed:
            shown, self._next = self._next or {}, None
        ua, kinds = self._asyncua.ua, {point.name: point.kind for point in POINTS}
        names = [name for name, value in shown.items() if self._written.get(name) != value]
        for name in sorted(names, key=lambda name: (name == "done") is bool(shown["done"])):
            kind = kinds.get(name, "text")
            variant = ua.Variant(as_type(kind, shown[name]), ua.VariantType[TYPES[kind]])
            stamp = datetime.now(timezone.utc)
            await self._nodes[name].write_attribute(
                ua.AttributeIds.Value, ua.DataValue(variant, SourceTimestamp=stamp, ServerTimestamp=stamp)
            )
            self._written[name] = shown[name]

    # ---- from the PLC

    def _take_written(self, event: Any, dispatcher: Any) -> None:
        """Take what a client wrote into an input."""
        if not event.is_external:
            return
        names = {self._nodes[point.name].nodeid: point for point in INPUTS}
        for node, result in zip(event.request_params.NodesToWrite, event.response_params, strict=True):
            point, value = names.get(node.NodeId), node.Value.Value.Value
            if point is None or not result.is_good():
                continue
            if isinstance(value, int) and 0 <= value <= LARGEST[point.kind]:
                self._written[point.name] = value
                self.take(**{point.name: value})
            else:
                told = "%s: what was written to %s is ignored: it must be %s"
                log.warning(told, self._opcua.label, point.name, TYPES[point.kind])

    async def _inspect(self, parent: Any, number: Any) -> Any:
        ua = self._asyncua.ua
        self.take(request=0, acknowledge=0)
        self.take(wanted_trigger=number.Value, request=1)
        self.take(wanted_trigger=0)  # of this part alone
        lamps = self._handshake.lamps
        if not lamps.busy:
            return ua.StatusCode(ua.StatusCodes.BadInvalidState)
        return [ua.Variant(self._handshake.number, ua.VariantType.UInt32)]

    async def _take_answer(self, parent: Any) -> Any:
        self.take(request=0, acknowledge=0)
        return []

    async def _use_recipe_named(self, parent: Any, name: Any) -> Any:
        ua = self._asyncua.ua
        try:
            with self._changed:
                self.use_recipe(str(name.Value))
        except NnetEdgeError as error:
            log.warning("%s: the recipe stays: %s", self._opcua.label, error)
            return ua.StatusCode(ua.StatusCodes.BadInvalidArgument)
        finally:
            with self._changed:
                self._show()
        return []


def as_type(kind: str, value: Any) -> object:
    """The value as a node of that kind holds it: whole numbers begin anew behind the largest."""
    if kind in ("text", "real"):
        return str(value) if kind == "text" else float(value)
    return bool(value) if kind == "bit" else int(value) % (LARGEST[kind] + 1)


class Door:
    """Says who may connect, for every session, whatever the endpoint; asyncua calls it a user manager."""

    def __init__(self, settings: OpcuaSettings, password: str | None, store: Any) -> None:
        self._settings, self._password, self._store = settings, password, store

    def get_user(self, iserver: Any, username: str | None = None, password: Any = None, certificate: Any = None) -> Any:
        """The user of a session, by what the client showed; None: it may not connect."""
        from asyncua.crypto.permission_rules import User, UserRole

        if self._store is not None and not self._is_trusted(certificate):
            return None
        if self._settings.user is not None:
            given = password.decode(errors="replace") if isinstance(password, bytes) else str(password or "")
            is_same = hmac.compare_digest(str(username or "").encode(), self._settings.user.encode())
            if not hmac.compare_digest(given.encode(), str(self._password).encode()) or not is_same:
                return None
        return User(role=UserRole.User, name=username)

    def _is_trusted(self, certificate: Any) -> bool:
        """Whether the channel was opened with a certificate that is trusted here and valid now."""
        from cryptography import x509

        if not certificate:
            return False
        found = x509.load_der_x509_certificate(certificate) if isinstance(certificate, bytes) else certificate
        now = datetime.now(timezone.utc)
        is_valid = found.not_valid_before_utc <= now <= found.not_valid_after_utc
        return is_valid and bool(self._store.is_trusted(found))


def is_pem(data: bytes) -> bool:
    """Whether a certificate or key is text."""
    return data.lstrip().startswith(b"-----BEGIN")


def check_certificate(path: Path, key_path: Path) -> str | None:
    """The application's URI in the certificate, None: it has none. Raises ConfigError for one that is of no use."""
    from cryptography import x509
    from cryptography.hazmat.primitives import serialization

    try:
        data, key_data = path.read_bytes(), key_path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"the OPC UA certificate or its key cannot be read: {error.filename}: {error.strerror}"
        ) from error
    try:
        found = x509.load_pem_x509_certificate(data) if is_pem(data) else x509.load_der_x509_certificate(data)
        load = serialization.load_pem_private_key if is_pem(key_data) else serialization.load_der_private_key
        key = load(key_data, None)
    except (ValueError, TypeError) as error:
        raise ConfigError(f"the OPC UA certificate {path} or its key {key_path} cannot be used: {error}") from error
    now, end = datetime.now(timezone.utc), found.not_valid_after_utc
    if now > end:
        raise ConfigError(f"the OPC UA certificate {path} expired on {end:%Y-%m-%d}: no client connects; make another")
    if now < found.not_valid_before_utc:
        raise ConfigError(
            f"the OPC UA certificate {path} is valid from {found.not_valid_before_utc:%Y-%m-%d} on: is the clock right?"
        )
    if key.public_key() != found.public_key():
        raise ConfigError(
            f"{key_path} is not the key of the OPC UA certificate {path}: give the one that it was made with"
        )
    if end - now < SOON:
        log.warning("the OPC UA certificate %s expires on %s: make another before", path, f"{end:%Y-%m-%d}")
    try:
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return None
    return next(iter(names.get_values_for_type(x509.UniformResourceIdentifier)), None)


SINKS.register(SinkKind("opcua", OpcuaSettings, OpcuaSink, needs={"asyncua": "opcua"}))
