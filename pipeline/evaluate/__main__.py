"""`python -m pipeline.evaluate`."""

from pipeline.__main__ import main

if __name__ == "__main__":
    main("evaluate")
