"""Qlib's whole handler, processors and all, beside ours: CPU seconds and largest memory, each in a process of its own.

Both load Alpha360 (or Alpha158) and a label of the same bars, standardise the features robustly by the first 60 % of the bars,
fill what is missing, drop rows without a label and rank the label across the coins; then what both serve is compared, cell by
cell. ``ProcessInf``, which Qlib's Alpha360 has by default, is left out of both: it alone takes Qlib hours at full size.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np

from crypto_qlib.core.clock import iso
from crypto_qlib.core.market import MarketPanel

_COMPARED = 20_000

_SHARED = """
import json, logging, os, resource, sys, time, warnings
warnings.simplefilter("ignore")
import numpy as np
name, folder, first, last, sizes = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4], sys.argv[5:]
fit = {"fit_start_time": first, "fit_end_time": last, "fields_group": "feature"}
def steps(prefix, where):
    ours = [("RobustZScoreNorm", {**fit, "clip_outlier": True}), ("Fillna", {"fields_group": "feature"})]
    infer = [{"class": prefix + n, "module_path": where, "kwargs": k} for n, k in ours]
    rank = {"class": prefix + "CSRankNorm", "module_path": where, "kwargs": {"fields_group": "label"}}
    learn = [{"class": "DropnaLabel"}, rank]
    return {"infer_processors": infer, "learn_processors": learn}
def told(handler, start, base, whose):
    spent = time.process_time() - start
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    shown = handler.fetch(col_set="feature", data_key="infer").iloc[-20_000:]
    learnt = handler.fetch(col_set=["feature", "label"], data_key="learn").iloc[-20_000:]
    for key, frame in (("infer", shown), ("learn", learnt)):
        np.save(f"{folder}/{whose}-{name}-{key}.npy", frame.to_numpy(np.float64))
    rows = [str(shown.index[0]), str(learnt.index[0]), len(handler._infer), len(handler._learn)]
    print(json.dumps({"cpu_s": spent, "peak_gb": peak, "base_gb": base, "rows": rows}))
def resident():
    return int(next(x for x in open("/proc/self/status") if x.startswith("VmRSS")).split()[1]) / 2**20
"""

_THEIRS = (
    _SHARED
    + """
import qlib
from qlib.contrib.data import handler as stock
qlib.init(provider_uri=f"{folder}/qlib", kernels=1, expression_cache=None, dataset_cache=None, logging_level=logging.ERROR)
base, start = resident(), time.process_time()
made = getattr(stock, name)(
    instruments="all", freq="60min", fit_start_time=first, fit_end_time=last, process_type="append",
    **steps("", "qlib.data.dataset.processor"),
)
told(made, start, base, "qlib")
"""
)

_OURS = (
    _SHARED
    + """
from benchmarks.features import panel_of
from crypto_qlib.feature_engineering.feature_generator import build_features
from crypto_qlib.feature_engineering.qlib_handler import CryptoHandler
from crypto_qlib.settings.schema import FeatureSettings
def made_of(panel):
    frame = build_features(panel, FeatureSettings(sets=(name.lower(),)))
    label = np.full(panel.close.shape, np.nan)
    label[:-2] = panel.close[2:] / panel.close[1:-1] - 1.0
    return CryptoHandler(
        frame=frame, labels={"LABEL0": frame.at_rows(label)}, process_type="append",
        **steps("Fast", "crypto_qlib.feature_engineering.qlib_processors"),
    )
panel = panel_of(int(sizes[0]), int(sizes[1]))
made_of(panel.rows(0, 200))  # compiles
base, start = resident(), time.process_time()
told(made_of(panel), start, base, "ours")
"""
)


def handlers(panel: MarketPanel, folder: Path) -> None:
    """Print the ratio of CPU time and of memory of both handlers; Qlib's store of ``panel`` lies in ``folder/qlib``.

    Raises
    ------
    SystemExit
        If what the two serve differs beyond float32 rounding.
    """
    opens = [iso(int(panel.ts_open[k]))[:19].replace("T", " ") for k in (0, int(0.6 * panel.n_bars))]
    for name in ("Alpha360", "Alpha158"):
        given = [name, str(folder), *opens, str(panel.n_bars), str(len(panel.symbols))]
        theirs, ours = (_measured(program, given) for program in (_THEIRS, _OURS))
        same = _compared(folder, name, theirs["rows"], ours["rows"])
        print(
            f"{name} handler with robust z-score, fill, label rank: CPU {ours['cpu_s']:.2f} s against {theirs['cpu_s']:.1f} s "
            f"({theirs['cpu_s'] / ours['cpu_s']:.0f} x), process {ours['peak_gb']:.2f} GiB against {theirs['peak_gb']:.2f} GiB "
            f"({theirs['peak_gb'] / ours['peak_gb']:.1f} x), of which bars and code {ours['base_gb']:.2f} and "
            f"{theirs['base_gb']:.2f}; {same:.4%} of the cells of {_COMPARED:,} rows are the same",
            flush=True,
        )


def _measured(program: str, arguments: list[str]) -> dict[str, object]:
    done = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    return json.loads(done.stdout.strip().splitlines()[-1])  # type: ignore[no-any-return]


def _compared(folder: Path, name: str, theirs: object, ours: object) -> float:
    """Return the share of cells that agree; stop where rows differ or too few cells do."""
    if theirs != ours:
        raise SystemExit(f"the handlers of {name} serve other rows: {theirs} and {ours}")
    shares = []
    for key in ("infer", "learn"):
        a, b = (np.load(folder / f"{whose}-{name}-{key}.npy") for whose in ("ours", "qlib"))
        shares.append(float(np.isclose(a, b, rtol=2e-3, atol=2e-4, equal_nan=True).mean()))
    if min(shares) < 0.999:  # a window whose spread is float32 rounding is cut at +3 or -3
        raise SystemExit(f"the handlers of {name} serve other numbers: {shares}")
    return min(shares)
