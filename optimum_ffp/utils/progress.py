"""Progress bars of all stages."""

from tqdm.auto import tqdm
from transformers.utils import logging

from .processes import is_main


def progress_bar(total: int, description: str, unit: str, shown: bool = True) -> tqdm:
    """Return a tqdm bar that `transformers.utils.logging.disable_progress_bar` disables."""
    disabled = not (shown and is_main() and logging.is_progress_bar_enabled())
    return tqdm(total=total, desc=description, unit=unit, disable=disabled, dynamic_ncols=True)
