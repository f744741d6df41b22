"""Generate the modeling code that is saved in checkpoints from a template.

    python -m optimum_ffp.modeling.generate                                  # all families of this package
    python -m optimum_ffp.modeling.generate starcoder2 --folder my_package   # a family of another package

A family whose layers are built like Llama's only needs a family record. Other families override blocks of
`base.py.jinja` in `templates/<model_type>.py.jinja`.
"""

import argparse
from pathlib import Path

import transformers
from jinja2 import Environment, PackageLoader, StrictUndefined
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, MODEL_MAPPING_NAMES

from .auto import attention_of
from .families import FAMILIES, Family


TEMPLATES = Environment(
    loader=PackageLoader("optimum_ffp.modeling"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)


def render(family: Family) -> str:
    """Render the modeling code that is saved in checkpoints of a family, a model type of transformers."""
    causal = getattr(transformers, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[family.model_type])
    config = CONFIG_MAPPING[family.model_type]()
    template = TEMPLATES.select_template([f"{family.model_type}.py.jinja", "base.py.jinja"])
    return template.render(
        family=family,
        prefix=family.class_prefix,
        module=causal.__module__,
        causal=causal.__name__,
        model=MODEL_MAPPING_NAMES[family.model_type],
        layer=next(iter(causal._no_split_modules)),
        base=causal.base_model_prefix,
        rotary=hasattr(config, "rope_parameters"),
        needs_eager=bool(attention_of(config)),
    )


def main() -> None:
    """Write the modeling code of the given model types."""
    parser = argparse.ArgumentParser(description="Generate the modeling code that is saved in checkpoints.")
    families = [name for name, family in FAMILIES.items() if family.classes]
    parser.add_argument("model_types", nargs="*", default=families, help="Default: all families of this package.")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parent, help="Default: this package.")
    args = parser.parse_args()
    for model_type in args.model_types:
        family = FAMILIES.get(model_type, Family(model_type))
        (args.folder / f"{family.modeling_module}.py").write_text(render(family), encoding="utf-8")


if __name__ == "__main__":
    main()
