"""``crypto-qlib news`` as its user: import an archive, read it, look at what is known, measure how well it is read."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.cli.command_line import Run


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    rows = [
        {"title": "Exchange halts withdrawals after $40M Bitcoin hack", "source": "a", "url": "https://a/1",
         "published_at": "2025-01-01T10:00:00Z", "crawled_at": "2025-01-01T10:20:00Z"},
        {"title": "Solana protocol upgrade goes live", "source": "b", "url": "https://b/2",
         "published_at": "2025-01-01T11:00:00Z", "crawled_at": None},
        {"title": "no zone", "source": "b", "url": "https://b/3", "published_at": "2025-01-01 11:00", "crawled_at": None},
    ]  # fmt: skip
    path = tmp_path / "archive.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_import_read_and_status(cli: Run, archive: Path) -> None:
    told = cli("news", "import", str(archive)).out
    assert "2 new of 2 articles; seen time assumed for 1" in told
    assert "left out, without a zoned time: 1" in told
    assert "read: 0 by the language model, 2 by the local one" in cli("news", "read").out
    status = cli("news", "status").out
    assert "articles: 2 versions of 2" in status
    assert "readings by lexicon-2: 2" in status
    assert "language model ever: 0 requests, 0 tokens" in status
    assert next(Path("workspace").rglob("news.sqlite")).parent.name.startswith("simulated-"), "one database a market"


def test_evaluate_and_fit(cli: Run, tmp_path: Path) -> None:
    kinds = [("Bitcoin plunges after hack", -1), ("What is a blockchain", 0), ("Bitcoin soars to record high", 1)]
    lines = [f"{title} {k},{label}" for k in range(30) for title, label in kinds]
    labelled = tmp_path / "labelled.csv"
    labelled.write_text("title,label\n" + "\n".join(lines) + "\n")
    assert "lexicon-2: 90 headlines, accuracy" in cli("news", "evaluate", str(labelled)).out
    done = cli("news", "calibrate", str(labelled)).out
    assert "word list calibrated on 90 headlines" in done
    assert "lexicon-2-" in cli("news", "evaluate", str(labelled)).out
    assert "learned from 90 headlines" in cli("news", "fit", str(labelled)).out
    assert "accuracy 1.000" in cli("news", "evaluate", str(labelled)).out


ROWS = [
    ("a file that is not there", ("news", "import", "nothing.parquet"), "nothing.parquet cannot be read"),
    ("a kind of file it does not know", ("news", "import", "x.docx"), "no archive"),
    ("a date that is none", ("news", "backfill", "--since", "yesterday"), "--since must be an ISO date"),
    ("no model to ask", ("news", "evaluate", "l.csv", "--llm", "5"), "no language model is configured"),
]


@pytest.mark.parametrize(("reason", "arguments", "line"), ROWS, ids=[r[0] for r in ROWS])
def test_bad_input_is_one_clear_line(cli: Run, reason: str, arguments: tuple[str, ...], line: str) -> None:
    Path("l.csv").write_text("title,label\nBitcoin falls,-1\n")
    ended = cli(*arguments)
    assert ended.code == 2
    assert line in ended.error_line
