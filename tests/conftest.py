import os

import torch

# Read by Triton when a kernel is defined, whichever test imports it first: without a GPU it interprets kernels.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
