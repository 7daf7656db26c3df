"""The wire: OpenAI types, server-sent events, and the one map from errors to HTTP."""
