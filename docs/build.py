"""Write ``docs/settings.md`` from the schema, so that it cannot drift from it."""

from __future__ import annotations

from pathlib import Path

from crypto_qlib.settings.document import settings_markdown

Path(__file__).with_name("settings.md").write_text(settings_markdown(), encoding="utf-8")
