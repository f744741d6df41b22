"""Mixtures of experts, which lose whole experts."""

from .base import Experts, Family


GROUPED = Experts(count="n_routed_experts", grouped=True)
MIXTURES = (
    Family(model_type="qwen3_moe", experts=Experts()),
    # Shared experts, which every token passes, stay.
    Family(model_type="qwen2_moe", experts=Experts()),
    Family(model_type="olmoe", experts=Experts()),
    Family(model_type="mixtral", experts=Experts(count="num_local_experts")),
    Family(
        model_type="granitemoe",
        experts=Experts(
            count="num_local_experts",
            router="block_sparse_moe.router",
            module="block_sparse_moe.experts",
        ),
    ),
    Family(model_type="deepseek_v3", experts=GROUPED),
    Family(model_type="glm4_moe", experts=GROUPED),
)
