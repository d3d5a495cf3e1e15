"""Settings from all sources: precedence, refusals in one clear line, secrets."""

from __future__ import annotations

from pathlib import Path

import pytest

from crypto_qlib.core.errors import UserError
from crypto_qlib.settings.fields import leaves
from crypto_qlib.settings.load import load_settings, require_okx_keys
from crypto_qlib.settings.schema import Settings
from crypto_qlib.settings.secrets import Secrets, looks_secret

KEYS = {"OKX_API_KEY": "k-123456", "OKX_API_SECRET": "s-987654", "OKX_API_PASSPHRASE": "p-555555"}


@pytest.fixture(autouse=True)
def _empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def written(text: str, name: str = "config.yaml") -> Path:
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def refusal(text: str = "", *flags: str, environ: dict[str, str] | None = None) -> str:
    with pytest.raises(UserError) as caught:
        load_settings(written(text) if text else None, flags, environ or {})
    line = str(caught.value)
    assert "\n" not in line
    return line


def test_without_any_source_the_defaults_hold() -> None:
    assert load_settings(None, [], {}) == Settings()


def test_each_source_wins_over_the_one_before() -> None:
    path = written("strategy: {leverage: 4, max_open: 4, stop_atr: 4}")
    environ = {"CRYPTO_QLIB__STRATEGY__MAX_OPEN": "5", "CRYPTO_QLIB__STRATEGY__STOP_ATR": "5"}
    strategy = load_settings(path, ["strategy.stop_atr=6"], environ).strategy
    assert (strategy.leverage, strategy.max_open, strategy.stop_atr) == (4.0, 5, 6.0)


def test_of_two_flags_for_one_key_the_later_wins() -> None:
    assert load_settings(None, ["universe.size=5", "universe.size=6"], {}).universe.size == 6


def test_the_file_in_the_current_folder_is_read_without_being_named() -> None:
    written("universe: {size: 7}")
    assert load_settings(None, [], {}).universe.size == 7


@pytest.mark.parametrize("source", ["file", "environment", "flag"])
def test_a_nested_section_can_be_set_in_all_three_ways(source: str) -> None:
    path = written("backtest:\n  costs:\n    taker_fee: 0.001\n") if source == "file" else None
    environ = {"CRYPTO_QLIB__BACKTEST__COSTS__TAKER_FEE": "0.001"} if source == "environment" else {}
    flags = ["backtest.costs.taker_fee=0.001"] if source == "flag" else []
    costs = load_settings(path, flags, environ).backtest.costs
    assert (costs.taker_fee, costs.maker_fee) == (0.001, Settings().backtest.costs.maker_fee)


ACCEPTED = [
    ("a list in YAML", "universe.include=[BTC, ETH]", "universe.include", ("BTC", "ETH")),
    ("a list by commas", "universe.include=BTC,ETH", "universe.include", ("BTC", "ETH")),
    ("one member", "universe.include=BTC", "universe.include", ("BTC",)),
    ("no member", "universe.include=", "universe.include", ()),
    ("coins are kept in capitals", "universe.include=btc", "universe.include", ("BTC",)),
    ("ON is a coin, not a boolean", "universe.include=[ON, NO]", "universe.include", ("ON", "NO")),
    ("a date stays text", "data.since=2024-01-31", "data.since", "2024-01-31"),
    ("an exponent is a number", "strategy.min_daily_turnover=2e6", "strategy.min_daily_turnover", 2e6),
    ("a whole number for a float", "strategy.leverage=5", "strategy.leverage", 5.0),
    ("false", "strategy.allow_short=false", "strategy.allow_short", False),
    ("blanks around key and value", " universe.size = 9 ", "universe.size", 9),
    ("an equals sign in the value", "store.root=a=b", "store.root", Path("a=b")),
    ("the user's home", "store.root=~/x", "store.root", Path.home() / "x"),
]


@pytest.mark.parametrize(("reason", "flag", "key", "expected"), ACCEPTED, ids=[row[0] for row in ACCEPTED])
def test_a_value_is_read_as_a_person_means_it(reason: str, flag: str, key: str, expected: object) -> None:
    section, name = key.split(".")
    assert getattr(getattr(load_settings(None, [flag], {}), section), name) == expected, reason


UNKNOWN = [
    ("a letter missing", "strategy.levrage", "strategy.leverage"),
    ("the section misspelled", "stratgy.leverage", "strategy.leverage"),
    ("the right name in a wrong section", "universe.leverage", "strategy.leverage"),
    ("a nested key", "backtest.costs.taker_fe", "backtest.costs.taker_fee"),
    ("a nested key without its inner section", "backtest.taker_fee", "backtest.costs.taker_fee"),
    ("plural", "model.max_bins", "model.max_bin"),
    ("a section misspelled", "backtests", "backtest"),
]


@pytest.mark.parametrize(("reason", "key", "near"), UNKNOWN, ids=[row[0] for row in UNKNOWN])
def test_an_unknown_key_is_refused_with_the_nearest_valid_name(reason: str, key: str, near: str) -> None:
    line = refusal("", f"{key}=1")
    assert f"unknown setting {key}" in line, reason
    assert f"did you mean {near}?" in line, reason


def test_a_key_like_no_other_is_refused_without_a_guess() -> None:
    line = refusal("", "zzzz.qqqq=1")
    assert "unknown setting zzzz.qqqq" in line
    assert "did you mean" not in line


ORIGINS = [
    ("a file names its line", "universe:\n  # ten\n  sise: 10\n", (), {}, "config.yaml line 3"),
    ("a flag", "", ("universe.sise=10",), {}, "--set"),
    ("a variable", "", (), {"CRYPTO_QLIB__UNIVERSE__SISE": "10"}, "CRYPTO_QLIB__UNIVERSE__SISE"),
    ("a range error in a file", "universe:\n  size: 0\n", (), {}, "config.yaml line 2"),
    ("a range error in a variable", "", (), {"CRYPTO_QLIB__UNIVERSE__SIZE": "0"}, "CRYPTO_QLIB__UNIVERSE__SIZE"),
]


@pytest.mark.parametrize(("reason", "text", "flags", "environ", "origin"), ORIGINS, ids=[row[0] for row in ORIGINS])
def test_a_refusal_says_where_the_key_came_from(
    reason: str, text: str, flags: tuple[str, ...], environ: dict[str, str], origin: str
) -> None:
    assert origin in refusal(text, *flags, environ=environ), reason


WRONG = [
    ("above the range", "strategy.leverage=500", "strategy.leverage = 500 must be a number from 1 to 125"),
    ("N = 0", "strategy.max_open=0", "strategy.max_open = 0 must be a whole number from 1 to 500"),
    ("an open lower end", "universe.refresh_hours=0", "universe.refresh_hours = 0 must be a number above 0"),
    ("both ends open", "strategy.min_stop_distance=1", "strategy.min_stop_distance = 1 must be a number above 0 and below 1"),
    ("one end open", "model.learning_rate=0", "model.learning_rate = 0 must be a number above 0 and up to 1"),
    ("words for a number", "universe.size=many", "universe.size = many must be a whole number from 1 to 500"),
    ("a fraction for a count", "universe.size=2.5", "universe.size = 2.5 must be a whole number"),
    ("true for a number", "strategy.leverage=true", "strategy.leverage = true must be a number"),
    ("NaN", "strategy.leverage=.nan", "strategy.leverage = nan must be a number"),
    ("infinity", "strategy.max_gross=.inf", "strategy.max_gross = inf must be a number"),
    ("nothing for a number", "universe.size=", "universe.size = empty must be a whole number"),
    ("no such choice", "data.frame=2h", "data.frame = 2h must be one of 1m, 5m, 15m, 1h, 4h, 1d"),
    ("no such member", "features.sets=alpha361", "must be a list of alpha360, technical, btc_relative, funding"),
    ("words for a switch", "data.funding=maybe", "data.funding = maybe must be true or false"),
    ("no date", "data.since=yesterday", "data.since = yesterday must be an ISO date"),
    ("a section for a value", "backtest.costs=3", "backtest.costs is a section, not a setting"),
    ("a mapping for a value", "universe.size={a: 1}", "must be a whole number"),
    ("no test segment left", "model.train_fraction=0.9", "train_fraction + valid_fraction must leave room"),
    ("replay of nothing", "exchange.market=replay", "market = replay needs replay_path"),
    ("the stop's ends crossed", "strategy.min_stop_distance=0.9", "min_stop_distance = 0.9 is above max_stop_distance"),
    ("no equals sign", "strategy.leverage", "is not of the form section.key=value"),
    ("no key", "=5", "is not of the form section.key=value"),
    ("broken YAML in a flag", "universe.include=[BTC", "no valid YAML"),
]


@pytest.mark.parametrize(("reason", "flag", "expected"), WRONG, ids=[row[0] for row in WRONG])
def test_a_wrong_value_is_refused_with_what_is_allowed(reason: str, flag: str, expected: str) -> None:
    assert expected in refusal("", flag), reason


def test_neither_long_nor_short_is_refused() -> None:
    assert "nothing could ever be traded" in refusal("", "strategy.allow_long=false", "strategy.allow_short=false")


def test_of_several_problems_the_first_is_told_and_the_rest_counted() -> None:
    assert "(and 1 more" in refusal("", "universe.size=0", "data.frame=2h")


BROKEN_FILES = [
    ("a tab", "universe:\n\tsize: 3\n", "config.yaml line 2"),
    ("an unclosed bracket", "universe:\n  include: [BTC\n", "no valid YAML"),
    ("a list at the top", "- universe\n", "the file must hold `key: value` lines"),
    ("a value for a section", "universe: 5\n", "section universe must hold `key: value` lines"),
    ("a key twice", "universe:\n  size: 3\n  size: 4\n", "universe.size is given twice (first on line 2)"),
    ("a section twice", "universe:\n  size: 3\nuniverse:\n  size: 4\n", "universe is given twice"),
    ("an unknown section", "univers:\n  size: 3\n", "did you mean universe?"),
    ("a control character", "universe:\n  size: \x07\n", "no valid YAML"),
]


@pytest.mark.parametrize(("reason", "text", "expected"), BROKEN_FILES, ids=[row[0] for row in BROKEN_FILES])
def test_a_broken_file_is_refused_with_the_place(reason: str, text: str, expected: str) -> None:
    assert expected in refusal(text), reason


def test_an_empty_file_and_an_empty_section_change_nothing() -> None:
    assert load_settings(written("# nothing\n"), [], {}) == Settings()
    assert load_settings(written("universe:\n  # size: 3\ndata:\n"), [], {}) == Settings()


def test_a_file_that_is_not_there_is_refused_with_the_way_to_write_one() -> None:
    with pytest.raises(UserError, match=r"no settings file nope\.yaml.*config init"):
        load_settings(Path("nope.yaml"), [], {})


def test_a_file_that_is_no_text_is_refused() -> None:
    Path("config.yaml").write_bytes(b"universe: \xff\xfe")
    with pytest.raises(UserError, match="no UTF-8 text"):
        load_settings(None, [], {})


def test_a_folder_for_a_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot read"):
        load_settings(tmp_path, [], {})


def test_a_variable_with_one_underscore_is_refused_not_ignored() -> None:
    line = refusal("", environ={"CRYPTO_QLIB_STRATEGY_LEVERAGE": "5"})
    assert "CRYPTO_QLIB__SECTION__KEY" in line


def test_other_variables_are_none_of_our_business() -> None:
    assert load_settings(None, [], {"PATH": "/bin", "CRYPTO": "x", **KEYS}) == Settings()


def test_settings_cannot_be_changed_afterwards() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().universe.size = 3  # type: ignore[misc]


SECRET_KEYS = ["exchange.api_key", "okx.secret", "exchange.passphrase", "monitoring.telegram_bot_token", "OKX_API_SECRET"]


@pytest.mark.parametrize("key", SECRET_KEYS)
def test_a_secret_among_the_settings_is_refused_and_not_repeated(key: str) -> None:
    line = refusal("", f"{key}=hush-hush")
    assert "looks like a secret" in line
    assert "OKX_API_KEY" in line
    assert "hush" not in line


def test_no_setting_has_a_name_that_looks_secret() -> None:
    assert [key for key in leaves() if looks_secret(key.rpartition(".")[2])] == []


def test_secrets_come_from_the_environment_and_are_never_shown() -> None:
    secrets = Secrets.from_environ(KEYS)
    assert (secrets.okx_api_key, secrets.okx_api_secret, secrets.okx_api_passphrase) == tuple(KEYS.values())
    shown = f"{secrets!r} {secrets} {secrets.masked()}"
    assert not any(value in shown for value in KEYS.values())
    assert secrets.masked()["OKX_API_KEY"] == "set"
    assert secrets.masked()["COINGECKO_API_KEY"] == "not set"


LIVE = [
    ("neither", (), {}, "second confirmation"),
    ("keys alone", (), KEYS, "second confirmation"),
    ("the confirmation alone", ("live.confirm_live=true",), {}, "OKX_API_KEY, OKX_API_SECRET, OKX_API_PASSPHRASE"),
    ("a key missing", ("live.confirm_live=true",), {**KEYS, "OKX_API_SECRET": " "}, "needs OKX_API_SECRET in"),
]


@pytest.mark.parametrize(("reason", "flags", "environ", "expected"), LIVE, ids=[row[0] for row in LIVE])
def test_real_money_needs_a_second_confirmation_and_all_keys(
    reason: str, flags: tuple[str, ...], environ: dict[str, str], expected: str
) -> None:
    assert expected in refusal("", "exchange.mode=live", *flags, environ=environ), reason


def test_confirmed_and_with_keys_live_mode_is_allowed() -> None:
    settings = load_settings(None, ["exchange.mode=live", "live.confirm_live=true"], KEYS)
    assert settings.exchange.mode == "live"


def test_demo_trading_needs_keys_and_the_embedded_exchange_none() -> None:
    demo = load_settings(None, ["exchange.mode=demo"], {})
    with pytest.raises(UserError, match="needs OKX_API_KEY"):
        require_okx_keys(demo, Secrets())
    require_okx_keys(demo, Secrets.from_environ(KEYS))
    require_okx_keys(Settings(), Secrets())
