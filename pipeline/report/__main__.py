"""`python -m pipeline.report`."""

from pipeline.__main__ import main

if __name__ == "__main__":
    main("report")
