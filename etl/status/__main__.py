"""`python -m etl.status`: how each sync fares."""

from etl.status import main

if __name__ == "__main__":
    main()
