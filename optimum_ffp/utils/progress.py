"""Progress bars of all stages."""

from tqdm.auto import tqdm
from transformers.utils import logging


def progress_bar(total: int, description: str, unit: str) -> tqdm:
    """Return a tqdm bar that `transformers.utils.logging.disable_progress_bar` disables."""
    return tqdm(
        total=total, desc=description, unit=unit, disable=not logging.is_progress_bar_enabled(), dynamic_ncols=True
    )
