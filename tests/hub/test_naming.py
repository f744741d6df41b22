from optimum_ffp.hub.naming import model_name, short_name, without_folders


def test_short_name_keeps_hub_ids_and_drops_folders(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    assert short_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert short_name(str(tmp_path / "model")) == "model"
    for source in ("owner/model", "owner/pruned@v1.0"):
        assert short_name(source) == source
    assert short_name("/data/a:b") == "a:b"
    monkeypatch.chdir(tmp_path / "model")
    assert (short_name("."), short_name(".."), model_name("./")) == ("model", tmp_path.name, "model")
    assert (model_name("meta-llama/Llama-2-7b-hf"), model_name("/models/smol.gguf")) == ("Llama-2-7b-hf", "smol")


def test_published_record_hides_local_folders_at_any_depth():
    record = {"dataset": "/data/wiki", "eval_dataset": None, "seed": 3, "more": {"base_model": "/m/x.gguf", "at": "/"}}
    assert without_folders(record) == {
        "dataset": "./wiki",
        "eval_dataset": None,
        "seed": 3,
        "more": {"base_model": "x.gguf", "at": "/"},
    }
    assert record["dataset"] == "/data/wiki"
