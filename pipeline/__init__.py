"""The stages of a run on Ray, and the floors they stand on: judge, remote, store, config, and below them `ldcvae`.

`python -m pipeline --help` lists the stages. A stage imports the floors; `run`, `tune` and `compare`
also other stages.
"""
