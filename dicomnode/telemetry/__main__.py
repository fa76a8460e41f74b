"""Writes docs/metrics.md from the registries: ``python -m dicomnode.telemetry > docs/metrics.md``."""

import sys

from dicomnode.telemetry import audit, logging, metrics

PAGE = """# What the node tells about itself

Nothing on this page can carry what identifies a patient: labels and keys are closed sets, values have fixed shapes.
This page is written by `make docs` from `dicomnode/telemetry/`.

## Metrics

`GET /metrics` gives these in the Prometheus text format, summed over the node's processes. A label value outside its
list is counted as `other`.

{metrics}
Worth an alarm: `dicomnode_outbox_pending` that grows for an hour (a peer is away), any rise of
`dicomnode_received_instances_total{{outcome="refused"}}` (disk full) or of
`dicomnode_studies_total{{outcome="failed"}}`, and `dicomnode_quarantined_total` that rises faster than people look.

## Logs

One JSON object a line on standard error (a readable form on a terminal) with `time` (UTC), `level`, `logger`, `event`
and keys of this list. What is not on the list, or has not the shape given here, is left out and its key named under
`dropped`. Exceptions appear as `error`, `where` and, for the node's own, `code` and `line`. Messages of libraries
appear as `library_message` with logger and level, without their text; those of pynetdicom and those that a command
meets are left out. `[node] log_level` sets how much is written.

{keys}
## Audit trail

One JSON object a line in `data_dir/audit/YYYY-MM.jsonl`, on disk before the act goes on: `time`, `event`, `actor`, and
`pseudonym`, `row`, `reason` and `detail` where they apply. `previous` is the SHA-256 of the line before: a line that
was changed or taken out breaks the chain. The reason is kept as it was typed: give none that names a patient.

{events}"""

sys.stdout.write(
    PAGE.format(metrics=metrics.as_markdown(), keys=logging.as_markdown(), events=audit.as_markdown()).rstrip() + "\n"
)
