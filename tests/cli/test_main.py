"""Exit codes, help, global options, and that bad input is always one line."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer

from crypto_qlib.cli.failure import EXIT_DEFECT, EXIT_INTERRUPTED, redacted, supervised
from crypto_qlib.cli.main import app, global_options_first
from crypto_qlib.core.errors import CryptoQlibError, HaltTrading, RetryLater, UserError
from crypto_qlib.settings.secrets import Secrets
from tests.cli.command_line import Run

AGREED = {
    "run", "universe", "train", "evaluate", "backtest", "backtest grid", "backtest compare", "paper", "doctor",
    "data update", "data check", "data status", "data repair", "features build", "features list", "features describe",
    "features ic", "features select", "features drift",
    "news collect", "news import", "news backfill", "news read", "news status", "news evaluate", "news fit",
    "exchange serve", "exchange status", "exchange fund", "exchange fault",
    "exchange reset", "config show", "config check", "config init", "config schema",
}  # fmt: skip


def commands(group: Any, prefix: str = "") -> Iterator[str]:
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            if command.invoke_without_command:
                yield prefix + name
            yield from commands(command, f"{prefix}{name} ")
        else:
            yield prefix + name


ALL = sorted(commands(typer.main.get_command(app)))


def test_all_agreed_commands_are_there() -> None:
    assert set(ALL) >= AGREED


@pytest.mark.parametrize("command", ["", "data", "features", "exchange", "config", *ALL])
def test_every_command_explains_itself(cli: Run, command: str) -> None:
    ended = cli(*command.split(), "--help")
    assert ended.code == 0
    assert "Usage: crypto-qlib" in ended.out
    assert ended.err == ""


BAD = [
    ("no such command", ["runn"], "Did you mean 'run'?"),
    ("no such option", ["run", "--fast"], "--fast"),
    ("unknown setting", ["run", "--set", "strategy.levrage=5"], "did you mean strategy.leverage?"),
    ("N = 0", ["run", "--set", "strategy.max_open=0"], "strategy.max_open = 0 must be a whole number from 1 to 500"),
    ("leverage beyond any tier", ["backtest", "--set", "strategy.leverage=126"], "from 1 to 125"),
    (
        "a grid of what the scores depend on",
        ["backtest", "grid", "--vary", "model.num_leaves=15,31"],
        "scores that are made already",
    ),
    ("a grid of a misspelt setting", ["backtest", "grid", "--vary", "strategy.levrage=2,3"], "did you mean strategy.leverage?"),
    ("a grid of nothing", ["backtest", "grid"], "--vary"),
    ("no such settings file", ["--config", "nope.yaml", "run"], "there is no settings file nope.yaml"),
    ("--set without a value", ["run", "--set"], "--set needs a value"),
    ("side data of no replay", ["run", "--replay-caps", "x.csv"], "need --replay"),
    ("real money unconfirmed", ["paper", "--set", "exchange.mode=live"], "second confirmation"),
    ("bars below zero", ["paper", "--bars", "-1"], "--bars"),
    ("a port beyond ports", ["exchange", "serve", "--port", "70000"], "--port"),
    ("no exchange served here", ["exchange", "status"], "no embedded exchange is served"),
    ("an address that is none", ["exchange", "status", "--url", "file:///etc/passwd"], "is no HTTP address"),
    ("a public address without leave", ["exchange", "serve", "--host", "0.0.0.0"], "can be reached from other machines"),
    ("a public address without TLS", ["exchange", "serve", "--host", "0.0.0.0", "--public"], "serves TLS only"),
    ("half a certificate", ["exchange", "serve", "--set", "exchange.tls_key=x"], "belong together"),
    (
        "a certificate that is none",
        [
            "exchange",
            "serve",
            "--tls",
            "--set",
            "exchange.tls_key=x",
            "--set",
            "exchange.tls_certificate=y",
            *["--set", "exchange.simulated_symbols=2"],
        ],
        "cannot serve TLS with",
    ),
    ("money to nobody", ["exchange", "fund", "100"], "no embedded exchange is served"),
    ("a fault at nobody", ["exchange", "fault", "drop"], "no embedded exchange is served"),
    ("nobody at the address", ["exchange", "status", "--url", "http://127.0.0.1:9"], "no embedded exchange answers"),
]


@pytest.mark.parametrize(("reason", "arguments", "expected"), BAD, ids=[row[0] for row in BAD])
def test_bad_input_is_one_clear_line_and_a_non_zero_exit(cli: Run, reason: str, arguments: list[str], expected: str) -> None:
    ended = cli(*arguments)
    assert ended.code != 0, reason
    assert expected in ended.error_line, reason


def test_a_process_ends_the_same_way(process: Run) -> None:
    ended = process("run", "--set", "strategy.levrage=5")
    assert ended.code == 2
    assert ended.error_line == "error: --set: unknown setting strategy.levrage — did you mean strategy.leverage?"


@pytest.mark.parametrize("arguments", [["--help"], ["config", "show"]], ids=" ".join)
def test_help_and_settings_answer_without_the_libraries_that_take_seconds(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "crypto_qlib", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    imported = {line.rpartition("|")[2].strip().partition(".")[0] for line in done.stderr.splitlines()}
    assert "typer" in imported, "the list of imports is read"
    slow = {"qlib", "torch", "mlflow", "lightgbm", "pandas", "sklearn", "ccxt", "plotly", "matplotlib", "sqlalchemy"}
    assert imported & slow == set()


def test_the_version_is_told(process: Run) -> None:
    assert process("--version").out.startswith("crypto-qlib 0.")


def test_output_into_a_closed_pipe_is_no_error() -> None:
    command = f"{Path(sys.executable).with_name('crypto-qlib')} config schema | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


ORDERS = [
    ("before", ["--set", "a.b=1", "run"], ["--set", "a.b=1", "run"]),
    ("after", ["run", "--set", "a.b=1"], ["--set", "a.b=1", "run"]),
    ("both, in order", ["--set", "a=1", "run", "--set", "b=2"], ["--set", "a=1", "--set", "b=2", "run"]),
    ("with an equals sign", ["run", "--config=x.yaml"], ["--config=x.yaml", "run"]),
    ("other options stay", ["data", "check", "--deep", "--config", "x"], ["--config", "x", "data", "check", "--deep"]),
    ("after a double dash all is left alone", ["run", "--", "--set", "x"], ["run", "--", "--set", "x"]),
]


@pytest.mark.parametrize(("reason", "given", "expected"), ORDERS, ids=[row[0] for row in ORDERS])
def test_global_options_may_stand_anywhere(reason: str, given: list[str], expected: list[str]) -> None:
    assert global_options_first(given) == expected, reason


def raising(error: BaseException) -> Any:
    def work() -> None:
        raise error

    return work


ENDINGS = [
    ("bad input", UserError("bad", "mend it"), 2, "error: bad — mend it"),
    ("a failed request", RetryLater("no answer"), 1, "error: no answer"),
    ("a halt", HaltTrading("too much lost"), 3, "error: too much lost"),
    ("two lines become one", CryptoQlibError("first\nsecond"), 1, "error: first second"),
    ("brackets are no markup", CryptoQlibError("got [red] and [/x]"), 1, "error: got [red] and [/x]"),
    ("from a task group", ExceptionGroup("g", [ExceptionGroup("h", [UserError("inner")])]), 2, "error: inner"),
    ("the disk is full", OSError(28, "No space left on device"), 1, "the disk is full"),
    ("the keyboard", KeyboardInterrupt(), EXIT_INTERRUPTED, "error: interrupted"),
]


@pytest.mark.parametrize(("reason", "error", "code", "line"), ENDINGS, ids=[row[0] for row in ENDINGS])
def test_each_ending_has_its_line_and_code(
    capsys: pytest.CaptureFixture[str], reason: str, error: BaseException, code: int, line: str
) -> None:
    assert supervised(raising(error)) == code, reason
    assert line in capsys.readouterr().err, reason


def test_a_defect_is_one_line_and_its_traceback_is_in_a_file(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OKX_API_SECRET", "hush-hush-1")
    assert supervised(raising(ZeroDivisionError("with hush-hush-1 inside"))) == EXIT_DEFECT
    line = capsys.readouterr().err
    assert len(line.splitlines()) == 1
    assert "ZeroDivisionError: with *** inside" in line
    log = Path(line.split("please report it with ")[1].strip())
    text = log.read_text()
    log.unlink()
    assert "Traceback" in text
    assert "raise error" in text
    assert "hush" not in text


def test_secrets_are_taken_out_of_any_text() -> None:
    secrets = Secrets(okx_api_key="key-1", okx_api_secret="sec-2")
    assert redacted("a key-1 b sec-2 c", secrets) == "a *** b *** c"
    assert redacted("nothing", Secrets()) == "nothing"


def test_the_catalogue_lists_the_features_of_one_set(cli: Run) -> None:
    ended = cli("features", "list", "--group", "funding")
    *rows, total = ended.out.splitlines()
    assert total == f"{len(rows)} features"
    assert rows
    assert all(" funding " in row for row in rows)


def test_a_set_that_does_not_exist_has_no_list(cli: Run) -> None:
    ended = cli("features", "list", "--group", "alpha999")
    assert ended.code == 2
    assert "there is no feature set alpha999" in ended.error_line


def test_a_feature_is_described_by_name(cli: Run) -> None:
    told = cli("features", "describe", "rsi14").out
    for word in ("Wilder RSI", "0..100", "251 bars", "close of bar t", "technical"):
        assert word in told
    assert "did you mean RSI14" in cli("features", "describe", "RSI144").error_line
