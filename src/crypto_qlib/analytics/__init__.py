"""How good was it? Arrays in, numbers out."""
