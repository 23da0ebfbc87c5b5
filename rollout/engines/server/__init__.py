"""A CPU server that speaks vLLM 0.24.0's or SGLang 0.5.14's HTTP protocol around the local engine.

The clients, weight sync from disk and fault handling run against it unchanged, without a GPU. It answers the routes
that they use. What differs from the real servers: log-probs are taken before top-p in both dialects (vLLM renormalises
over what top-p keeps), an aborted request comes back without the tokens it had, pause modes that freeze running
requests are refused, and hits in the prefix cache are counted as a cache of 16-token blocks would have them, though
nothing is cached.
"""
