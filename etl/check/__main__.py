"""`python -m etl.check`: what a run would find."""

from etl.check import main

if __name__ == "__main__":
    main()
