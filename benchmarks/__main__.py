"""Run the benchmarks: ``python -m benchmarks [WORKLOAD ...]`` (the backtest), ``python -m benchmarks exchange``."""

import sys

from benchmarks import exchange_load, workload_product

if sys.argv[1:2] == ["exchange"]:
    exchange_load.main(sys.argv[2:])
else:
    workload_product.main()
