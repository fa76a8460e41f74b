"""A workstation that sends and a PACS that receives, in this process, over real DICOM associations on loopback.

The PACS can be told to misbehave (refuse associations, answer a failure, be slow, take only some SOP classes), as real
ones do. Neither is for production: no TLS, no limits. Services as in PS3.4 annexes A (Verification) and B (Storage).
"""

from __future__ import annotations

import socket
import tempfile
import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import AllTransferSyntaxes, ImplicitVRLittleEndian
from pynetdicom import AE, AllStoragePresentationContexts, evt
from pynetdicom.association import Association
from pynetdicom.events import Event
from pynetdicom.sop_class import Verification  # type: ignore[attr-defined]  # made at import from a table

from dicomnode.errors import InputError, PeerError, PeerRefused
from dicomnode.scu.checkpoint import guard

SUCCESS = 0x0000
NOT_SUPPORTED = 0x0122  # SOP Class not supported, PS3.7 C.5.6: what a sender reports for a context nobody took
MAX_CONTEXTS = 128  # odd ids 1 to 255, PS3.8 9.3.2.2


def free_port() -> int:
    """A TCP port of loopback that was free a moment ago. Better bind to 0 where the caller can."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Workstation:
    """A C-ECHO and C-STORE SCU.

    Parameters
    ----------
    ae_title : str
        Its calling AE title.
    timeout : float
        Seconds to wait for the peer, for the association as for each response.
    """

    def __init__(self, ae_title: str = "WORKSTATION", *, timeout: float = 30.0) -> None:
        self.ae_title = ae_title
        self.timeout = timeout

    def echo(self, host: str, port: int, called: str = "DICOMNODE") -> int:
        """C-ECHO once; returns its status.

        Raises
        ------
        PeerError
            No association (``PeerRefused`` where the peer rejected it), or no answer.
        """
        ae = self._ae()
        ae.add_requested_context(Verification)
        assoc = self._associate(ae, host, port, called)
        try:
            status = assoc.send_c_echo()
        finally:
            assoc.release()
        if "Status" not in status:
            raise PeerError("no answer to C-ECHO", place=called)
        return int(status.Status)

    def send(
        self, instances: Iterable[Dataset | Path | str], host: str, port: int, called: str = "DICOMNODE"
    ) -> list[int | None]:
        """C-STORE each instance, in order, over one association, in the transfer syntax it has.

        Returns
        -------
        list of int or None
            A status for each instance; 0x0122 where the peer took no presentation context for it; None where no
            answer came any more (aborted, timed out).

        Raises
        ------
        PeerError
            No association (``PeerRefused`` where the peer rejected it).
        InputError
            A path that is not a DICOM file.
        """
        datasets = [_read(i) for i in instances]
        ae = self._ae()
        for sop_class, syntax in _contexts(datasets):
            ae.add_requested_context(sop_class, syntax)
        assoc = self._associate(ae, host, port, called)
        try:
            return [self._store(assoc, ds) for ds in datasets]
        finally:
            if assoc.is_established:
                assoc.release()

    def _ae(self) -> AE:
        ae = AE(ae_title=self.ae_title)
        ae.acse_timeout = ae.dimse_timeout = ae.network_timeout = ae.connection_timeout = self.timeout
        return ae

    def _associate(self, ae: AE, host: str, port: int, called: str) -> Association:
        assoc = ae.associate(host, port, ae_title=called)
        if assoc.is_rejected:
            raise PeerRefused("the association was rejected", place=called)
        if not assoc.is_established:
            raise PeerError("no association", place=called, advice=f"is something listening on port {port}?")
        guard(assoc)
        return assoc

    @staticmethod
    def _store(assoc: Association, ds: Dataset) -> int | None:
        if not assoc.is_established:
            return None
        syntax = ds.file_meta.TransferSyntaxUID
        taken = {(c.abstract_syntax, c.transfer_syntax[0]) for c in assoc.accepted_contexts}
        if (ds.SOPClassUID, syntax) not in taken:
            return NOT_SUPPORTED
        status = assoc.send_c_store(ds)
        if "Status" in status:
            return int(status.Status)
        assoc.abort()  # else each instance that is left would wait for the whole time again
        return None


def _read(instance: Dataset | Path | str) -> Dataset:
    if isinstance(instance, Dataset):
        return instance
    try:
        return dcmread(instance)
    except (OSError, InvalidDicomError) as exc:
        raise InputError("not a DICOM file that can be read", place=str(instance)) from exc


def _contexts(datasets: Sequence[Dataset]) -> Iterator[tuple[str, str]]:
    pairs = dict.fromkeys((ds.SOPClassUID, ds.file_meta.TransferSyntaxUID) for ds in datasets)
    if len(pairs) > MAX_CONTEXTS:
        raise InputError(f"{len(pairs)} kinds of objects do not fit into one association", advice="send fewer at once")
    yield from pairs or {(Verification, ImplicitVRLittleEndian): None}


class Pacs:
    """A storage SCP in threads of this process that keeps what it receives; use as a context manager.

    Parameters
    ----------
    ae_title : str
        Its AE title; any called title is answered.
    port : int
        Port on 127.0.0.1; 0 takes a free one, then ``.port`` says which.
    folder : Path, optional
        Where received objects go, as ``000001.dcm`` and so on; else a temporary folder that goes away on exit.
    sop_classes : sequence of str, optional
        SOP Class UIDs to take; else every storage class.

    Attributes
    ----------
    refuse : bool
        While True, associations are rejected.
    status : int
        Status of every C-STORE response. Nothing is kept unless it is 0000 or a warning (Bxxx).
    delay_s : float
        Seconds to wait before each C-STORE response.
    """

    def __init__(
        self,
        ae_title: str = "PACS",
        port: int = 0,
        folder: Path | str | None = None,
        *,
        sop_classes: Sequence[str] | None = None,
    ) -> None:
        self.ae_title = ae_title
        self.host = "127.0.0.1"
        self.port = port
        self.status = SUCCESS
        self.delay_s = 0.0
        self._temporary = None if folder is not None else tempfile.TemporaryDirectory(prefix="dicomnode-pacs-")
        self.folder = Path(folder if self._temporary is None else self._temporary.name)  # type: ignore[arg-type]
        self._received: list[Path] = []
        self._arrived = threading.Condition()
        self._ae = AE(ae_title=ae_title)
        self._ae.maximum_associations = 100
        self._ae.add_supported_context(Verification)
        for sop_class in sop_classes or [str(c.abstract_syntax) for c in AllStoragePresentationContexts]:
            self._ae.add_supported_context(sop_class, AllTransferSyntaxes)

    def start(self) -> Self:
        """Listen.

        Raises
        ------
        PeerError
            The port is taken.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            server = self._ae.start_server(
                (self.host, self.port), block=False, evt_handlers=[(evt.EVT_C_STORE, self._store)]
            )
        except OSError as exc:
            raise PeerError(f"port {self.port} cannot be listened on: {exc.strerror}", place=self.ae_title) from exc
        assert server is not None and server.socket is not None  # block=False always gives a bound server
        self.port = int(server.socket.getsockname()[1])
        return self

    def stop(self) -> None:
        """Abort what is open and close the port."""
        self._ae.shutdown()
        if self._temporary is not None:
            self._temporary.cleanup()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def refuse(self) -> bool:
        return bool(self._ae.require_calling_aet)

    @refuse.setter
    def refuse(self, value: bool) -> None:
        self._ae.require_calling_aet = ["*NOBODY*"] if value else []

    @property
    def received(self) -> list[Path]:
        """Files received so far, in order; a resent object is there again."""
        with self._arrived:
            return list(self._received)

    def datasets(self) -> list[Dataset]:
        """The received objects, read."""
        return [dcmread(path) for path in self.received]

    def wait_for(self, n: int, timeout: float = 30.0) -> list[Path]:
        """Wait until at least ``n`` objects have been received.

        Raises
        ------
        TimeoutError
            Fewer came in ``timeout`` seconds.
        """
        with self._arrived:
            if not self._arrived.wait_for(lambda: len(self._received) >= n, timeout):
                raise TimeoutError(f"{self.ae_title}: {len(self._received)} of {n} objects after {timeout} s")
            return list(self._received)

    def _store(self, event: Event) -> int:
        if self.delay_s:
            time.sleep(self.delay_s)
        status = self.status
        if status != SUCCESS and status >> 12 != 0xB:
            return status
        with self._arrived:
            path = self.folder / f"{len(self._received) + 1:06d}.dcm"
            path.write_bytes(event.encoded_dataset())
            self._received.append(path)
            self._arrived.notify_all()
        return status
