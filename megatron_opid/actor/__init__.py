import warnings

# What Megatron-Core 0.16.1 makes Python and torch say on every rank of every run, and no user can act on.
for _message in (
    r"(Transformer Engine and )?Apex (is|are) not installed",
    r"The \.grad attribute of a Tensor that is not a leaf Tensor is being accessed",
    r"`torch\.distributed\.(reduce_scatter_tensor|all_gather_into_tensor)` is deprecated",
    r"`load_state_dict` is deprecated and will be removed in future versions",
    r"Please use DTensor instead and we are deprecating ShardedTensor",
):
    warnings.filterwarnings("ignore", message=_message)
