"""Write a :class:`~crypto_qlib.data_collector.clean_data.QualityReport` for machines (JSON) and people (one HTML page)."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, select_autoescape

from crypto_qlib.core.clock import iso
from crypto_qlib.data_collector.bar_rules import Flag
from crypto_qlib.data_collector.clean_data import QualityReport
from crypto_qlib.store.parquet_file import write_atomic


def as_document(report: QualityReport) -> dict[str, Any]:
    """Return the report as plain data; times as ISO text."""
    rows = []
    for symbol in report.symbols:
        row = asdict(symbol)
        row |= {"first": iso(row.pop("first_ns")), "last": iso(row.pop("last_ns")), "n_missing": symbol.n_missing}
        row["gaps"] = [
            {"start": iso(g.start_ns), "end": iso(g.end_ns), "n_bars": g.n_bars, "cause": g.cause} for g in symbol.gaps
        ]
        rows.append(row)
    return {"frame": report.frame, "totals": report.totals(), "failures": list(report.failures), "symbols": rows}


def write_quality_report(report: QualityReport, folder: Path, market: str = "", data_identity: str = "") -> Path:
    """Write ``quality.json`` and ``quality.html`` into ``folder`` and return the path of the page.

    Parameters
    ----------
    report : QualityReport
        Findings of one cleaning.
    folder : Path
        Created if absent.
    market : str
        Whose prices these are, in words; it must say so where they are simulated.
    data_identity : str
        Identity of the data that was cleaned.

    Raises
    ------
    UserError
        If a file cannot be written.
    """
    document = {"market": market, "data": data_identity, **as_document(report)}
    env = Environment(loader=PackageLoader("crypto_qlib.data_collector", "templates"), autoescape=select_autoescape(["j2"]))
    every, totals = [f.name.lower() for f in Flag if f.name], report.totals()
    found, quiet = [f for f in every if totals.get(f)], [f for f in every if not totals.get(f)]
    page = env.get_template("quality.html.j2").render(report=document, flags=found, quiet=quiet)
    write_atomic(folder / "quality.json", json.dumps(document, indent=1).encode())
    write_atomic(folder / "quality.html", page.encode())
    return folder / "quality.html"
