"""Where everything lives below ``store.root``; nobody else spells a path."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from upath import UPath

from crypto_qlib.core.errors import UserError


def open_folder(place: str) -> Path:
    """Return a folder by its path, or by an fsspec address such as ``s3://bucket/lake`` or ``memory://lake``.

    Raises
    ------
    UserError
        If the address names a kind of store nothing installed can reach.
    """
    if "://" not in place:
        return Path(place)
    try:
        folder: Any = UPath(place)
        folder.fs  # noqa: B018 - opens the store
    except (ImportError, ValueError) as e:
        raise UserError(f"cannot open {place}: {e}", "for S3-compatible stores install crypto-qlib[s3]") from e
    return folder  # type: ignore[no-any-return]


@dataclass(frozen=True, slots=True)
class Paths:
    """Folders of one workspace.

    Parameters
    ----------
    root : Path
        ``store.root``.
    """

    root: Path

    @property
    def lake(self) -> Path:
        """Parquet lake: raw and cleaned candles, funding, universe snapshots."""
        return self.root / "lake"

    @property
    def series(self) -> Path:
        """External series: sentiment, stock index, on-chain, with event and known time."""
        return self.root / "series"

    @property
    def panels(self) -> Path:
        """Memory-mapped panels, one folder a frame."""
        return self.root / "panels"

    @property
    def qlib(self) -> Path:
        """Qlib's binary store."""
        return self.root / "qlib"

    @property
    def features(self) -> Path:
        """Built feature frames."""
        return self.root / "features"

    @property
    def selections(self) -> Path:
        """Chosen feature sets, named and versioned."""
        return self.root / "selections"

    @property
    def models(self) -> Path:
        """Trained models."""
        return self.root / "models"

    @property
    def reports(self) -> Path:
        """Backtest and evaluation reports, one folder a run id."""
        return self.root / "reports"

    @property
    def exchange(self) -> Path:
        """State and keys of the embedded exchange."""
        return self.root / "exchange"

    @property
    def ledger(self) -> Path:
        """SQLite ledger of the live or paper session."""
        return self.root / "ledger.sqlite"

    @property
    def live(self) -> Path:
        """How to reach the running session, and its kill file."""
        return self.root / "live"

    @property
    def news(self) -> Path:
        """SQLite database of articles, readings and what they cost."""
        return self.root / "news.sqlite"

    @property
    def news_model(self) -> Path:
        """The light reader fitted here on labelled headlines, if one was."""
        return self.root / "news_reader.npz"

    @property
    def mlflow(self) -> Path:
        """SQLite database of the experiment recorder."""
        return self.root / "mlflow.sqlite"

    @property
    def steps(self) -> Path:
        """What each pipeline step was last built from."""
        return self.root / "steps"

    def ensure(self) -> Paths:
        """Create the root and prove that it is writable.

        Raises
        ------
        UserError
            If the folder cannot be created or written.
        """
        probe = self.root / ".writable"
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            probe.write_text("")
            probe.unlink()
        except OSError as e:
            raise UserError(
                f"cannot write to {self.root}: {e.strerror or e}", "choose another folder with --set store.root=PATH"
            ) from e
        return self
