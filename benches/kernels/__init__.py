"""One op at a time, beside what the library offers, each behind its correctness gate."""
