"""Questions about speed and memory, with answers on record. `benches/README.md` says how to run and read them."""
