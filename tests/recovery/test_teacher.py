"""Where the dense model of a pruned one is found."""

import pytest

from optimum_ffp import FFPError
from optimum_ffp.modeling.loading import LoadOptions, read_model_config
from optimum_ffp.recovery.teacher import read_teacher


def test_the_record_names_the_dense_model_with_its_revision(hub, pruned, folder):
    # The revision of the pruned model is not that of another.
    options = LoadOptions(revision="of-the-pruned-model", cache_dir="cache")
    given = read_teacher(str(folder), "named", options, lambda name, read_with: read_with)
    assert given == ("named", LoadOptions(cache_dir="cache"))
    name, found = read_teacher(str(folder), pruned[0].model_id, LoadOptions(), read_model_config)
    assert name == pruned[0].model_id and found.model_type == "llama"


def test_a_dense_model_that_is_not_known(tmp_path, folder):
    with pytest.raises(FFPError, match="has no record of its pruning; copy ffp_config.json from the checkpoint"):
        read_teacher(str(tmp_path), "named", LoadOptions(), read_model_config)
    (tmp_path / "ffp_config.json").write_text('{"policy": {}}')
    with pytest.raises(FFPError, match="is needed: it has no record of it; name it by --teacher"):
        read_teacher(str(tmp_path), None, LoadOptions(), read_model_config)
