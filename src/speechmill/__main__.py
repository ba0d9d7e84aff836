"""``python -m speechmill`` is the command ``speechmill``."""

from speechmill.cli import main

if __name__ == "__main__":
    main()
