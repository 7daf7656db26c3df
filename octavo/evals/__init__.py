"""Quality: what is asked, how replies are scored, and the report. Models are passed in as functions."""
