"""Wrong input: command, exit code 2, one word of the one line; nothing is written."""

import json
from shutil import copytree

import pytest
from transformers import BertConfig


# Words of the command line, in which MODEL, DATA and the names in `files` stand for paths.
PRUNE = "prune -m MODEL OUT --dataset DATA --method uniform --device cpu --seq-len 24 --num-samples 8 --eval-samples 3"
RECOVER = "recover -m MODEL OUT --dataset DATA --device cpu"
EVALUATE = "evaluate -m MODEL --dataset DATA --device cpu --no-speed --seq-len 24 --eval-samples 2"
TABLE = [
    ("prune OUT", "--model"),
    ("prune -m MODEL --sparsty 0.3", "--sparsity"),
    ("prune --sparsty", "ffp prune --help"),
    ("push EMPTY", "ffp push --help"),
    ("prune -m MODEL --device-map auto", "--device-map"),
    (f"{PRUNE} --sparsity 0.2 30", "0.3"),
    (f"{PRUNE} --sparsity much", "sparsity"),
    (f"{PRUNE} --sparsity 0.1 0.1000000001", "folder"),
    (f"{PRUNE} --num-samples 0", "num-samples"),
    (f"{PRUNE} --seq-len 65", "positions"),
    (f"{PRUNE} --dtype float7", "float7"),
    (f"{PRUNE} --device warp", "warp"),
    (f"{PRUNE} --offload nowhere", "offload"),
    (f"{PRUNE} --num-processes 0", "num-processes"),
    (f"{PRUNE} --report-to mlflow", "mlflow"),
    (f"{PRUNE} --config BROKEN", "JSON"),
    (f"{PRUNE} --config nowhere.json", "nowhere.json"),
    (f"{PRUNE} --config CODE", "install"),
    (f"{PRUNE} --config BANDIT", "bandit"),
    (f"{PRUNE} --dataset BROKEN.jsonl", "BROKEN.jsonl"),
    (f"{PRUNE} --dataset SHORT.txt", "window"),
    (f"{PRUNE} --dataset wikitext2:0.5,c4:0.2", "share"),
    (f"{PRUNE} -m nowhere/folder/model", "folder"),
    (f"{PRUNE} -m nobody/nothing", "nobody/nothing"),
    (f"{PRUNE} -m nowhere.gguf", "nowhere.gguf"),
    (f"{PRUNE} -m EMPTY", "config.json"),
    (f"{PRUNE} -m BERT", "bert"),
    (f"{PRUNE} -m QUANTIZED", "precision"),
    (f"{PRUNE} -m OWN_CODE", "code"),
    (f"{PRUNE} -m TRUNCATED", "TRUNCATED"),
    (f"{PRUNE} --warm-start EMPTY", "agent"),
    (f"{PRUNE} --warm-start EMPTY --plan", "agent"),
    (f"{PRUNE} --memory 100KiB --context 99999999999999999999999", "100000000"),
    (f"{PRUNE} --params 120%", "80%"),
    (f"{PRUNE} --method no-search --speedup 1.2 --costs TIMES", "costs"),
    (f"{PRUNE} --method no-search --speedup 1.2 --costs NESTED", "JSON"),
    (f"{PRUNE} -m PRUNED --base-model OTHER --sparsity 0.5", "--base-model"),
    (f"{PRUNE} -m DAMAGED --base-model MODEL", "license"),
    (f"{RECOVER} -m DAMAGED --teacher MODEL", "license"),
    (f"{EVALUATE} -m DAMAGED", "license"),
    ("push DAMAGED me/it", "license"),
    ("quantize -m MODEL OUT --scheme w8a8", "pruned"),
    ("quantize -m MODEL OUT --scheme w4a16 --dataset DATA --num-samples 0", "num-samples"),
    ("prune -m MODEL EMPTY --dataset DATA", "overwrite"),
    ("prune -m MODEL MODEL --dataset DATA --overwrite", "input"),
    ("prune -m MODEL THESIS --dataset DATA --overwrite", "thesis.txt"),
    (f"{RECOVER}", "pruned"),
    (f"{RECOVER} -m nowhere/folder/model", "folder"),
    (f"{RECOVER} --max-tokens many", "tokens"),
    (f"{RECOVER} --learning-rate x", "learning-rate"),
    (f"{RECOVER} --learning-rat 1", "--learning-rate"),
    (f"{RECOVER} --preset paper", "standard"),
    (f"{RECOVER} --config BROKEN", "JSON"),
    (f"{RECOVER} --num-processes 0", "num-processes"),
    (f"{RECOVER} --report-to mlflow", "mlflow"),
    (f"{RECOVER} -m PRUNED --teacher /nowhere", "/nowhere"),
    (f"{RECOVER} -m PRUNED --teacher MODEL --seq-len 65", "positions"),
    (f"{RECOVER} -m PRUNED --teacher MODEL --seq-len 65 --plan", "positions"),
    (f"{EVALUATE} --seq-len 1", "seq-len"),
    (f"{EVALUATE} --seq-len 65", "64 positions"),
    (f"{EVALUATE} --eval-samples 0", "eval-samples"),
    (f"{EVALUATE} --limit 0 --tasks boolq", "limit"),
    (f"{EVALUATE} --num-fewshot -1 --tasks boolq", "num-fewshot"),
    (f"{EVALUATE} --dataset c4,self", "self"),
    (f"{EVALUATE} --dataset nowhere.txt", "nowhere.txt"),
    (f"{EVALUATE} --dataset wikitext2", "offline"),
    (f"{EVALUATE} --json /proc/no/file.json", "written"),
    (f"{EVALUATE} --json .", "folder"),
    (f"{EVALUATE} -m ./nowhere", "nowhere"),
    (f"{EVALUATE} -m nowhere.gguf", "nowhere.gguf"),
    (f"{EVALUATE} -m nobody/nothing", "nobody/nothing"),
    (f"{EVALUATE} --baseline ./nowhere", "nowhere"),
    (f"{EVALUATE} --dtype float7", "float7"),
    (f"{EVALUATE} --device warp", "warp"),
    ("export -m MODEL OUT --outtype q2_k", "q8_0"),
    ("export -m nowhere/folder/model OUT", "folder"),
    ("push EMPTY me/it", "weights"),
    ("push nowhere me/it", "folder"),
]


@pytest.fixture
def files(save_tiny_model, pruned, data_folder, tmp_path):
    model = save_tiny_model()
    config = json.loads((model / "config.json").read_text())
    paths = {"MODEL": model, "DATA": data_folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    paths |= {"PRUNED": pruned[1], "OTHER": save_tiny_model("qwen3")}
    copytree(pruned[1], tmp_path / "DAMAGED")
    record = json.loads((pruned[1] / "ffp_config.json").read_text())
    record["provenance"]["license"] = 5
    (tmp_path / "empty").mkdir()
    contents = {
        "BROKEN": "{",
        "TIMES": '{"workload": "8+4", "dense": NaN, "units": []}',
        "NESTED": "[" * 1000 + "]" * 1000,
        "DAMAGED/ffp_config.json": json.dumps(record),
        "CODE": '{"criterion": "os.path"}',
        "BANDIT": '{"agent": "bandit"}',
        "BROKEN.jsonl": "{",
        "SHORT.txt": "w5 w6",
        "THESIS/thesis.txt": "mine",
        "QUANTIZED/config.json": json.dumps(config | {"quantization_config": {"quant_method": "gptq"}}),
        "OWN_CODE/config.json": json.dumps(config | {"auto_map": {"AutoModelForCausalLM": "modeling_other.Other"}}),
        "BERT/config.json": BertConfig().to_json_string(),
        "TRUNCATED/config.json": json.dumps(config),
    }
    for name, text in contents.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        paths[name.partition("/")[0]] = tmp_path / name.partition("/")[0]
    (tmp_path / "TRUNCATED" / "model.safetensors").write_bytes((model / "model.safetensors").read_bytes()[:1000])
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (tmp_path / "TRUNCATED" / name).write_bytes((model / name).read_bytes())
    return paths


@pytest.mark.parametrize(("command", "word"), TABLE, ids=[command for command, _ in TABLE])
def test_invalid_input_is_one_line_error_with_exit_code_2(run_ffp, files, tmp_path, monkeypatch, command, word):
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    code, output, errors = run_ffp(*[files.get(word, word) for word in command.split()])
    assert code == 2 and "Traceback" not in errors + output
    (line,) = [line for line in errors.splitlines() if "error: " in line]
    assert word in line
    assert sorted(tmp_path.rglob("*")) == before
