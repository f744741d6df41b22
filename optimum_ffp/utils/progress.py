"""Progress bars, alike in every stage."""

from tqdm.auto import tqdm
from transformers.utils import logging


def progress_bar(total: int, description: str, unit: str) -> tqdm:
    """A tqdm bar that follows transformers' switch (`transformers.utils.logging.disable_progress_bar`)."""
    return tqdm(
        total=total, desc=description, unit=unit, disable=not logging.is_progress_bar_enabled(), dynamic_ncols=True
    )
