"""What lies on a run's storage: files written whole, manifests, checkpoints, the history, the model, the data set."""
