"""Specs are read, typed and refused with the variant, the pass and the way out."""

from __future__ import annotations

from pathlib import Path

import pytest

from cluster.errors import ConfigError
from train_jobs.compression.prune import PruneConfig
from train_jobs.compression.quantize import QuantizeConfig
from train_jobs.compression.spec import KINDS, NAMED, CompressSpec, chosen, default_spec, load_spec, parsed

SPECS = sorted((Path(__file__).resolve().parents[4] / "benchmarks" / "specs").glob("*.yaml"))


def test_a_pass_is_a_name_or_a_name_with_settings() -> None:
    spec = parsed({"variants": {"a": ["int8", ], "b": [{"prune": {"ratio": 0.5}}, {"int8": None}]}}, where="x")
    assert spec.variants["a"][0].config == QuantizeConfig()
    prune, int8 = spec.variants["b"]
    assert (prune.kind, prune.config) == ("prune", PruneConfig(ratio=0.5))
    assert int8 == spec.variants["a"][0]
    assert CompressSpec.model_validate(spec.model_dump()) == spec, "what is written is read again"
    assert CompressSpec.model_validate_json(spec.model_dump_json()) == spec


@pytest.mark.parametrize(
    ("variants", "told"),
    [
        ({"a": ["fp8"]}, "'fp8' is no pass; passes: prune, "),
        ({"a": [{"prune": {"ratio": 1.5}}]}, "less than 1"),
        ({"a": [{"prune": {"rate": 0.5}}]}, "Extra inputs are not permitted"),
        ({"a": [{"prune": {}, "int8": {}}]}, "names 2 passes"),
        ({"a": [3]}, "3 is no pass; write its name"),
        ({"a": ["int8", "prune"]}, "a: prune trains a module and cannot follow a pass on the graph; put it first"),
        ({"a": ["int8", "bf16"]}, "a: int8 and bf16 each set the precision; keep one of them"),
        ({"a": ["qat", "optimise"]}, "a: qat makes the int8 graph itself; put it last"),
        ({"a": ["sparsify", "low_rank"]}, "a: low_rank makes new weights, and what sparsify set to zero would be gone"),
        ({"a": ["sparsify", "prune", "distill", "int8"]}, "a: distill makes new weights, and what sparsify set to"),
        ({"fp32": ["int8"]}, "fp32 is what all others start from"),
        ({"a": []}, "at least 1 item"),
        ({"../a": ["int8"]}, "should match pattern"),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(variants: dict[str, list[object]], told: str) -> None:
    with pytest.raises(ConfigError, match="here: ") as refused:
        parsed({"variants": variants}, where="here")
    assert told in str(refused.value)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("first", ["low_rank", "distill"])
def test_sparsify_may_follow_what_makes_new_weights(first: str) -> None:
    parsed({"variants": {"a": [first, "sparsify", "prune", "finetune", "qat"]}}, where="here")


def test_every_family_has_a_default_whose_children_follow_their_parents() -> None:
    for family in ("cnn", "lstm", "rnn", "gan", "autoencoder", "vae", "mlp", "onnx"):
        spec = default_spec(family)
        assert [spec.depth(name) for name in spec.variants] == [0, 0, 0, 1]
    assert default_spec("lstm").variants["int8"][0].kind == "int8_dynamic"
    assert default_spec("cnn").variants["int8"][0].kind == "int8"


def test_a_pass_is_left_out_with_all_that_it_makes() -> None:
    spec = default_spec("cnn")
    assert spec.without([]) == spec
    assert list(spec.without(["prune"]).variants) == ["int8", "bf16"]
    assert list(spec.without(["int8", "bf16", "prune"]).variants) == []
    with pytest.raises(ConfigError, match=r"without=\['fp8', 'x'\] names no pass; passes: prune, "):
        spec.without(["x", "int8", "fp8"])


def test_a_file_and_shorthands_are_one_spec(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text("variants:\n  small: [{prune: {ratio: 0.5}}, int8]\n")
    assert chosen(None, []) is None
    spec = chosen(path, ["half=bf16", "tiny=prune, int8"])
    assert spec is not None
    assert {name: [s.kind for s in steps] for name, steps in spec.variants.items()} == {
        "small": ["prune", "int8"], "half": ["bf16"], "tiny": ["prune", "int8"],
    }  # fmt: skip
    with pytest.raises(ConfigError, match="variant 'int8' is no NAME=PASS,PASS and none of lean-int8, exit-int8"):
        chosen(None, ["int8"])
    with pytest.raises(ConfigError, match=r"no\.yaml cannot be read"):
        load_spec(tmp_path / "no.yaml")
    path.write_text("variants: [1")
    with pytest.raises(ConfigError, match="cannot be read"):
        load_spec(path)
    path.write_text("- 1")
    with pytest.raises(ConfigError, match=r"spec\.yaml: spec: "):
        load_spec(path)


@pytest.mark.parametrize("name", list(NAMED))
def test_a_variant_with_a_name_of_its_own_is_what_the_benchmark_s_spec_says(name: str) -> None:
    spec = chosen(None, [name, "half=bf16"])
    assert spec is not None
    assert list(spec.variants) == [name, "half"]
    (cnn,) = (path for path in SPECS if path.stem == "cnn")
    assert spec.variants[name] == load_spec(cnn).variants[name], "what was measured"


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_the_benchmarks_specs_are_specs(path: Path) -> None:
    assert len(load_spec(path).variants) > 10


def test_together_they_name_every_pass() -> None:
    named = {step.kind for path in SPECS for steps in load_spec(path).variants.values() for step in steps}
    assert set(KINDS) == named
