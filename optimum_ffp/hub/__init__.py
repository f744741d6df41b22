"""The Hub: names, uploads, and what is not to be trusted."""
