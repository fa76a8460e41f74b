"""One typed registry of settings: ``dicomnode.toml``, any key overridden by ``DICOMNODE__SECTION__KEY``.

The commented ``config/dicomnode.toml`` and ``docs/settings.md`` are written from the descriptions here (``pages.py``);
a test fails where they differ. An unknown key, a bad value,
contradictory options or a missing file is a ``SettingsError`` that names the setting. Never holds a secret in clear
in ``masked()``.
"""

from __future__ import annotations

import difflib
import os
import socket
import tomllib
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from dicomnode.config.mistakes import first_mistake
from dicomnode.domain import Role
from dicomnode.errors import SettingsError

ENV_PREFIX = "DICOMNODE__"
ENV_CONFIG = "DICOMNODE_CONFIG"
DEFAULT_FILE = Path("config/dicomnode.toml")
LOOPBACK = frozenset({"127.0.0.1", "::1", "localhost"})
EVERY_ADDRESS = frozenset({"0.0.0.0", "::"})  # noqa: S104 - to recognise it
SECRETS = frozenset({"key_command", "url"})  # masked by "config show": a URL may carry a password

Service = Literal["echo", "store", "find", "move", "get", "similar"]
ResultObject = Literal["sr", "contact-sheet", "pdf"]
DEID_OPTIONS = (
    "retain-safe-private",
    "retain-uids",
    "retain-device-identity",
    "retain-institution-identity",
    "retain-patient-characteristics",
    "retain-longitudinal-full-dates",
    "retain-longitudinal-modified-dates",
    "clean-descriptors",
    "clean-structured-content",
    "clean-graphics",
    "clean-pixel-data",
    "clean-recognizable-visual-features",
)


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True)


class Node(_Section):
    """The node itself."""

    data_dir: Path = Field(
        Path("var"),
        description="Folder of all data; relative: to the folder that each command is run in, so give an absolute one "
        "outside a trial. Its subfolder identified/ holds patients' data: encrypted file system.",
    )
    organisation: str = Field("", max_length=64, description="Name of the organisation, written into reports.")
    default_issuer: str = Field("", max_length=64, description="Issuer of Patient ID where the object names none.")
    language: Literal["en", "es"] = Field("en", description="Language of reports and of the web page.")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="How much is logged. No level logs what identifies a patient."
    )


class AETitle(_Section):
    """An AE title of the node and what it does with a study."""

    title: str = Field(min_length=1, max_length=16, description="AE title that peers call.")
    role: Role = Field(
        Role.INDEX_QUERY, description="index+query: kept and answered; query: answered, never kept; index: kept."
    )


class Peer(_Section):
    """A system that the node knows."""

    name: str = Field(min_length=1, max_length=64, description="Name in commands and logs.")
    ae_title: str = Field(min_length=1, max_length=16, description="Its AE title.")
    host: str = Field("127.0.0.1", description="Its host, for what the node sends.")
    port: int = Field(104, ge=1, le=65535, description="Its port.")
    results: bool = Field(False, description="Whether it takes results.")
    objects: tuple[ResultObject, ...] = Field(
        (), description="What it takes: sr, contact-sheet, pdf; empty: as [report] objects."
    )
    services: tuple[Service, ...] = Field(
        ("echo", "store", "find", "move", "get", "similar"),
        description="What it may ask of the node. move and get may stand here but are not served yet.",
    )


class Tls(_Section):
    """TLS of the DICOM port; all empty: plain TCP."""

    cert: str = Field("", description="Certificate chain, PEM.")
    key: str = Field("", description="Private key, PEM.")
    ca: str = Field("", description="Certificates that clients are checked against, PEM.")
    require_client_cert: bool = Field(False, description="Refuse clients without a certificate.")


class Dicom(_Section):
    """The DICOM side."""

    host: str = Field("127.0.0.1", description="Address to listen on; 0.0.0.0 for all.")
    port: int = Field(11112, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    receivers: int = Field(2, ge=1, le=64, description="Receiver processes that share the port.")
    study_quiet_s: float = Field(10, ge=0, le=3600, description="Seconds without a new image that end a study.")
    max_associations: int = Field(64, ge=1, le=10000, description="Associations at once, over all receivers.")
    tls: Tls = Field(Tls(), description="TLS of the port.")
    ae_titles: tuple[AETitle, ...] = Field(
        (AETitle(title="DICOMNODE", role=Role.INDEX_QUERY),), description="AE titles of the node."
    )
    peers: tuple[Peer, ...] = Field(
        (Peer(name="pacs", ae_title="PACS", host="127.0.0.1", port=11113, results=True),),
        description="Systems that the node knows; any other calling AE title is rejected.",
    )

    @model_validator(mode="after")
    def _unique(self) -> Dicom:
        if not self.ae_titles:
            raise ValueError("ae_titles: at least one is needed")
        for what, values in (
            ("ae_titles title", [a.title for a in self.ae_titles]),
            ("peers name", [p.name for p in self.peers]),
        ):
            twice = {v for v in values if values.count(v) > 1}
            if twice:
                raise ValueError(f"{what} is given twice: {', '.join(sorted(twice))}")
        return self


class Deid(_Section):
    """De-identification (PS3.15 annex E)."""

    profile: Literal["basic"] = Field("basic", description="Basic Application Level Confidentiality Profile.")
    options: tuple[str, ...] = Field(
        (
            "retain-longitudinal-modified-dates",
            "clean-descriptors",
            "clean-pixel-data",
            "retain-patient-characteristics",
        ),
        description="Options of the profile: " + " ".join(DEID_OPTIONS) + ".",
    )
    site_recipe: str = Field(
        "",
        description="TOML file with the site's own rules on top of the profile (config/deid/example-site.toml); a rule "
        "that weakens has to name its exception.",
    )
    pixels: Literal["mask", "quarantine"] = Field(
        "mask",
        description="Images that may show text: mask what is found and let them pass; or quarantine them all.",
    )
    ocr_sample: float = Field(
        0.0,
        ge=0.0,
        le=1.0,
        description="Share of the slices passing as acquired (CT, MR, PT, NM) that are searched for text all the same.",
    )
    faces: Literal["flag", "quarantine"] = Field(
        "flag",
        description="Images of the head from which a face may be recognised: say so in the object and in reports; or "
        "quarantine them. Faces are never removed.",
    )
    workers: int = Field(2, ge=1, le=64, description="De-identification processes.")

    @field_validator("options")
    @classmethod
    def _known(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        unknown = [v for v in value if v not in DEID_OPTIONS]
        if unknown:
            raise ValueError(f"unknown option {unknown[0]!r}; known are: {', '.join(DEID_OPTIONS)}")
        if {"retain-longitudinal-full-dates", "retain-longitudinal-modified-dates"} <= set(value):
            raise ValueError("retain-longitudinal-full-dates and retain-longitudinal-modified-dates contradict")
        return value


class Vault(_Section):
    """Key of the pseudonym vault; at most one source. None: data_dir/vault.key."""

    key_file: str = Field("", description="File that holds the key.")
    key_env: str = Field("", description="Environment variable that holds the key.")
    key_command: str = Field("", description="Command that prints the key.")

    @model_validator(mode="after")
    def _one(self) -> Vault:
        given = [n for n in ("key_file", "key_env", "key_command") if getattr(self, n)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} contradict: give one")
        return self


class Models(_Section):
    """The networks."""

    pack: str = Field(
        "cenet-xception",
        description="Pack of a new repository: a shipped name, or a folder; then: dicomnode models activate.",
    )
    device: str = Field("auto", pattern=r"^(auto|cpu|cuda(:\d+)?)$", description="auto, cpu, cuda or cuda:N.")


class Index(_Section):
    """The vector index."""

    backend: Literal["mrpt", "exact"] = Field("mrpt", description="mrpt: approximate once large; exact.")
    target_recall: float = Field(0.95, gt=0.5, lt=1.0, description="Recall that a snapshot must be shown to have.")


class Retrieval(_Section):
    """From slices to similar cases."""

    k: int = Field(10, ge=1, le=200, description="Cases in an answer.")
    same_patient: Literal["exclude"] = Field("exclude", description="Cases of the query's own patient.")
    result_days: int = Field(30, ge=0, description="Days that the key slices of a query are kept for its page.")
    answer_rejected: bool = Field(False, description="Send a report also where the input cannot be searched.")


class Report(_Section):
    """What is sent back."""

    objects: tuple[ResultObject, ...] = Field(
        ("sr",), description="Objects of an answer: sr, contact-sheet, pdf; a peer's own list wins."
    )
    keep_days: int = Field(7, ge=0, description="Days that sent objects stay, for 'results resend'.")


class Database(_Section):
    """The catalogue's database."""

    url: str = Field("", description="Empty: SQLite in data_dir. Else a SQLAlchemy URL (PostgreSQL).")


class Archive(_Section):
    """Where the de-identified objects are."""

    url: str = Field("", description="Empty: files in data_dir. Else a folder.")


class Auth(_Section):
    """Sign-in of the web side; all at their defaults: none, loopback only."""

    method: Literal["", "users"] = Field("", description="users: local users of 'dicomnode user add'.")
    links: Literal["sign-in", "open"] = Field(
        "sign-in", description="Result links: sign-in: for users; open: one result for whoever holds its link."
    )
    session_hours: float = Field(
        12, gt=0, le=168, description="Hours without a request after which a session ends (seven days at most)."
    )

    @model_validator(mode="after")
    def _method_is_given(self) -> Auth:
        if not self.method and (self.links, self.session_hours) != ("sign-in", 12):
            raise ValueError('method is missing: "users"')
        return self


class Web(_Section):
    """The web side."""

    host: str = Field("127.0.0.1", description="Address to listen on; other than loopback needs auth.")
    port: int = Field(8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one.")
    public_url: str = Field(
        "", description="Base of the links in reports, as browsers reach it (a proxy); empty: http://host:port."
    )
    auth: Auth = Field(
        Auth(),
        description="Sign-in (docs/security.md); no method: none, loopback only, whoever is there is the admin. "
        "Method users: local users; links open: a link opens its one result without sign-in.",
    )
    link_days: int = Field(30, ge=0, description="Days that a result link works.")
    upload_mb: int = Field(512, ge=1, le=16384, description="Size of an upload of the browser in MiB; zip: packed.")
    upload_minutes: int = Field(
        30, ge=1, le=1440, description="Minutes that a query of the browser is kept after its last use."
    )

    @model_validator(mode="after")
    def _loopback_without_auth(self) -> Web:
        if not self.auth.method and self.host not in LOOPBACK:
            raise ValueError('host: other than loopback needs [web] auth = {method = "users"}')
        if self.host in EVERY_ADDRESS and not self.public_url:
            raise ValueError(f"public_url: needed with host {self.host}: the address that browsers call")
        return self


class Fhir(_Section):
    """FHIR server."""

    base_url: str = Field("", description="Base URL of the FHIR server; empty: none.")


class Hl7(_Section):
    """HL7 v2 listener."""

    port: int = Field(0, ge=0, le=65535, description="MLLP port; 0: off.")


class Settings(BaseSettings):
    """All settings. Frozen; sections as in dicomnode.toml."""

    model_config = SettingsConfigDict(
        env_prefix=ENV_PREFIX, env_nested_delimiter="__", extra="forbid", frozen=True, validate_default=True
    )

    node: Node = Node()
    dicom: Dicom = Dicom()
    deid: Deid = Deid()
    vault: Vault = Vault()
    models: Models = Models()
    index: Index = Index()
    retrieval: Retrieval = Retrieval()
    report: Report = Report()
    database: Database = Database()
    archive: Archive = Archive()
    web: Web = Web()
    fhir: Fhir = Fhir()
    hl7: Hl7 = Hl7()

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """The environment wins over the file (given as init values); nothing else is read."""
        return env_settings, init_settings

    @property
    def identified_dir(self) -> Path:
        """The identified zone: spool, outbox, vault."""
        return self.node.data_dir.absolute() / "identified"

    def masked(self) -> dict[str, Any]:
        """All settings as JSON values; secrets as stars."""
        data: dict[str, Any] = self.model_dump(mode="json")
        for section, values in data.items():
            for key in values:
                if key in SECRETS and values[key] and (section, key) != ("archive", "url"):
                    values[key] = "********"
        return data


def settings_file(path: Path | None = None) -> Path | None:
    """The file that will be read: given, else $DICOMNODE_CONFIG, else config/dicomnode.toml if it is there."""
    if path is None and os.environ.get(ENV_CONFIG):
        path = Path(os.environ[ENV_CONFIG])
    if path is not None:
        if not path.is_file():
            raise SettingsError("no such settings file", place=str(path))
        return path
    return DEFAULT_FILE if DEFAULT_FILE.is_file() else None


def load_settings(path: Path | None = None) -> Settings:
    """Read, check and freeze the settings.

    Raises
    ------
    SettingsError
        One line that names the first setting that is unknown, bad, contradictory, or whose file is missing.
    """
    file = settings_file(path)
    data: dict[str, Any] = {}
    if file is not None:
        try:
            data = tomllib.loads(file.read_text("utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as exc:
            raise SettingsError(f"not valid TOML: {exc}", place=str(file)) from None
        except OSError as exc:
            raise SettingsError(f"cannot be read: {exc.strerror}", place=str(file)) from None
    _refuse_unknown_environment()
    try:
        settings = Settings(**data)
    except ValidationError as exc:
        raise first_mistake(exc, Settings, file, data) from None
    except (ValueError, TypeError) as exc:  # pydantic-settings: a value that is not the JSON it must be
        raise SettingsError(str(exc).splitlines()[0], place="environment") from None
    _refuse_missing_files(settings)
    _refuse_what_cannot_work(settings)
    return settings


def _refuse_unknown_environment() -> None:
    """pydantic-settings ignores variables that name no field; a mistyped one must stop the start."""
    for name in os.environ:
        if not name.startswith(ENV_PREFIX):
            continue
        parts = name[len(ENV_PREFIX) :].lower().split("__")
        section = Settings.model_fields.get(parts[0])
        known = section is not None and isinstance(section.annotation, type)
        fields = section.annotation.model_fields if known else {}  # type: ignore[union-attr]
        if not known or (len(parts) > 1 and parts[1] not in fields):
            meant = difflib.get_close_matches(parts[-1], fields if known else Settings.model_fields, n=1)
            advice = f"did you mean {meant[0]}?" if meant else ""
            raise SettingsError("unknown setting in the environment", place=name, advice=advice)


def _refuse_what_cannot_work(settings: Settings) -> None:
    if "://" in settings.archive.url:
        raise SettingsError("only a folder is supported", place="[archive] url")
    if settings.dicom.port == settings.web.port != 0:
        raise SettingsError(f"{settings.web.port} is [dicom] port too", place="[web] port")
    for peer in settings.dicom.peers:
        if peer.results and _is_the_node(peer, settings.dicom):
            raise SettingsError(
                "is the node itself: its results would come back as studies",
                place=f'[[dicom.peers]] "{peer.name}"',
                advice="give the host and port of the other system, or results = false",
            )


def _is_the_node(peer: Peer, dicom: Dicom) -> bool:
    own_hosts = {*LOOPBACK, dicom.host, socket.gethostname()}
    own_titles = {own.title for own in dicom.ae_titles}
    return peer.port == dicom.port and peer.host in own_hosts and peer.ae_title in own_titles


def _refuse_missing_files(settings: Settings) -> None:
    named = {
        "[dicom] tls.cert": settings.dicom.tls.cert,
        "[dicom] tls.key": settings.dicom.tls.key,
        "[dicom] tls.ca": settings.dicom.tls.ca,
    }
    for name, value in named.items():
        if value and not Path(value).is_file():
            raise SettingsError(f"no such file: {value}", place=name)
    if bool(settings.dicom.tls.cert) != bool(settings.dicom.tls.key):
        raise SettingsError("cert and key belong together", place="[dicom] tls")
    if settings.vault.key_env and not os.environ.get(settings.vault.key_env):
        raise SettingsError(f"environment variable {settings.vault.key_env} is empty", place="[vault] key_env")
