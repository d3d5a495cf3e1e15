"""``python -m crypto_qlib`` is the command ``crypto-qlib``."""

from crypto_qlib.cli.main import main

if __name__ == "__main__":
    main()
