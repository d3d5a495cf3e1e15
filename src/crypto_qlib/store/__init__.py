"""Where does state live? Parquet lake, ledger database, model artefacts, paths."""
