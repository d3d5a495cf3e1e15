"""Write the pages that are made from the code, so that they cannot drift from it: the settings and the features."""

from __future__ import annotations

from pathlib import Path

from crypto_qlib.feature_engineering.catalogue_page import catalogue_markdown
from crypto_qlib.settings.document import settings_markdown

_HERE = Path(__file__).parent
(_HERE / "settings.md").write_text(settings_markdown(), encoding="utf-8")
(_HERE / "features.md").write_text(catalogue_markdown(), encoding="utf-8")
