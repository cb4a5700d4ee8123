"""Tiny models need no second thread; on a busy machine it would only wait at barriers."""

import torch

torch.set_num_threads(1)
