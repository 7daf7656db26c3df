"""One rank's work: a `Step` in, sampled tokens out. Tensors live here; decisions do not."""
