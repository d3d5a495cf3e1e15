"""How does the simulated venue look from outside? OKX's v5 API on loopback, for unmodified clients."""
