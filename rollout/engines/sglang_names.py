"""Words that SGLang does not know, of our client and of our hooks in its workers."""

# The load format of /update_weights_from_distributed by which everything comes in one request, which names nothing.
STREAM = "opid_stream"
# Actions of /weights_checker: whether weights can come by STREAM; each rank's part of each weight's digest.
LAYOUT, DIGESTS = "opid_layout", "opid_digests"
# The version of weights that nobody has synced; also our --weight-version at a server's start.
UNSYNCED = "unsynced"
