"""The engine: "auto" becomes numbers, steps are planned and carried out, requests become outputs."""
