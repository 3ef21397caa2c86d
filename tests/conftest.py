"""One torch thread: the tests' matrices are small, and threads that fight over two cores make them slower."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import torch

torch.set_num_threads(1)
