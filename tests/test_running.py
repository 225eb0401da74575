"""Models of checkpoints, run for their maps: against the attentions that transformers itself gives out."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file

from qkspec import maps
from qkspec.activations import record
from qkspec.analysis import Settings, analyze, judge, measure_runs
from qkspec.checkpoints.sequence import find_runs, open_checkpoint
from qkspec.cli import main
from qkspec.errors import InputError
from qkspec.layouts.find import attention_layers
from qkspec.metrics import MEASURED, RANDOM
from qkspec.running import LENGTH, SEQUENCES, TextRunner

PAGE = "A head that attends to one token only has nothing left to learn from the others. " * 30


@pytest.fixture
def page(tmp_path):
    path = tmp_path / "page.txt"
    path.write_text(PAGE, encoding="utf-8")
    return path


def stretched(model):
    """The model with weights far from uniform maps, so that a wrong road would show."""
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2 and "embed" not in name and "wte" not in name:
                weight.mul_(8)
    return model.eval()


def gpt2(vocab=256, **options):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    known = {"n_positions": 32, "n_embd": 32, "n_layer": 2, "n_head": 4, "bos_token_id": 0, "eos_token_id": 0}
    return stretched(GPT2LMHeadModel(GPT2Config(vocab_size=vocab, attn_implementation="eager", **{**known, **options})))


def entropies(attentions, *, causal):
    """Row entropy / ln(row length) of (layers) maps (batch, heads, T, T), a naive mean over rows and batch."""
    out = []
    for attention in attentions:
        a = attention.double()
        rows = -(a * a.clamp_min(1e-300).log()).sum(-1)
        tokens = a.shape[-1]
        lengths = torch.arange(1, tokens + 1) if causal else torch.full((tokens,), tokens)
        keep = lengths > 1
        out.append((rows[..., keep] / lengths[keep].log()).mean(dim=(0, 2)))
    return torch.cat(out).numpy()


def test_a_text_of_bytes_against_the_attentions_of_transformers(tmp_path, page):
    model = gpt2()
    model.save_pretrained(tmp_path / "model")
    report = analyze([tmp_path / "model"], Settings(runner=TextRunner(page)))
    ids = torch.tensor(list(PAGE.encode())[: SEQUENCES * 32]).view(SEQUENCES, 32)
    with torch.no_grad():
        real = model(ids, output_attentions=True).attentions
    assert report.readings["measured_entropy"] == pytest.approx(entropies(real, causal=True), abs=1e-5)
    assert all(np.isfinite(report.readings.metric(name)).all() for name in MEASURED)
    assert {c.name: c for c in report.evidence(0)}["sparse"].metric == "measured_entropy"


def test_pictures_are_of_the_attentions_of_transformers(tmp_path, page):
    model = gpt2(n_positions=80)
    model.save_pretrained(tmp_path / "model")
    settings = Settings(runner=TextRunner(page), embeddings=True)
    report = analyze([tmp_path / "model"], settings)
    found = maps.draw(report, find_runs([str(tmp_path / "model")]), settings)
    ids = torch.tensor(list(PAGE.encode())[:80])[None]
    with torch.no_grad():
        real = model(ids, output_attentions=True).attentions
    assert sorted(found.given) == ["embedded", "measured"]
    for (key, codes), attention in zip(sorted(found.given["measured"].items()), real, strict=True):
        assert key in found.pictures
        np.testing.assert_allclose((codes / 255.0) ** 2, attention[0, :, :64, :64].numpy(), atol=1 / 255 + 1e-4)
    late = maps.draw(report, find_runs([str(tmp_path / "model")]), settings, seconds=-1)
    assert [len(own) for own in late.given.values()] == [1, 1]  # one module whatever it takes
    assert late.note == "the time for maps was over"


def test_given_activations_have_pictures_too(tmp_path):
    model = gpt2()
    model.save_pretrained(tmp_path / "model")
    ids = torch.tensor(list(PAGE.encode())[:64]).view(2, 32)
    save_file(record(model, ids), tmp_path / "x.safetensors")
    settings = Settings(activations=str(tmp_path / "x.safetensors"))
    runs = find_runs([str(tmp_path / "model")])
    found = maps.draw(judge(measure_runs(runs, settings), settings), runs, settings)
    with torch.no_grad():
        real = model(ids, output_attentions=True).attentions
    for (_, codes), attention in zip(sorted(found.given["measured"].items()), real, strict=True):
        np.testing.assert_allclose((codes / 255.0) ** 2, attention[0].numpy(), atol=1 / 255 + 1e-4)


def test_random_tokens_have_their_own_limit(tmp_path):
    model = gpt2(vocab=50)
    model.save_pretrained(tmp_path / "model")
    report = analyze([tmp_path / "model"], Settings(runner=TextRunner("random")))
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 50, (SEQUENCES, 32)))
    with torch.no_grad():
        real = model(ids, output_attentions=True).attentions
    assert report.readings["random_entropy"] == pytest.approx(entropies(real, causal=True), abs=1e-5)
    sparse = {c.name: c for c in report.evidence(0)}["sparse"]
    assert (sparse.metric, sparse.limit) == ("random_entropy", 0.46)


def test_a_tokenizer_beside_the_weights_is_used(tmp_path, page):
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(dict.fromkeys([*PAGE.split(), "<unk>"]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    folder = tmp_path / "model"
    model = gpt2(vocab=len(words))
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>").save_pretrained(folder)
    report = analyze([folder], Settings(runner=TextRunner(page)))
    ids = torch.tensor([words[word] for word in PAGE.split()])[: SEQUENCES * 32].view(-1, 32)
    with torch.no_grad():
        real = model(ids, output_attentions=True).attentions
    assert report.readings["measured_entropy"] == pytest.approx(entropies(real, causal=True), abs=1e-5)


def test_every_row_has_the_special_tokens_of_a_text(tmp_path, page):
    """BERT's heads look at [CLS] and [SEP]; rows cut out of one long text would lack them."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(dict.fromkeys(["[CLS]", "[SEP]", "[UNK]", *PAGE.split()]))}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 0), ("[SEP]", 1)]
    )
    torch.manual_seed(0)
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    config = BertConfig(vocab_size=len(words), max_position_embeddings=32, initializer_range=0.5, **size)
    config._attn_implementation = "eager"  # the only one that returns its maps
    model = BertModel(config).eval()
    model.save_pretrained(tmp_path / "bert")
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]").save_pretrained(tmp_path / "bert")
    report = analyze([tmp_path / "bert"], Settings(runner=TextRunner(page)))
    ids = torch.tensor([words[word] for word in PAGE.split()])
    rows = [[0, *ids[30 * row : 30 * row + 30], 1] for row in range(min(len(ids) // 30, SEQUENCES))]
    with torch.no_grad():
        real = model(torch.tensor(rows), output_attentions=True).attentions
    assert report.readings["measured_entropy"] == pytest.approx(entropies(real, causal=False), abs=1e-5)


def test_other_kinds_of_models_run_on_random_inputs(tmp_path):
    from transformers import T5Config, T5Model, ViTConfig, ViTModel

    torch.manual_seed(0)
    T5Model(T5Config(vocab_size=50, d_model=32, d_kv=8, d_ff=48, num_layers=2, num_heads=4)).save_pretrained(
        tmp_path / "t5"
    )
    size = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 48}
    ViTModel(ViTConfig(image_size=16, patch_size=4, **size)).save_pretrained(tmp_path / "vit")
    for name, heads in (("t5", 3 * 2 * 4), ("vit", 2 * 4)):
        report = analyze([tmp_path / name], Settings(runner=TextRunner("random")))
        assert len(report.readings) == heads
        assert np.isfinite(report.readings["random_entropy"]).all(), name
        assert report.readings["random_entropy"].min() > 0.8, name


@pytest.mark.parametrize("preset", ["gpt-demo", "vit-demo"])
def test_a_run_of_our_own_is_run_by_our_own_models(tmp_path, preset):
    from qkspec.activations import record
    from qkspec.metrics import on_activations
    from qkspec.train.config import TrainConfig
    from qkspec.train.models import registry

    out = tmp_path / "run"
    small = ["--layers", "2", "--steps", "2", "--batch", "2", "--eval-batches", "1", "--threads", "1", "-q"]
    assert main(["train", "--preset", preset, "--qk-norm", *small, "-o", str(out)]) == 0
    report = analyze([out], Settings(runner=TextRunner("random")))
    assert np.isfinite(report.readings["random_entropy"]).all()

    from safetensors.torch import load_file

    from qkspec.checkpoints.sequence import open_checkpoint
    from qkspec.layouts.find import attention_layers

    last = out / "step-000002"
    config = TrainConfig(**json.loads((last / "trainer_state.json").read_text())["train_config"])
    module = registry.module(config.model)
    model = module.build(config).eval()
    model.load_state_dict(load_file(last / "model.safetensors"))
    rng = np.random.default_rng(0)
    if preset == "gpt-demo":
        given = torch.from_numpy(rng.integers(0, config.vocab, (SEQUENCES, min(config.context, LENGTH))))
    else:
        given = torch.from_numpy(rng.standard_normal((SEQUENCES, 1, 8, 8), dtype=np.float32))
    seen = record(model, given, config=module.config_json(config))
    layers = attention_layers(open_checkpoint(str(last)))
    want = np.concatenate([on_activations(layer, seen[layer.name])["measured_entropy"] for layer in layers])
    assert report.readings["random_entropy"][-len(want) :] == pytest.approx(want, abs=1e-5)


@pytest.mark.parametrize(
    ("claim", "words"),
    [
        ({"width": 6144}, r"lm_head\.weight of shape \(64, 6144\), and it is \(64, 16\)"),
        ({"layers": 900}, "weights are not in the checkpoint"),
        ({"width": "16"}, "width must be int"),
        ({"depth": 3}, "'depth' is not a setting"),
        ({"layers": 10**9}, "is outside 1 to"),
        ({"model": "swin", "stages": "1000000000"}, "no list of block counts"),
    ],
)
def test_settings_that_are_not_of_the_weights_are_refused_before_they_are_built(tmp_path, claim, words):
    import resource

    from qkspec.train.config import TrainConfig
    from qkspec.train.models import gpt

    config = TrainConfig(layers=1, width=16, heads=2, context=8, vocab=64)
    state = {name: weight.numpy() for name, weight in gpt.build(config).state_dict().items()}
    save_file(state, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text(json.dumps(gpt.config_json(config)))
    record = {"train_config": config.as_dict() | claim}
    (tmp_path / "trainer_state.json").write_text(json.dumps(record))
    runner, checkpoint = TextRunner("random"), open_checkpoint(tmp_path)
    (layer,) = attention_layers(checkpoint)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(InputError, match=f"cannot be run.*{words}"):
        runner(checkpoint, layer)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000, "kB"


def one_remark(folder, text):
    """The one line on why a model was not run, having seen that its heads were judged all the same."""
    report = analyze([folder], Settings(runner=TextRunner(text)))
    for name in (*MEASURED, *RANDOM):
        assert np.isnan(report.readings.metric(name)).all()
    assert {c.name: c for c in report.evidence(0)}["sparse"].metric == "predicted_entropy"
    (found,) = [r for r in report.checkpoints[0].remarks if "cannot be run" in r]
    assert "\n" not in found
    return found


def test_what_cannot_be_run_is_said_in_one_line(tmp_path, page, sample):
    assert "weights are not in the checkpoint" in one_remark(sample / "step-000600", "random")
    gpt2(n_positions=1).save_pretrained(tmp_path / "one")
    assert "context is one token" in one_remark(tmp_path / "one", "random")
    gpt2(vocab=50).save_pretrained(tmp_path / "model")
    assert "tokenizer is not beside" in one_remark(tmp_path / "model", page)
    from transformers import ViTConfig, ViTModel

    size = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "intermediate_size": 48}
    ViTModel(ViTConfig(image_size=16, patch_size=4, **size)).save_pretrained(tmp_path / "vit")
    assert "reads images" in one_remark(tmp_path / "vit", page)


def test_code_of_a_checkpoint_is_never_run(tmp_path):
    folder = tmp_path / "model"
    gpt2().save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "evil.Config", "AutoModel": "evil.Model"}
    config["architectures"] = ["utils.logging"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "evil.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'w')\nclass Config: pass\nclass Model: pass\n")
    report = analyze([folder], Settings(runner=TextRunner("random")))
    assert np.isfinite(report.readings["random_entropy"]).all()
    assert not (tmp_path / "mark").exists()


@pytest.mark.parametrize("claim", [{"n_layer": 10_000_000}, {"n_embd": 0}, {"n_head": 0}])
def test_a_config_that_claims_nonsense_is_a_remark(tmp_path, claim):
    gpt2().save_pretrained(tmp_path / "model")
    runner, checkpoint = TextRunner("random"), open_checkpoint(tmp_path / "model")
    (layer, *_) = attention_layers(checkpoint)
    with pytest.raises(InputError, match="cannot be run"):
        runner(replace(checkpoint, config={**checkpoint.config, **claim}), layer)


def test_no_kernel_that_a_config_names_is_looked_for(tmp_path):
    gpt2().save_pretrained(tmp_path / "model")
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(json.dumps(config | {"attn_implementation": "nobody/kernel"}))
    report = analyze([tmp_path / "model"], Settings(runner=TextRunner("random")))
    assert np.isfinite(report.readings["random_entropy"]).all()


def test_a_gate_does_not_pass_without_the_map_that_was_asked_for(tmp_path, capsys):
    model = gpt2()
    with torch.no_grad():
        model.transformer.h[0].mlp.c_fc.weight[0, 0] = torch.nan
    model.save_pretrained(tmp_path / "model")
    folder = str(tmp_path / "model")
    assert main(["gate", folder, "--fail-on", "malignant", "-q"]) == 0
    assert main(["gate", folder, "--fail-on", "malignant", "--text", "random", "-q"]) == 3
    told = capsys.readouterr()
    assert "map of its inputs" in told.out + told.err
    report = analyze([folder], Settings(runner=TextRunner("random")))
    assert any("h.1.attn: its maps in a run" in remark for fact in report.checkpoints for remark in fact.remarks)


def test_a_text_that_is_none(tmp_path):
    with pytest.raises(InputError, match="cannot be read"):
        TextRunner(tmp_path / "nothing.txt")
    (tmp_path / "short.txt").write_text("short")
    with pytest.raises(InputError, match="too few"):
        TextRunner(tmp_path / "short.txt")


def test_from_the_command_line(tmp_path, page, capsys):
    gpt2().save_pretrained(tmp_path / "model")
    model, out = str(tmp_path / "model"), str(tmp_path / "out")
    assert main(["analyze", model, "--text", str(page), "-q", "-o", out]) == 0
    assert "measured on real activations" in " ".join(capsys.readouterr().out.split())
    assert main(["gate", model, "--text", "random", "--max-sigma1", "1e9", "-q"]) == 0
    assert main(["gate", out, "--max-sigma1", "1e9", "-q"]) == 0
    capsys.readouterr()
    assert main(["analyze", out, "--text", "random"]) == 2
    assert "holds no model" in capsys.readouterr().err
    assert main(["analyze", model, "--text", "random", "--activations", "x.safetensors"]) == 2
    assert main(["analyze", model, "--text", str(tmp_path / "none")]) == 3
