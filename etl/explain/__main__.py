"""`python -m etl.explain`: everything about one user."""

from etl.explain import main

if __name__ == "__main__":
    main()
