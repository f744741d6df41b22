"""The Hugging Face Hub: names, uploads, and validation of checkpoints."""
