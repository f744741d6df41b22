import atexit
import os
import shutil
import tempfile


# Here, since huggingface_hub reads it once, when it is imported.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Modelling code of checkpoints is copied to a folder that other processes of the same tests don't write to.
os.environ["HF_MODULES_CACHE"] = tempfile.mkdtemp(prefix="modules-")
atexit.register(shutil.rmtree, os.environ["HF_MODULES_CACHE"], ignore_errors=True)
