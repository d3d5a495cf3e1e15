"""crypto_qlib: leveraged long/short trading of crypto perpetual swaps, built on Qlib."""
