"""The progress display: what stays on the terminal, and what a log file gets."""

from __future__ import annotations

import io
from pathlib import Path

import pytest
from rich.console import Console

from crypto_qlib.cli.pipeline import replay_overrides
from crypto_qlib.cli.reporting import RichReporter, in_words
from crypto_qlib.settings.load import load_settings


def console(*, is_terminal: bool, encoding: str = "utf-8") -> tuple[Console, io.TextIOWrapper]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, write_through=True)
    return Console(file=file, force_terminal=is_terminal, width=100, highlight=False), file


def text_of(file: io.TextIOWrapper) -> str:
    file.seek(0)
    return file.read()


def test_in_a_log_every_step_is_a_line_at_start_and_end() -> None:
    screen, file = console(is_terminal=False)
    with RichReporter(screen) as reporter, reporter.step("data"):
        advance = reporter.progress("candles", 10)
        advance(5)
        reporter.say("50 symbols [live]")
    started, said, ended = text_of(file).splitlines()
    assert (started, said) == ("data ...", "  50 symbols [live]")
    assert ended.startswith("✓ data ")


def test_a_failed_step_is_marked_and_the_error_goes_on() -> None:
    screen, file = console(is_terminal=False)
    with pytest.raises(RuntimeError, match="broken"), RichReporter(screen) as reporter, reporter.step("train"):
        raise RuntimeError("broken")
    assert "✗ train" in text_of(file)


def test_steps_nest() -> None:
    screen, file = console(is_terminal=False)
    with RichReporter(screen) as reporter, reporter.step("run"), reporter.step("universe"):
        pass
    lines = text_of(file).splitlines()
    assert lines[1].startswith("  universe")
    assert lines[2].startswith("  ✓ universe")
    assert lines[3].startswith("✓ run")


def test_a_terminal_without_unicode_gets_words() -> None:
    screen, file = console(is_terminal=False, encoding="ascii")
    with RichReporter(screen) as reporter, reporter.step("data"):
        pass
    assert "ok data" in text_of(file)


def test_on_a_terminal_progress_is_drawn_and_finished_steps_stay() -> None:
    screen, file = console(is_terminal=True)
    with RichReporter(screen) as reporter, reporter.step("data"):
        reporter.progress("candles", 2)(1)
        reporter.refresh()
    drawn = text_of(file)
    assert "candles" in drawn
    assert "50%" in drawn
    assert "✓" in drawn


DURATIONS = [(0.04, "0.0 s"), (9.94, "9.9 s"), (12.4, "12 s"), (60.0, "1 min 00 s"), (185.2, "3 min 05 s")]


@pytest.mark.parametrize(("seconds", "expected"), DURATIONS)
def test_durations_are_told_as_people_say_them(seconds: float, expected: str) -> None:
    assert in_words(seconds) == expected


def test_the_replay_flags_are_settings() -> None:
    flags = replay_overrides(Path("c.parquet"), Path("f.parquet"), None, None)
    exchange = load_settings(None, flags, {}).exchange
    assert exchange.market == "replay"
    assert exchange.replay_path == Path("c.parquet").absolute()
    assert exchange.replay_funding == Path("f.parquet").absolute()
    assert exchange.replay_mark is None
    assert replay_overrides(None, None, None, None) == []
