from optimum_ffp.config.fields import read_mix
from optimum_ffp.hub.naming import dataset_name, escape, model_name, short_name, without_folders


def test_hub_ids_stay_and_folders_go(tmp_path, monkeypatch):
    (tmp_path / "model").mkdir()
    assert short_name("meta-llama/Llama-2-7b-hf") == "meta-llama/Llama-2-7b-hf"
    assert short_name(str(tmp_path / "model")) == "model"
    for source in ("owner/text:english", "owner/pruned@v1.0"):
        assert short_name(source) == source
    assert short_name("/data/a:b") == "a:b"
    monkeypatch.chdir(tmp_path / "model")
    assert (short_name("."), short_name(".."), model_name("./")) == ("model", tmp_path.name, "model")
    assert escape("my | <text>.txt") == r"my \| &lt;text>.txt"
    assert (model_name("meta-llama/Llama-2-7b-hf"), model_name("/models/smol.gguf")) == ("Llama-2-7b-hf", "smol")
    assert dataset_name("/data/my_text.jsonl") == "my_text.jsonl" and "itself" in dataset_name("self")


def test_every_text_of_a_mix_is_named_without_its_folder():
    mix = "/data/my.txt:0.5,owner/text:english:0.3,self:0.2"
    published = without_folders({"dataset": mix, "other_texts": [{"dataset": "/data/my.txt"}]})
    assert published == {
        "dataset": "my.txt:0.5,owner/text:english:0.3,self:0.2",
        "other_texts": [{"dataset": "my.txt"}],
    }
    assert dataset_name(mix) == "50 % my.txt, 30 % owner/text:english, 20 % text sampled from the model itself"
    assert dataset_name("wikitext2,c4") == "wikitext2, c4"


def test_a_record_is_published_without_folders_at_any_depth():
    record = {"dataset": "/data/wiki", "eval_dataset": None, "seed": 3, "more": {"base_model": "/m/x.gguf", "at": "/"}}
    assert without_folders(record) == {
        "dataset": "wiki",
        "eval_dataset": None,
        "seed": 3,
        "more": {"base_model": "x.gguf", "at": "/"},
    }
    assert record["dataset"] == "/data/wiki"


def test_files_of_one_name_stay_apart():
    published = without_folders({"dataset": "/data/en/text.txt:0.5,/data/de/text.txt:0.5"})["dataset"]
    assert published == "text.txt:0.5,text.txt-2:0.5" and len(read_mix(published)) == 2
