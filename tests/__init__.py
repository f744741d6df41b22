import os


# Here, since huggingface_hub reads it once, when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
