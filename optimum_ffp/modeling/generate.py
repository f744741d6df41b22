"""Writes the files of code that checkpoints carry, all from one template.

    python -m optimum_ffp.modeling.generate                                  # of all families of this package
    python -m optimum_ffp.modeling.generate starcoder2 --folder my_package   # of one from outside

A family whose layers are built as Llama's needs nothing but its record. What others need stands in
`templates/<model_type>.py.jinja`: the blocks of `base.py.jinja` that differ.
"""

import argparse
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING, MODEL_MAPPING

from .families import FAMILIES, Family


TEMPLATES = Environment(
    loader=PackageLoader("optimum_ffp.modeling"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(family: Family) -> str:
    """The code that checkpoints of a family carry.

    Args:
        family: Its record; the names of its classes come from transformers.

    Raises:
        KeyError: If transformers has no causal LM of that model type.
    """
    config_class = CONFIG_MAPPING[family.model_type]
    causal, model = MODEL_FOR_CAUSAL_LM_MAPPING[config_class], MODEL_MAPPING[config_class]
    prefix = causal.__name__.removesuffix("ForCausalLM").removesuffix("LMHeadModel")
    template = TEMPLATES.select_template([f"{family.model_type}.py.jinja", "base.py.jinja"])
    return template.render(
        family=family,
        title=family.title or prefix,
        prefix=prefix,
        module=causal.__module__,
        causal=causal.__name__,
        model=model.__name__,
        layer=next(iter(causal._no_split_modules)),
        base=causal.base_model_prefix,
        rotary=hasattr(config_class(), "rope_parameters"),
    )


def main() -> None:
    """Writes what the command line asks for."""
    parser = argparse.ArgumentParser(description="Writes the files of code that checkpoints carry.")
    parser.add_argument("model_types", nargs="*", default=[*FAMILIES], help="all of this package if none is given")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="where to, default here")
    args = parser.parse_args()
    for model_type in args.model_types:
        family = FAMILIES.get(model_type, Family(model_type))
        (args.folder / f"{family.modeling_module}.py").write_text(render(family), encoding="utf-8")


if __name__ == "__main__":
    main()
