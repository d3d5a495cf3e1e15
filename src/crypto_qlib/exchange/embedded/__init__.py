"""The simulated venue behind the OKX v5 API."""
