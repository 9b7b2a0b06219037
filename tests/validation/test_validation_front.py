import subprocess
import sys

from simpletuner.schema import options
from simpletuner.validation.options import Validation

CODE = (
    "import sys; import simpletuner.validation.prompts, simpletuner.validation.shots; sys.exit('torch' in sys.modules)"
)


def test_prompts_and_options_need_no_torch():
    assert subprocess.run([sys.executable, "-c", CODE]).returncode == 0


def test_the_option_table_says_what_the_contract_says():
    table = options([Validation])
    assert (
        table["validation_step_interval"].former == ("validation_steps",)
        and table["validation_step_interval"].default == 100
    )
    assert table["num_validation_images"].bounds == "[1, 10]"
    assert table["validation_guidance"].default is None and table["validation_guidance"].bounds == ">= 0"
    assert [o.key for o in table.values() if o.level == "basic"] == [
        "validation_step_interval", "validation_prompt", "user_prompt_library", "validation_resolution",
        "validation_guidance",
        "validation_num_inference_steps",
    ]  # fmt: skip
