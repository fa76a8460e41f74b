"""A real Orthanc as the hospital's PACS: it keeps studies, routes stable ones to the node by itself, serves DICOMweb.

Runs the Debian packages ``orthanc`` and ``orthanc-dicomweb`` in a folder of its own on free loopback ports, without a
password. Never for production. Facts: the Orthanc Book (configuration, Lua callbacks), checked with Orthanc 1.10.1.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from io import BytesIO
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from pydicom import dcmread
from pydicom.dataset import Dataset

from dicomnode.errors import NotFound, PeerError
from dicomnode.testing.network import free_port

PROGRAM = "Orthanc"
PLUGINS = Path("/usr/share/orthanc/plugins")
DICOMWEB = "libOrthancDicomWeb.so"
START_S = 30.0
STOP_S = 15.0
# What the node sends back, by Modality: report, contact sheet, and the PDF. KO are selections of other images.
SKIPPED = ("SR", "OT", "KO", "DOC")

_ROUTE = """\
-- Push each stable study to the node, series by series, but never what the node itself sends back.
local skipped = { %(skipped)s }

function OnStableStudy(studyId, tags, metadata)
  local study = ParseJson(RestApiGet('/studies/' .. studyId))
  for _, series in ipairs(study['Series']) do
    local modality = ParseJson(RestApiGet('/series/' .. series))['MainDicomTags']['Modality'] or ''
    if not skipped[modality] then
      RestApiPost('/modalities/dicomnode/store', DumpJson({ Resources = { series }, Synchronous = false }, true))
    end
  end
end
"""


def orthanc_is_installed() -> bool:
    """Whether Orthanc and its DICOMweb plugin are on this machine."""
    return _program() is not None and (PLUGINS / DICOMWEB).exists()


def _program() -> str | None:
    return shutil.which(PROGRAM, path="/usr/sbin:/usr/bin:/usr/local/sbin:/usr/local/bin")


class Orthanc:
    """Orthanc with a route to a node; use as a context manager. ``RunningNode`` takes it as its PACS.

    Parameters
    ----------
    folder : Path, optional
        Its database, settings and log; else a temporary folder that goes away on exit.
    ae_title : str
        Its AE title.
    stable_age : int
        Seconds without a new instance until a study is stable and is routed (Orthanc's usual is 60).
    guard : bool
        Whether the routing rule skips what the node sends back (``SKIPPED``), as ``docs/pacs.md`` says it must.
    overwrite : bool
        Whether an instance that comes again replaces the first; then it also makes its study unstable again.
    """

    def __init__(
        self,
        folder: Path | None = None,
        *,
        ae_title: str = "ORTHANC",
        stable_age: int = 2,
        guard: bool = True,
        overwrite: bool = False,
    ) -> None:
        self.ae_title = ae_title
        self.host = "127.0.0.1"
        self.port, self.http_port = free_port(), free_port()
        self.stable_age, self.guard, self.overwrite = stable_age, guard, overwrite
        self._temporary = tempfile.TemporaryDirectory(prefix="dicomnode-orthanc-") if folder is None else None
        self.folder = Path(self._temporary.name) if folder is None and self._temporary else Path(folder or ".")
        self.log = self.folder / "orthanc.log"
        self._node: tuple[str, str, int] | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Base of its REST API and web pages."""
        return f"http://{self.host}:{self.http_port}"

    def route_to(self, port: int, ae_title: str = "DICOMNODE", host: str = "127.0.0.1") -> Self:
        """Where stable studies go; to be said before ``start``. Without it nothing is routed."""
        self._node = (ae_title, host, port)
        return self

    def start(self) -> Self:
        """Start it, and wait until it answers.

        Raises
        ------
        NotFound
            Orthanc or its DICOMweb plugin is not installed.
        PeerError
            It does not answer in time; the end of its log is in the line.
        """
        program = _program()
        if program is None or not (PLUGINS / DICOMWEB).exists():
            raise NotFound("Orthanc is not installed", advice="apt-get install orthanc orthanc-dicomweb")
        self.folder.mkdir(parents=True, exist_ok=True)
        settings = self.folder / "orthanc.json"
        settings.write_text(json.dumps(self._settings(), indent=1), "utf-8")
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(  # noqa: S603 - Orthanc, found on the system's own path
                [program, str(settings)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        end = time.monotonic() + START_S
        while time.monotonic() < end and self._process.poll() is None:
            try:
                self.get("/system")
            except PeerError:
                time.sleep(0.05)
            else:
                return self
        self.stop()
        raise PeerError(f"Orthanc does not answer: {self.log.read_text('utf-8', 'replace')[-1000:]}", place="Orthanc")

    def _settings(self) -> dict[str, Any]:
        settings: dict[str, Any] = {
            "Name": "PACS",
            "StorageDirectory": str(self.folder / "db"),
            "IndexDirectory": str(self.folder / "db"),
            "HttpPort": self.http_port,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomAet": self.ae_title,
            "DicomPort": self.port,
            "DicomCheckCalledAet": True,
            "DicomCheckModalityHost": False,
            "UnknownSopClassAccepted": True,  # else a Structured Report of a newer class is refused
            "OverwriteInstances": self.overwrite,
            "StableAge": self.stable_age,
            "SaveJobs": False,
            "Plugins": [str(PLUGINS / DICOMWEB)],
            "DicomWeb": {"Enable": True, "Root": "/dicom-web/"},
        }
        if self._node is not None:
            route = self.folder / "route.lua"
            skipped = ", ".join(f"{modality} = true" for modality in (SKIPPED if self.guard else ()))
            route.write_text(_ROUTE % {"skipped": skipped}, "utf-8")
            ae_title, host, port = self._node
            settings["LuaScripts"] = [str(route)]
            settings["DicomModalities"] = {"dicomnode": [ae_title, host, port]}
        return settings

    def stop(self) -> None:
        """End it; a temporary folder goes away."""
        if self._process is not None:
            self._process.terminate()
            try:
                self._process.wait(STOP_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    def get(self, path: str) -> Any:
        """JSON of its REST API.

        Raises
        ------
        PeerError
            Nobody answers, or it answers an error.
        """
        return json.loads(self._read(urllib.request.Request(self.url + path))[0])  # noqa: S310 - our own http URL

    def studies(self) -> dict[str, Any]:
        """Its studies by Study Instance UID, each as its REST API tells it."""
        return {str(s["MainDicomTags"]["StudyInstanceUID"]): s for s in self.get("/studies?expand")}

    def series(self, study_uid: str) -> list[dict[str, Any]]:
        """The series of a study, each as its REST API tells it; none where it has no such study."""
        study = self.studies().get(study_uid)
        return [self.get(f"/series/{s}") for s in study["Series"]] if study is not None else []

    def is_stable(self, study_uid: str) -> bool:
        """Whether a study is there and has had no new instance for ``stable_age`` seconds."""
        study = self.studies().get(study_uid)
        return study is not None and bool(study["IsStable"])

    def wado(self, study_uid: str, series_uid: str) -> list[Dataset]:
        """The instances of a series by WADO-RS (PS3.18 10.4).

        Raises
        ------
        PeerError
            It has no such series, or answers something else than a multipart message.
        """
        request = urllib.request.Request(  # noqa: S310 - our own http URL
            f"{self.url}/dicom-web/studies/{study_uid}/series/{series_uid}",
            headers={"Accept": 'multipart/related; type="application/dicom"; transfer-syntax=*'},
        )
        body, content_type = self._read(request)
        boundary = re.search(r'boundary="?([^";]+)"?', content_type)
        if boundary is None:
            raise PeerError(f"WADO-RS answered {content_type}", place="Orthanc")
        parts = body.split(b"--" + boundary.group(1).encode())[1:-1]
        return [dcmread(BytesIO(part.partition(b"\r\n\r\n")[2].removesuffix(b"\r\n"))) for part in parts]

    def _read(self, request: urllib.request.Request) -> tuple[bytes, str]:
        try:
            with urllib.request.urlopen(request, timeout=START_S) as answer:  # noqa: S310 - our own http URL
                return answer.read(), str(answer.headers.get("Content-Type", ""))
        except OSError as exc:  # URLError and HTTPError too
            status = exc.code if isinstance(exc, urllib.error.HTTPError) else "nothing"
            raise PeerError(f"Orthanc answered {status}", place="Orthanc") from exc
