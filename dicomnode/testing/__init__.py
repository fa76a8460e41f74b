"""What it takes to try the node without a hospital: sample studies, a workstation, a PACS.

Ships with the package, for its own tests, the demo, and whoever builds on it. Everything is computed or made up;
nothing here reads data of a patient, and the running node never imports it.

>>> from dicomnode.testing import Pacs, Workstation, sample_study
>>> with Pacs() as pacs:
...     Workstation().send(sample_study(slices=2, matrix=64), pacs.host, pacs.port, pacs.ae_title)
...     len(pacs.wait_for(2))
[0, 0]
2
"""

from dicomnode.testing.network import Pacs, Workstation, free_port
from dicomnode.testing.phantom import FindingKind
from dicomnode.testing.running import RunningNode
from dicomnode.testing.studies import FINDING_CODES, FINDINGS, sample_repository, sample_study, write_study

__all__ = [
    "FINDINGS",
    "FINDING_CODES",
    "FindingKind",
    "Pacs",
    "RunningNode",
    "Workstation",
    "free_port",
    "sample_repository",
    "sample_study",
    "write_study",
]
