"""The HTML report of a run, and the comparison of several: `python -m megatron_opid.report RUN_DIR`."""
