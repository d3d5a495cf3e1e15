"""The catalogue of features as a page, written from the registry so that it cannot drift from the code."""

from __future__ import annotations

from itertools import groupby

from crypto_qlib.core.clock import NS_PER_HOUR
from crypto_qlib.feature_engineering.feature_frame import FeatureSpec
from crypto_qlib.feature_engineering.feature_sets import FEATURE_SETS
from crypto_qlib.settings.schema import FeatureSettings

_USE = """
## Using them

`features.sets` of the settings names the sets that are built. They are kept below `features/` of the workspace by
what they are made of, written in blocks of time (memory holds one block), extended by new bars and mapped into memory
when read; a corrected bar or a value beside the bars that became known late rebuilds from its block on.

Each set is a Qlib loader too, alone or beside Qlib's own:

```yaml
data_loader:
  class: NestedDataLoader
  module_path: qlib.data.dataset.loader
  kwargs:
    dataloader_l:
      - class: QlibDataLoader
        module_path: qlib.data.dataset.loader
        kwargs:
          freq: 60min
          config:
            feature: [["$close/Ref($close, 24)-1"], [ROC24]]
            label: [["Ref($close, -24)/$close-1"], [RET24]]
      - class: LakeFeatureLoader
        module_path: crypto_qlib.feature_engineering.qlib_handler
        kwargs: {lake: workspace/MARKET/lake, sets: [technical, news]}
```

Qlib's processors are there at array speed under `crypto_qlib.feature_engineering.qlib_processors`
(`FastRobustZScoreNorm`, `FastCSZScoreNorm`, `FastCSRankNorm`, `FastCSZFillna`, `FastFillna`, `FastProcessInf`), and
`ReduceFeatures` puts principal components or an autoencoder's code in the features' place. What is fitted reads the
fitting span only.

`crypto-qlib features ic` measures what each feature says about what came after, `select` chooses (screening with a
correction for the number of tries, redundancy, importance by shuffling and by SHAP on purged folds) and keeps the
choice as `NAME@VERSION` with a picture, `reduce` fits a reduction, `drift` says what has moved since training.
"""

_MANY = 5
"""A run of this many features that differ by a number only is shown as one line."""


def catalogue_markdown(frame_ns: int = NS_PER_HOUR) -> str:
    """Return the page ``docs/features.md`` for bars of ``frame_ns``."""
    settings = FeatureSettings()
    lines = [
        "# Features",
        "",
        "Written from the registry (`feature_engineering/feature_sets.py`) by `make docs`, for bars of one hour. `t` is the",
        "current bar, `r` the log return of the close; windows are bars unless a unit is named. *Look-back* is the number of",
        "bars a value depends on, the current one included: no older bar changes it by a bit. *Known* is the time from which",
        "the value is known. `crypto-qlib features describe NAME` shows one of them.",
        "",
        "A window with fewer than three quarters of its bars gives NaN. A row exists where the coin has a close.",
        "",
        "| set | features | default | what it says |",
        "|---|---:|---|---|",
    ]
    listed = {name: s.specs(settings, frame_ns) for name, s in FEATURE_SETS.items()}
    for name, feature_set in FEATURE_SETS.items():
        is_default = "yes" if name in settings.sets else ""
        lines.append(f"| [{name}](#{name}) | {len(listed[name])} | {is_default} | {feature_set.says} |")
    lines += _USE.splitlines()
    for name, specs in listed.items():
        lines += ["", f"## {name}", "", FEATURE_SETS[name].says, ""]
        lines += ["| feature | formula | unit | look-back | known | needs |", "|---|---|---|---:|---|---|"]
        lines += [_row(list(run)) for _, run in groupby(specs, key=_family)]
    return "\n".join(lines) + "\n"


def _family(spec: FeatureSpec) -> tuple[str, ...]:
    """Return what features must share to stand on one line: names such as ``CLOSE59`` ... ``CLOSE0`` of Alpha360."""
    is_window = spec.group in {"alpha360", "alpha158"}
    return (spec.name.rstrip("0123456789"), spec.unit) if is_window else (spec.name,)


def _row(run: list[FeatureSpec]) -> str:
    first, last = run[0], run[-1]
    if len(run) < _MANY:
        cells = (f"`{first.name}`", first.formula, first.unit, str(first.lookback_bars), first.known_at, first.needs)
    else:
        names, formula = f"`{first.name}` ... `{last.name}`", f"{first.formula} ... {last.formula}"
        longest = max(s.lookback_bars for s in run)
        cells = (names, formula, first.unit, f"up to {longest}", first.known_at, first.needs)
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


def describe(spec: FeatureSpec) -> str:
    """Return what there is to say about one feature, line by line."""
    rows = (
        ("feature", spec.name),
        ("set", f"{spec.group}: {FEATURE_SETS[spec.group].says}"),
        ("formula", spec.formula),
        ("unit", spec.unit),
        ("look-back", f"{spec.lookback_bars} bars, the current one included"),
        ("known", spec.known_at),
        ("needs", spec.needs or "bars only"),
    )
    return "\n".join(f"{name:<10} {text}" for name, text in rows)
