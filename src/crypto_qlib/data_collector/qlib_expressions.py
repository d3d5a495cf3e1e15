"""``D.features`` at the speed of arrays: a dataset provider for Qlib that evaluates expressions in compiled loops.

1. Every field is parsed by Qlib itself; the tree of its operators becomes a plan in which equal parts are one step.
2. Instrument by instrument the bins are read once, and each step is done once on plain arrays: Qlib's rules, without a pandas
   object a step. Element-wise steps keep Qlib's float32, rolling steps its float64.
3. What the plan does not know (an operator of somebody's own) is asked of Qlib, that part alone; an instrument whose fields do
   not cover the same bars is left to Qlib whole, because there pandas' alignment decides.
4. Columns are written straight into the block of the final frame.

``qlib.init(dataset_provider={"class": "PanelDatasetProvider", "module_path": "crypto_qlib.data_collector.qlib_expressions"})``
or :func:`~crypto_qlib.data_collector.qlib_data_adapter.init_qlib` puts it under everything that loads data: ``D.features``,
handlers, ``qrun``.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import pandas as pd
from qlib.config import C
from qlib.data import ops
from qlib.data.base import Expression, Feature
from qlib.data.data import Cal, ExpressionD, LocalDatasetProvider
from qlib.utils import code_to_fname, remove_fields_space

from crypto_qlib.core.market import FloatArray
from crypto_qlib.data_collector import qlib_kernels as k
from crypto_qlib.data_collector.qlib_tail import HotTail

Array = npt.NDArray[Any]
Step = Callable[..., Array]

_ELEMENTWISE: Final[dict[type, Callable[..., Any]]] = {
    ops.Abs: np.abs, ops.Log: np.log, ops.Add: np.add, ops.Sub: np.subtract, ops.Mul: np.multiply, ops.Div: np.divide,
    ops.Power: np.power, ops.Greater: np.maximum, ops.Less: np.minimum, ops.Gt: np.greater, ops.Ge: np.greater_equal,
    ops.Lt: np.less, ops.Le: np.less_equal, ops.Eq: np.equal, ops.Ne: np.not_equal, ops.And: np.bitwise_and,
    ops.Or: np.bitwise_or,
}  # fmt: skip
_ROLLING: Final[dict[type, tuple[Callable[..., FloatArray], int]]] = {
    ops.Mean: (k.rolling_moment, k.MEAN), ops.Sum: (k.rolling_moment, k.SUM), ops.Var: (k.rolling_moment, k.VAR),
    ops.Std: (k.rolling_moment, k.STD), ops.Count: (k.rolling_moment, k.COUNT), ops.Max: (k.rolling_extreme, k.MAX),
    ops.Min: (k.rolling_extreme, k.MIN), ops.IdxMax: (k.rolling_index, k.MAX), ops.IdxMin: (k.rolling_index, k.MIN),
    ops.Slope: (k.rolling_line, k.SLOPE), ops.Resi: (k.rolling_line, k.RESIDUAL),
}  # fmt: skip
_PAIRS: Final[dict[type, int]] = {ops.Corr: k.CORR, ops.Cov: k.COV}
_MEDIAN: Final = 0.5


@dataclass(frozen=True, slots=True)
class Node:
    """One step of a plan.

    Parameters
    ----------
    expression : Expression
        Qlib's own object, for steps Qlib has to do.
    step : callable, optional
        Does the step on the inputs' arrays; ``None`` where Qlib does it.
    inputs : tuple of int or float
        Numbers of the steps it needs (as ``Input``), or constants.
    """

    expression: Expression
    step: Step | None
    inputs: tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Input:
    """The result of step ``number``."""

    number: int


@dataclass(slots=True)
class Plan:
    """The steps of many fields, each equal part once.

    Parameters
    ----------
    nodes : list of Node
        Inputs before the steps that need them.
    fields : list of (int, int, int)
        Per field: its step, and how many bars before and after the asked ones it looks at.
    names : list of str
        Raw fields read from bins, without the dollar sign.
    """

    nodes: list[Node] = field(default_factory=list)
    fields: list[tuple[int, int, int]] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    _known: dict[str, int] = field(default_factory=dict)

    def add(self, expression: Expression) -> int:
        """Return the number of the step that computes ``expression``."""
        key = str(expression)
        if key not in self._known:
            node = self._node(expression)
            self._known[key] = len(self.nodes)
            self.nodes.append(node)
        return self._known[key]

    def _node(self, expression: Expression) -> Node:
        kind = type(expression)
        if kind is Feature:
            self.names.append(key := str(expression)[1:])
            return Node(expression, None, (key,))
        if kind in _ELEMENTWISE:
            return Node(expression, _ELEMENTWISE[kind], self._inputs(expression))
        if kind is ops.Sign:
            return Node(expression, _sign, self._inputs(expression))
        if kind is ops.If:
            return Node(expression, np.where, self._of(expression.condition, expression.feature_left, expression.feature_right))
        window = getattr(expression, "N", None)
        if not isinstance(window, int) or window == 0:
            return Node(expression, None, ())
        step = _windowed(kind, expression, window)
        return Node(expression, None, ()) if step is None else Node(expression, step, self._inputs(expression))

    def _inputs(self, expression: Any) -> tuple[Any, ...]:
        if hasattr(expression, "feature"):
            return self._of(expression.feature)
        return self._of(expression.feature_left, expression.feature_right)

    def _of(self, *parts: Any) -> tuple[Any, ...]:
        return tuple(Input(self.add(p)) if isinstance(p, Expression) else p for p in parts)


def _windowed(kind: type, expression: Any, window: int) -> Step | None:
    """Return the step of a rolling operator over ``window`` bars, ``None`` if it is not known."""
    if kind in (ops.Ref, ops.Delta):
        return partial(_shifted if kind is ops.Ref else _difference, n=window)
    if window < 1:
        return None
    makers: dict[type, Step] = {
        ops.Rsquare: partial(_rsquare, n=window),
        ops.Rank: lambda x: k.rolling_rank(_floats(x), window),
        ops.EMA: lambda x: k.exponential_mean(_floats(x), 2.0 / (window + 1.0)),
        ops.Med: lambda x: k.rolling_quantile(_floats(x), window, _MEDIAN),
        ops.Quantile: lambda x: k.rolling_quantile(_floats(x), window, expression.qscore),
        **{pair: partial(_pair, n=window, kind=which) for pair, which in _PAIRS.items()},
        **{one: partial(_rolled, function=f, n=window, what=what) for one, (f, what) in _ROLLING.items()},
    }
    return makers.get(kind)


def _rolled(x: Array, function: Callable[..., FloatArray], n: int, what: int) -> Array:
    return function(_floats(x), n, what)


def _floats(x: Array) -> FloatArray:
    return np.ascontiguousarray(x, dtype=np.float64)


def _sign(x: Array) -> Array:
    return np.asarray(np.sign(x.astype(np.float32)))


def _shifted(x: Array, n: int) -> Array:
    moved = np.empty(x.size, x.dtype if x.dtype.kind == "f" else np.float64)
    if n >= 0:
        moved[: min(n, x.size)] = np.nan
        moved[n:] = x[: max(x.size - n, 0)]
    else:
        moved[max(x.size + n, 0) :] = np.nan
        moved[: max(x.size + n, 0)] = x[-n:]
    return moved


def _difference(x: Array, n: int) -> Array:
    return np.asarray(x - _shifted(x, n))


def _is_flat(x: FloatArray, n: int) -> npt.NDArray[np.bool_]:
    return np.asarray(np.abs(k.rolling_moment(x, n, k.STD)) <= k.NEARLY_ZERO)


def _rsquare(x: Array, n: int) -> Array:
    values = _floats(x)
    return np.where(_is_flat(values, n), np.nan, k.rolling_line(values, n, k.RSQUARE))


def _pair(x: Array, y: Array, n: int, kind: int) -> Array:
    left, right = _floats(x), _floats(y)
    found = k.rolling_pair(left, right, n, kind)
    return np.where(_is_flat(left, n) | _is_flat(right, n), np.nan, found) if kind == k.CORR else found


def plan_of(columns: Sequence[str]) -> Plan:
    """Return the plan of the fields ``columns``, parsed by Qlib."""
    plan = Plan()
    for name in columns:
        expression = ExpressionD.get_expression_instance(name)
        plan.fields.append((plan.add(expression), *expression.get_extended_window_size()))
    return plan


@dataclass(frozen=True, slots=True)
class _Query:
    """What is asked: calendar indices (inclusive), frequency, the folder of the bins, and the bars these lack yet."""

    start: int
    end: int
    freq: str
    folder: Path
    tail: HotTail | None


class _Instrument:
    """One instrument's bins and the steps done on them."""

    def __init__(self, plan: Plan, name: str, query: _Query) -> None:
        self._plan = plan
        self._name = name
        self._query = query
        self._raw = {n: self._read(n) for n in dict.fromkeys(plan.names)}
        spans = {(first, values.size) for first, values in self._raw.values()}
        self.is_empty = bool(spans) and all(size == 0 for _, size in spans)
        self.is_aligned = len(spans) == 1 and not self.is_empty
        self.first, size = next(iter(spans)) if self.is_aligned else (0, 0)
        self.last = self.first + size - 1
        self._done: dict[tuple[int, int, int], Array] = {}

    def _read(self, name: str) -> tuple[int, npt.NDArray[np.float32]]:
        path = self._query.folder / code_to_fname(self._name).lower() / f"{name.lower()}.{self._query.freq}.bin"
        try:
            content = np.fromfile(path, "<f4")
        except FileNotFoundError:
            content = np.empty(0, np.float32)
        tail = self._query.tail
        first = int(content[0]) if content.size else (tail.first_bar(self._name) if tail is not None else None)
        if first is None:
            return 0, content
        if tail is None or first + content.size - 1 >= tail.n_bars:
            return first, content[1:]
        return first, np.concatenate((content[1:], tail.after(self._name, name.lower(), first + max(content.size - 1, 0))))

    def column(self, which: int, low: int, high: int) -> Array:
        """Return field ``which`` at the calendar indices ``low`` to ``high``, both of which the bins cover."""
        number, before, after = self._plan.fields[which]
        query = (max(0, self._query.start - before), self._query.end + after)
        lowest = max(query[0], self.first)
        values = self._value(number, lowest, min(query[1], self.last), query)
        return values[low - lowest : high - lowest + 1]

    def _value(self, number: int, low: int, high: int, query: tuple[int, int]) -> Array:
        key = (number, low, high)
        if key not in self._done:
            node = self._plan.nodes[number]
            if node.step is not None:
                inputs = [self._value(i.number, low, high, query) if isinstance(i, Input) else i for i in node.inputs]
                with np.errstate(all="ignore"):
                    self._done[key] = node.step(*inputs)
            elif node.inputs:
                self._done[key] = self._raw[node.inputs[0]][1][low - self.first : high - self.first + 1]
            else:
                series = node.expression.load(self._name, *query, self._query.freq)
                self._done[key] = series.reindex(pd.RangeIndex(low, high + 1)).to_numpy()
        return self._done[key]


class PanelDatasetProvider(LocalDatasetProvider):  # type: ignore[misc]
    """Qlib's local dataset provider with the expressions evaluated on arrays; results as Qlib's own, to its float32."""

    @staticmethod
    def dataset_processor(
        instruments_d: Any, column_names: Any, start_time: Any, end_time: Any, freq: str, inst_processors: Any = ()
    ) -> pd.DataFrame:
        """Return the data set: rows (instrument, datetime), float32 columns in the order asked for."""
        spans = instruments_d if isinstance(instruments_d, dict) else dict.fromkeys(instruments_d)
        by_qlib = partial(_by_qlib, column_names=column_names, times=(start_time, end_time), freq=freq)
        if inst_processors:
            return by_qlib(instruments_d, inst_processors=list(inst_processors))
        plan = plan_of(remove_fields_space(column_names))
        _, _, start, end = Cal.locate_index(start_time, end_time, freq=freq, future=False)
        root = Path(C.dpm.get_data_uri(freq))
        query = _Query(start, end, freq.lower(), root / "features", HotTail.of(root, freq.lower()))
        block = _Block(plan, query, len(spans))
        odd = [name for name in sorted(spans) if not block.add(name, spans[name])]
        frame = block.frame([str(name) for name in column_names])
        if not odd:
            return frame
        rest = by_qlib({name: spans[name] for name in odd} if isinstance(instruments_d, dict) else odd)
        return frame if rest.empty else rest if frame.empty else pd.concat([frame, rest]).sort_index()


def _by_qlib(instruments: Any, column_names: Any, times: tuple[Any, Any], freq: str, inst_processors: Any = ()) -> pd.DataFrame:
    frame: pd.DataFrame = LocalDatasetProvider.dataset_processor(
        instruments, column_names, *times, freq, inst_processors=list(inst_processors)
    )
    return frame


class _Block:
    """The values of the final frame, one row of the block a column of the frame, filled instrument by instrument."""

    def __init__(self, plan: Plan, query: _Query, n_instruments: int) -> None:
        self._plan = plan
        self._query = query
        self._calendar = np.array(Cal.calendar(freq=query.freq), dtype="datetime64[ns]")
        most = n_instruments * (query.end - query.start + 1)
        # Memory is only taken for what is filled.
        self._values = np.empty((len(plan.fields), most), np.float32)
        self._bars = np.empty(most, np.int32)
        self._sizes: list[tuple[str, int]] = []
        self._n = 0

    def add(self, name: str, spans: Any) -> bool:
        """Add the rows of an instrument; return False if it has to be left to Qlib."""
        found = _Instrument(self._plan, name, self._query)
        if not found.is_aligned:
            return found.is_empty
        low, high = max(self._query.start, found.first), min(self._query.end, found.last)
        if low > high:
            return True
        listed = self._listed(low, high, spans)
        n = high - low + 1 if listed is None else int(listed.size)
        rows = slice(self._n, self._n + n)
        for which in range(len(self._plan.fields)):
            column = found.column(which, low, high)
            self._values[which, rows] = column if listed is None else column[listed]
        self._bars[rows] = (np.arange(n) if listed is None else listed) + (low - self._query.start)
        self._n += n
        if n:
            self._sizes.append((name, n))
        return True

    def _listed(self, low: int, high: int, spans: Any) -> npt.NDArray[np.int64] | None:
        """Return the places of the bars inside the instrument's listing spans, ``None`` for all of them."""
        if spans is None:
            return None
        times = self._calendar[low : high + 1]
        inside = np.zeros(times.size, np.bool_)
        for begin, end in spans:
            inside |= (times >= pd.Timestamp(begin).to_datetime64()) & (times <= pd.Timestamp(end).to_datetime64())
        return None if inside.all() else np.flatnonzero(inside)

    def frame(self, names: list[str]) -> pd.DataFrame:
        """Return the frame over what was added, without copying a value."""
        levels: Any = [
            [name for name, _ in self._sizes],
            pd.DatetimeIndex(self._calendar[self._query.start : self._query.end + 1]),
        ]
        codes: Any = [np.repeat(np.arange(len(self._sizes)), [n for _, n in self._sizes]), self._bars[: self._n]]
        index = pd.MultiIndex(levels=levels, codes=codes, names=["instrument", "datetime"], verify_integrity=False)
        return pd.DataFrame(self._values[:, : self._n].T, index=index, columns=names, copy=False)
