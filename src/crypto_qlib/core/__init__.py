"""What is an instrument, an order, a position, a margin? Pure: no I/O, no clock, no pandas, no Qlib, no ccxt."""
