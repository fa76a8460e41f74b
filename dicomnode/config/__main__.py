"""``python -m dicomnode.config toml|markdown``: the commented settings file or its page, for ``make docs``."""

from __future__ import annotations

import sys

from dicomnode.config.pages import as_markdown, as_toml

sys.stdout.write(as_toml() if sys.argv[1:] == ["toml"] else as_markdown())
