import torch

from optimum_ffp.criteria import order_items, wanda
from optimum_ffp.statistics import Statistics


def test_wanda_is_weight_times_norm_summed_over_outputs_and_columns():
    weight = torch.tensor([[1.0, -2.0, 0.0, 3.0], [0.5, 0.0, -1.0, 1.0]])
    inputs = torch.tensor([[1.0, 0.0, 2.0, 1.0], [1.0, 3.0, 0.0, 1.0]])
    found = Statistics(inputs.T @ inputs, inputs.mean(0), 2)
    columns = weight.abs().sum(0) * inputs.norm(dim=0)
    assert torch.allclose(wanda(weight, found, 1), columns)
    assert torch.allclose(wanda(weight, found, 2), torch.stack([columns[:2].sum(), columns[2:].sum()]))
    assert order_items("wanda", weight, found, 1).tolist() == torch.argsort(-columns, stable=True).tolist()
