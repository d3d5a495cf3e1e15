"""Run the benchmarks: ``python -m benchmarks [--quick]`` (the backtest), or one of the names below."""

import sys

if sys.argv[1:2] == ["exchange"]:
    from benchmarks import exchange_load

    exchange_load.main(sys.argv[2:])
elif sys.argv[1:2] == ["store"]:
    from benchmarks import store

    store.main(sys.argv[2:])
elif sys.argv[1:2] == ["report"]:
    from benchmarks import report_time

    report_time.main()
elif sys.argv[1:2] == ["cleaning"]:
    from benchmarks import cleaning

    cleaning.main(sys.argv[2:])
elif sys.argv[1:2] == ["grid"]:
    from benchmarks import grid_scaling

    grid_scaling.main(sys.argv[2:])
elif sys.argv[1:2] == ["hindsight"]:
    from benchmarks import universe_hindsight

    universe_hindsight.main(sys.argv[2:])
elif sys.argv[1:2] == ["features"]:
    from benchmarks import features

    features.main(sys.argv[2:])
elif sys.argv[1:2] == ["feature_stream"]:
    from benchmarks import feature_stream

    feature_stream.main(sys.argv[2:])
elif sys.argv[1:2] == ["training"]:
    from benchmarks import training

    training.main(sys.argv[2:])
elif sys.argv[1:2] == ["live"]:
    from benchmarks import live_latency

    live_latency.main(sys.argv[2:])
elif sys.argv[1:2] == ["live_parity"]:
    from benchmarks import live_parity

    live_parity.main(sys.argv[2:])
elif sys.argv[1:2] == ["model_study"]:
    from benchmarks import model_study

    model_study.main(sys.argv[2:])
elif sys.argv[1:2] == ["feature_study"]:
    from benchmarks import feature_study

    feature_study.main(sys.argv[2:])
else:
    from benchmarks import backtest_table

    backtest_table.main(sys.argv[1:])
