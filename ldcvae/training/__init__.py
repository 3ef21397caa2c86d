"""The two training phases, without Ray and without files: state in, checkpoints and progress out."""
