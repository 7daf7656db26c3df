"""The front process: HTTP in, frames to an engine process out. No tensor library is ever loaded here."""
