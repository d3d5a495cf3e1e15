"""Figures worked by hand, baselines against a market where they must win or lose, and the comparison of models."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from crypto_qlib.analytics.ic import IcSummary
from crypto_qlib.core.errors import UserError
from crypto_qlib.core.signal import ScorePanel
from crypto_qlib.modeling.compare_models import compare_models, hurdle, probability_of_luck
from crypto_qlib.modeling.evaluation_details import (
    BASELINES,
    evaluate_details,
    quantile_returns,
    rank_turnover,
    top_k_precision,
)
from crypto_qlib.modeling.evaluation_page import bar_chart, reliability_bins
from crypto_qlib.modeling.labels import Labels, make_labels
from crypto_qlib.modeling.model_report import outcomes, report_model
from crypto_qlib.modeling.purged_paths import PurgedPaths
from crypto_qlib.modeling.train_model import predict_scores
from crypto_qlib.settings.schema import ModelSettings
from tests.modeling.conftest import Trained
from tests.noise_market import changed, noise_panel

NAN = float("nan")
PANEL = noise_panel(900, 8, seed=2)
SETTINGS = ModelSettings(horizon_bars=6)
LABELS = make_labels(PANEL, SETTINGS)
KNOWN = PANEL.ts_open + PANEL.frame_ns


def scored(expected: np.ndarray, rows: slice = slice(200, 900)) -> ScorePanel:
    e = expected[rows]
    return ScorePanel(KNOWN[rows], PANEL.symbols, e, np.full(e.shape, 0.5), np.full(e.shape, 0.01))


def oracle(noise: float, seed: int = 0) -> np.ndarray:
    """Return the coming excess return hidden in noise of ``noise`` times its size."""
    truth = np.nan_to_num(LABELS.values)
    return truth + noise * truth.std() * np.random.default_rng(seed).normal(size=truth.shape)


def test_top_k_by_hand() -> None:
    expected = np.array([[0.03, -0.02, 0.01, NAN], [0.01, NAN, NAN, NAN], [0.0, 0.01, -0.02, 0.03]])
    forward = np.array([[0.10, 0.05, -0.01, 0.9], [0.5, 0.5, 0.5, 0.5], [0.3, 0.2, -0.1, NAN]])
    hits, gain = top_k_precision(expected, forward, 2, 1)
    assert hits.n_bars == 2, "a bar with one score has no two strongest; a zero score is no opinion"
    assert hits.mean == pytest.approx((0.5 + 1.0) / 2)
    assert gain.mean == pytest.approx(((0.10 - 0.05) / 2 + (0.1 + 0.2) / 2) / 2)


def test_fifths_are_ordered_worst_first() -> None:
    found = quantile_returns(np.array([[5.0, 4.0, 3.0, 2.0, 1.0, NAN]]), np.array([[0.5, 0.4, 0.3, 0.2, 0.1, 9.0]]), 1)
    np.testing.assert_allclose([q.mean for q in found], [0.1, 0.2, 0.3, 0.4, 0.5])


def test_rank_turnover_is_zero_for_a_constant_order_and_one_for_noise() -> None:
    fixed = np.tile(np.arange(8.0), (50, 1)) + np.arange(50.0)[:, None]
    assert rank_turnover(fixed) == pytest.approx(0.0)
    assert rank_turnover(np.random.default_rng(0).normal(size=(400, 8))) == pytest.approx(1.0, abs=0.05)


class TestDetails:
    def test_a_good_model_decays_beyond_its_horizon_and_beats_the_rules(self) -> None:
        d = evaluate_details(scored(oracle(1.0)), PANEL, 6, (1, 6, 60))
        assert d.decay[6].t_stat > 10.0
        assert d.decay[60].mean < d.decay[6].mean / 2
        assert d.decay[1].mean < d.decay[6].mean
        assert d.quantiles[-1].mean > 0.0 > d.quantiles[0].mean
        assert all(abs(s.t_stat) < 4.0 < d.decay[6].t_stat for s in d.baselines.values()), "the market itself is noise"
        assert set(d.by_regime) == set(d.by_volatility) == {"calm", "normal", "wild"}
        assert sum(s.n_bars for s in d.by_hour.values()) == sum(s.n_bars for s in d.by_regime.values())
        assert set(d.by_hour) == set(range(24))

    def test_noise_shows_nothing_anywhere(self) -> None:
        d = evaluate_details(scored(np.random.default_rng(1).normal(size=PANEL.close.shape)), PANEL, 6)
        assert abs(d.decay[6].t_stat) < 3.0
        assert all(abs(hits.mean - 0.5) < 4 * hits.standard_error for hits, _ in d.precision.values())

    def test_the_rules_find_the_market_they_are_made_for(self) -> None:
        rng = np.random.default_rng(4)
        drift = np.repeat(rng.normal(0.0, 0.004, (9, 8)), 100, axis=0)  # a coin that rose goes on rising
        close = 100.0 * np.exp(np.cumsum(drift + 0.004 * rng.normal(size=drift.shape), axis=0))
        trending = changed(PANEL, close=close, open=np.vstack([close[:1], close[:-1]]), high=close * 1.01, low=close * 0.99)
        d = evaluate_details(scored(oracle(1.0)), trending, 6)
        assert d.baselines["momentum 24 bars"].t_stat > 4.0
        assert d.baselines["reversal 24 bars"].mean == pytest.approx(-d.baselines["momentum 24 bars"].mean)

    def test_beta_is_the_slope_on_btc(self) -> None:
        steps = np.random.default_rng(5).normal(0.0, 0.01, (400, 1)) * np.array([2.0, 1.0, 0.5, 3.0, 1.0, 1.0, 1.0, 1.0])
        market = changed(noise_panel(400, 8), close=100.0 * np.exp(np.cumsum(steps, axis=0)))
        got = BASELINES["beta to BTC"](market)[-1]
        np.testing.assert_allclose(got / got[1], [2.0, 1.0, 0.5, 3.0, 1.0, 1.0, 1.0, 1.0], rtol=1e-9)

    def test_scores_of_other_bars_are_refused(self) -> None:
        s = scored(oracle(1.0))
        with pytest.raises(UserError, match="different bars"):
            evaluate_details(replace(s, as_of_ns=s.as_of_ns + 1), PANEL, 6)


class TestComparison:
    def test_the_better_model_is_first_and_the_difference_is_no_noise(self) -> None:
        found = compare_models({"weak": scored(oracle(6.0, 1)), "strong": scored(oracle(1.0, 2))}, LABELS)
        assert [m.name for m in found.models] == ["strong", "weak"]
        assert found.models[1].p_noise < 0.01
        assert np.isnan(found.models[0].p_noise)
        assert found.p_luck < 0.01

    def test_twins_differ_by_noise_only(self) -> None:
        found = compare_models({"a": scored(oracle(3.0, 1)), "b": scored(oracle(3.0, 2))}, LABELS)
        assert found.models[1].p_noise > 0.05

    def test_only_common_bars_count(self) -> None:
        found = compare_models({"a": scored(oracle(1.0), slice(200, 500)), "b": scored(oracle(1.0), slice(400, 800))}, LABELS)
        assert found.n_bars == 100
        with pytest.raises(UserError, match="no test bar in common"):
            compare_models({"a": scored(oracle(1.0), slice(200, 300)), "b": scored(oracle(1.0), slice(400, 500))}, LABELS)

    def test_many_trials_make_luck_likely(self) -> None:
        # Largest of n standard normals, by simulation: an oracle that shares no code.
        draws = np.random.default_rng(0).normal(size=(40_000, 20)).max(axis=1)
        assert probability_of_luck(2.0, 20) == pytest.approx(np.mean(draws >= 2.0), abs=0.01)
        assert hurdle(20) == pytest.approx(draws.mean(), abs=0.05)
        assert probability_of_luck(2.0, 1) == pytest.approx(0.02275, abs=1e-4)


class TestPage:
    def test_both_reports_stand_beside_the_artefact(self, trained: Trained, tmp_path: Path) -> None:
        scores = predict_scores(trained.model, trained.frame, segment="test")
        words = {"title": "<b>model</b>", "market": "simulated"}
        found, page = report_model(trained.model, scores, trained.panel, trained.labels, tmp_path, {"run_id": "r1"}, words)
        text = page.read_text()
        assert "&lt;b&gt;model" in text
        assert "<script" not in text
        assert f"{found.rank_ic.mean:+.3f}" in text
        kept = json.loads((tmp_path / "model_performance_report.json").read_text())
        assert {"decay", "precision_at_k", "baselines", "by_hour", "reliability"} <= set(kept["details"])
        assert kept["run"]["run_id"] == "r1"

    @pytest.mark.parametrize(("n", "row"), [(5, "path 5"), (40, "worst tenth")])
    def test_the_page_shows_purged_paths_where_the_settings_were_tried_on_them(
        self, n: int, row: str, trained: Trained, tmp_path: Path
    ) -> None:
        scores = predict_scores(trained.model, trained.frame, segment="test")
        paths = PurgedPaths(6, 2, 15, tuple(np.linspace(-0.01, 0.03, n)), (NAN, *np.linspace(0.0, 2.0, n - 1))).to_json()
        words = {"title": "t", "market": "m", "paths": paths}
        report_model(trained.model, scores, trained.panel, trained.labels, tmp_path, {}, words)
        text = (tmp_path / "model_report.html").read_text()
        assert row in text
        assert "+0.0100" in text, "their mean"
        assert "15 models of these settings" in text
        kept = json.loads((tmp_path / "model_performance_report.json").read_text())
        assert kept["details"]["purged_paths"]["rank_ic_spread"]["mean"] == pytest.approx(0.01)
        report_model(trained.model, scores, trained.panel, trained.labels, tmp_path, {}, words | {"paths": None})
        assert "history's chance" not in (tmp_path / "model_report.html").read_text()

    def test_the_page_shows_what_the_scores_earned_where_they_were_traded(self, trained: Trained, tmp_path: Path) -> None:
        scores = predict_scores(trained.model, trained.frame, segment="test")
        traded: dict[str, object] = {
            "run_id": "r9", "total_return": 0.123, "sharpe": None, "max_drawdown": 0.2, "trades": 1234, "fees": 5678.0,
            "mean_return_per_bar": {"mean": 1e-4, "low": -1e-4, "high": 3e-4}, "probability_sharpe_above_zero": 0.7,
            "turnover_per_year": 99.0, "liquidations": 3,
        }  # fmt: skip
        words = {"title": "t", "market": "m", "portfolio": traded}
        _, page = report_model(trained.model, scores, trained.panel, trained.labels, tmp_path, {}, words)
        text = page.read_text()
        for said in ("+12.3%", "none", "-1.00 to +3.00 bp", "20.0%", "1,234", "3 liquidations", "fees 5,678", "r9/report.html"):
            assert said in text
        kept = json.loads((tmp_path / "model_performance_report.json").read_text())
        assert kept["details"]["portfolio"] == traded

    def test_reliability_of_a_perfect_probability_lies_on_the_diagonal(self) -> None:
        rng = np.random.default_rng(0)
        p = rng.uniform(0.3, 0.7, 200_000)
        predicted, seen, count = reliability_bins(p, (rng.random(p.size) < p).astype(float))
        np.testing.assert_allclose(predicted, seen, atol=0.015)
        assert count.sum() == p.size

    def test_a_win_is_judged_as_the_label_says(self) -> None:
        one = np.full(LABELS.values.shape, 1.0)
        labels: Labels = replace(LABELS, trade_long=-one, trade_short=one, forward_return=one)
        probability, won = outcomes(scored(one), labels, by_trade=False)
        assert won.all()
        assert not outcomes(scored(one), labels, by_trade=True)[1].any()
        assert probability.size == won.size == 700 * 8

    def test_a_bar_reaches_as_far_as_its_value(self) -> None:
        chart = bar_chart("t", "n", {"a": replace(_summary(0.1), standard_error=0.0), "b": _summary(NAN)})
        assert (chart["rows"][0]["x"], chart["rows"][0]["width"], chart["rows"][1]["text"]) == (140.0, 290.0, "")


def _summary(mean: float) -> IcSummary:
    return IcSummary(mean, 0.01, 0.1, 10)
