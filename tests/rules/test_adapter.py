import pytest
from rules.cases import FULL, Case, speaks_only_when_broken

from simpletuner.rules import adapter

BASE, TYPE, START, LAYERS, OWN, RECIPE = (
    "base_model_precision", "flux_lora_module_type", "lora_init_type", "flux_lora_target", "peft_lora_target_modules",
    "lycoris_config",
)  # fmt: skip
LYCORIS, STANDARD = {"lora_type": "lycoris"}, {"lora_type": "standard"}
LOKR = {"algo": "lokr", "multiplier": 1.0, "linear_dim": 10000, "linear_alpha": 1}
RANKLESS = {key: value for key, value in LOKR.items() if key != "linear_dim"}
NF4, QUANTO = {BASE: "nf4-bnb"}, {BASE: "int8-quanto"}
RECIPES_HOME = "config/lycoris_config.json"
CASES = [
    Case(12, adapter.loftq_makes_up_for_nf4, {START: "loftq", **QUANTO}, "int8-quanto", (START, BASE), NF4),
    Case(12, adapter.loftq_makes_up_for_nf4, {START: "loftq"}, "no_change", (START, BASE), FULL),
    Case(13, adapter.changed_base_is_unquantised, {START: "pissa", **NF4}, "pissa", (START, BASE), {BASE: "bf16"}),
    Case(13, adapter.changed_base_is_unquantised, {START: "olora", **NF4}, "olora", (START, BASE), {START: "loftq"}),
    *(
        Case(14, adapter.dora_reads_its_base, {TYPE: "dora", BASE: kind}, f"base in {kind}", (TYPE, BASE), mended)
        for kind, mended in (("int8-quanto", NF4), ("int8-torchao", {BASE: "bf16"}), ("fp8-compute", {TYPE: "rslora"}))
    ),
    *(
        Case(15, adapter.recipe_says_it, {**LYCORIS, key: value}, f"{key} has no effect", (key,), mended, "notice")
        for key, value, mended in (
            (LAYERS, "mlp", {LAYERS: "all"}), (TYPE, "rslora", STANDARD), (START, "gaussian", FULL),
            (OWN, "to_q", STANDARD),
        )
    ),
    Case(16, adapter.recipe_is_complete, {**LYCORIS, RECIPE: {"algo": "lokr"}},
         "lacks multiplier, linear_dim, linear_alpha", (RECIPE,), {RECIPE: LOKR}),
    Case(16, adapter.recipe_is_complete, {**LYCORIS, RECIPE: RANKLESS}, "lacks linear_dim", (RECIPE,),
         {RECIPE: {**RANKLESS, "full_matrix": True}}),
    Case(16, adapter.recipe_is_complete, {**LYCORIS, RECIPE: {}}, "lacks algo", (RECIPE,), STANDARD),
    Case(17, adapter.targets_exist, {OWN: "to_kk"}, '"to_kk" matches no linear layer', (OWN, LAYERS), {OWN: "to_k"}),
    Case(17, adapter.targets_exist, {LAYERS: "nano", "model_flavour": "nano"}, "names a block that the model lacks",
         (OWN, LAYERS), {"model_flavour": "krea"}),
]  # fmt: skip


@pytest.mark.parametrize("case", CASES, ids=str)
def test_adapter(case, config):
    speaks_only_when_broken(case, config)


def test_a_recipe_in_a_file_is_read_and_the_default_file_may_be_absent(config, tmp_path):
    assert list(adapter.recipe_is_complete(config(LYCORIS))) == []
    (tmp_path / RECIPES_HOME).write_text('{"algo": "lokr", // the rest is missing\n}')
    (comment, comma, problem) = adapter.recipe_is_complete(config(LYCORIS))
    assert comment.severity == comma.severity == "warning" and "lacks multiplier" in problem.message
    (tmp_path / RECIPES_HOME).write_text('{"algo": ')
    (problem,) = adapter.recipe_is_complete(config(LYCORIS))
    assert "not valid JSON" in problem.message and f"{RECIPES_HOME}:1" in problem.where
    (tmp_path / RECIPES_HOME).write_text("[]")
    (problem,) = adapter.recipe_is_complete(config(LYCORIS))
    assert "expected an object" in problem.message


def test_a_recipe_that_is_no_object_is_told(config):
    for text in ("algo=lokr", "~nobody=1", "a=\0"):
        (problem,) = adapter.recipe_is_complete(config({**LYCORIS, RECIPE: text}))
        assert "neither an object nor a file" in problem.message


def test_several_idle_options_are_named_in_one_line(config):
    found = adapter.recipe_says_it(config({**LYCORIS, LAYERS: "mlp", TYPE: "rslora", START: "gaussian"}))
    assert found.message.startswith(f"{LAYERS}, {TYPE} and {START} have no effect") and RECIPE in found.fix


def test_an_own_list_in_a_file_is_looked_through(config, tmp_path):
    (tmp_path / "layers.json").write_text('["add_q_proj", "add_q_pro"]')
    (problem,) = adapter.targets_exist(config({OWN: str(tmp_path / "layers.json")}))
    assert '"add_q_pro"' in problem.message and problem.exit_code == 2 and OWN in problem.keys


def test_the_nearest_layers_are_named(config):
    (problem,) = adapter.targets_exist(config({OWN: "add_q_pro"}))
    assert "add_q_proj" in problem.fix
