"""The stages of a run on Ray, and the floors they stand on: judge, remote, store, config, and below them `ldcvae`.

`python -m pipeline --help` lists the stages. A stage imports the floors; `run`, `tune` and `compare`
also other stages.
"""

import sys
from importlib.util import find_spec

if any(find_spec(name) is None for name in ("fsspec", "pydantic", "ray", "torch", "yaml")):
    # Another Python than the one that `make demo` or pip has set up: a traceback would not say so.
    sys.exit(
        f"error: {sys.executable} has not the packages that LDC-VAE needs; `. .venv/bin/activate` takes the "
        "environment that `make demo` sets up, `pip install .` installs them into this one"
    )
