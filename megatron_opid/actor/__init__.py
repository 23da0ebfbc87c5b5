import warnings

# Megatron-Core says at import that Apex and Transformer Engine are absent; on a CPU that is meant.
warnings.filterwarnings(
    "ignore", message=r"(Transformer Engine and )?Apex (is|are) not installed", category=UserWarning
)
