"""`python -m etl`: one sync or all of them."""

from etl.cli import main

if __name__ == "__main__":
    main()
