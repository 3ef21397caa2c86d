"""`python -m pipeline.train`."""

from pipeline.__main__ import main

if __name__ == "__main__":
    main("train")
