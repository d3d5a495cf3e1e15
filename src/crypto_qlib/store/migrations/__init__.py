"""How the tables of an existing ledger become those of the present."""
