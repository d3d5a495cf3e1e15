"""What would the exchange do? One simulated exchange for backtest and paper."""
