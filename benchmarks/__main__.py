"""Run the benchmarks: ``python -m benchmarks [WORKLOAD ...]``."""

from benchmarks.workload_product import main

main()
