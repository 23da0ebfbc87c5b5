import os

import torch

# Read by Triton when a kernel is defined, whichever test imports it first: without a GPU kernels run in the interpreter.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"
