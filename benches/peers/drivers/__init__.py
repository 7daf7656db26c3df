"""One script per engine, run by that engine's own Python. Only `octavo_llm` imports octavo."""
