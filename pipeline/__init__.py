"""The stages of a run on Ray, and the floors they stand on: judge, remote, store, config, and below them `ldcvae`.

`python -m pipeline --help` lists the stages. A stage imports the floors; `run`, `tune` and `compare`
also other stages.
"""

import sys
from importlib.util import find_spec

if any(find_spec(name) is None for name in ("fsspec", "pydantic", "ray", "torch", "yaml")):
    # Another Python than the one that `make demo` or pip has set up.
    _MISSING = (
        f"{sys.executable} has not the packages that LDC-VAE needs; `. .venv/bin/activate` takes the "
        "environment that `make demo` sets up, `pip install .` installs them into this one"
    )
    if sys.argv[0] == "-m":  # python -m pipeline.…, while its package is imported: a traceback would hide the remedy
        sys.exit(f"error: {_MISSING}")
    raise ImportError(_MISSING)
